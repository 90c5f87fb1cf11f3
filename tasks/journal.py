"""What is learned about a chunk whose attempts end with their process, until the row is known that does it.

After an attempt that ended with its process, the chunk is in probation: its rows go to work in groups, and each group
is written to the ledger before it starts. The next attempt finds the group that was at work when the process ended,
and takes that one apart first. A row that ended two processes alone is condemned: it becomes an error row and never
goes to work again. In a chunk of 2,000 rows one such row costs four processes: the whole chunk, a group of 32, the row
alone, and the row alone again, because a process may also end for reasons of its own.
"""

from __future__ import annotations

import json
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
    """

    suspects: Span | None = None
    strikes: int = 0
    condemned: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, learned: str, now: str, why: str) -> Journal:
        """Read the ledger's notes: what was learned, the rows at work when the last attempt ended, and how it ended."""
        journal = cls()
        if learned:
            suspects, strikes, condemned = json.loads(learned)
            journal = cls(
                tuple(suspects) if suspects else None, strikes, {int(row): how for row, how in condemned.items()}
            )
        if not now:
            return journal
        first, _, stop = now.partition(" ")
        return journal._after((int(first), int(stop)), why or "it ended without a word")

    def dump(self) -> str:
        """Write what was learned, for the ledger."""
        return json.dumps([self.suspects, self.strikes, self.condemned], separators=(",", ":"))

    def groups(self, n_rows: int) -> list[Span]:
        """Return the groups in which a chunk in probation goes to work, the suspects first."""
        first, stop = self.suspects or (0, 0)
        first, stop = min(first, n_rows), min(stop, n_rows)
        return [*_split(first, stop), *_split(0, first), *_split(stop, n_rows)]

    def _after(self, rows: Span, why: str) -> Journal:
        first, stop = rows
        if stop - first > 1:
            return replace(self, suspects=rows, strikes=0)
        strikes = self.strikes + 1 if rows == self.suspects else 1
        if strikes < STRIKES:
            return replace(self, suspects=rows, strikes=strikes)
        return Journal(condemned={**self.condemned, first: why})


def _split(first: int, stop: int) -> list[Span]:
    """Divide rows into at most GROUPS groups."""
    size = -(-(stop - first) // GROUPS) or 1
    return [(i, min(i + size, stop)) for i in range(first, stop, size)]
