"""What is learned about a chunk whose attempts end with their process, until the row is known that does it.

After an attempt that ended with its process, the chunk is in probation: its rows go to work in groups, and each group
is written to the ledger before it starts. The next attempt finds the group that was at work when the process ended,
and takes that one apart first. A row that ended two processes alone is condemned: it becomes an error row and never
goes to work again. In a chunk of 2,000 rows one such row costs four processes: the whole chunk, a group of 32, the row
alone, and the row alone again, because a process may also end for reasons of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

#: Rows from the first up to, not including, the second.
Span = tuple[int, int]

#: Groups that a chunk in probation is run in at most, and those that the rows under suspicion are divided into.
GROUPS = 64
#: Processes that a row must end, alone at work, to be condemned.
STRIKES = 2


@dataclass(frozen=True)
class Journal:
    """What earlier attempts at a chunk taught.

    Attributes:
        suspects: the rows that were at work when the last process ended.
        strikes: processes that ended while the one suspect was at work alone.
        condemned: row -> how the last process ended that it took along.
        why: how the last attempt ended, if its chunk may be to blame.
    """

    suspects: Span | None = None
    strikes: int = 0
    condemned: dict[int, str] = field(default_factory=dict)
    why: str = ""

    @classmethod
    def read(cls, learned: str, now: str, why: str) -> Journal:
        """Read the ledger's notes: what was learned, the rows at work when the last attempt ended, and how it ended."""
        suspects, strikes, condemned = json.loads(learned or "[null, 0, {}]")
        journal = cls(
            suspects=(suspects[0], suspects[1]) if suspects else None,
            strikes=strikes,
            condemned={int(row): how for row, how in condemned.items()},
            why=why,
        )
        if not now:
            return journal
        first, _, stop = now.partition(" ")
        return journal._after((int(first), int(stop)))

    def dump(self) -> str:
        """Write what was learned, for the ledger."""
        return json.dumps([self.suspects, self.strikes, self.condemned], separators=(",", ":"))

    def groups(self, n_rows: int) -> list[Span]:
        """Return the groups in which a chunk in probation goes to work: the suspects first, the condemned never."""
        first, stop = self.suspects or (0, 0)
        first, stop = min(first, n_rows), min(stop, n_rows)
        groups = [*_split(first, stop), *_split(0, first), *_split(stop, n_rows)]
        return [part for group in groups for part in self._acquitted(group)]

    def _after(self, rows: Span) -> Journal:
        """Return what is known after a process ended with these rows at work."""
        first, stop = rows
        if stop - first > 1:
            return replace(self, suspects=rows, strikes=0)
        strikes = self.strikes + 1 if rows == self.suspects else 1
        if strikes < STRIKES:
            return replace(self, suspects=rows, strikes=strikes)
        return replace(self, suspects=None, strikes=0, condemned={**self.condemned, first: self.why})

    def _acquitted(self, group: Span) -> Iterator[Span]:
        """Yield the parts of a group that lie between condemned rows."""
        first, stop = group
        for row in sorted(row for row in self.condemned if first <= row < stop):
            if first < row:
                yield first, row
            first = row + 1
        if first < stop:
            yield first, stop


def _split(first: int, stop: int) -> list[Span]:
    """Divide rows into at most GROUPS groups."""
    size = -(-(stop - first) // GROUPS) or 1
    return [(i, min(i + size, stop)) for i in range(first, stop, size)]
