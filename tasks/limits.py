"""Time limits that nobody has to guess: a piece of work may take so many times what the pace so far lets expect.

Three paces are measured in each slot: characters of the rows that go to the engine together, padded tokens of a batch,
and characters of a job's options, which the engine looks at. A thread looks at all; when one is over its limit, the
process ends, its node replaces it, and the chunk is treated like one that killed its process (tasks/journal.py). A hang
that does not even let that thread run (it holds the interpreter's lock) silences the slot's pulse too, and the node
ends it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.endings import EXIT_OVERDUE

log = logging.getLogger(__name__)

#: How many times the expected duration a piece of work may take: machines are shared, and texts differ.
FACTOR = 20.0
#: How many times ``stall_s`` it may take while no pace is known: a first batch may compile kernels.
UNMEASURED = 10.0
#: Weight of the newest measurement in the pace.
NEWEST = 0.2
#: Sizes below which a piece teaches nothing.
LEAST_CHARACTERS = 2048
LEAST_TOKENS = 128


class Pace:
    """How fast one kind of work goes, and when the present piece of it is overdue.

    Args:
        what: the unit of its pieces.
        stall_s: seconds that a piece may take in any case.
        least: units below which a piece teaches nothing, since what it takes is not due to its size.
    """

    def __init__(self, what: str, stall_s: float, least: int = 1) -> None:
        self.what = what
        self._least = least
        self._stall_s = stall_s
        self._s_per_unit: float | None = None
        self._piece: tuple[float, float] | None = None

    def begin(self, amount: float) -> None:
        """Start a piece of work."""
        self._piece = amount, time.monotonic()

    def end(self) -> None:
        """Finish the piece, and learn from it."""
        if self._piece is None:
            return
        (amount, started), self._piece = self._piece, None
        if amount < self._least:
            return
        # Seconds per unit, not units per second: one piece that is fast, such as a huge text of which little is fed,
        # shortens the limit by its share at most.
        newest = (time.monotonic() - started) / amount
        before = self._s_per_unit
        self._s_per_unit = newest if before is None else (1 - NEWEST) * before + NEWEST * newest

    def scale(self, share: float) -> None:
        """Count only a share of the piece: the rest of it turned out to be no work."""
        if self._piece is not None:
            amount, started = self._piece
            self._piece = share * amount, started

    def drop(self) -> None:
        """Forget the piece: it was not finished."""
        self._piece = None

    def limit_s(self, amount: float) -> float:
        """Return how long a piece of this size may take."""
        if self._s_per_unit is None:
            return UNMEASURED * self._stall_s
        return max(self._stall_s, FACTOR * amount * self._s_per_unit)

    def overdue(self) -> str | None:
        """Say that the present piece takes too long, or return None."""
        piece = self._piece
        if piece is None:
            return None
        amount, started = piece
        limit_s = self.limit_s(amount)
        if time.monotonic() - started <= limit_s:
            return None
        return f"{amount:,.0f} {self.what} take longer than {limit_s:,.0f} s"


class TimeLimits:
    """The time limits of one slot.

    Args:
        stall_s: seconds that a piece of work may take in any case.
        end: called with the reason when a piece is overdue; it ends the process.
    """

    def __init__(self, stall_s: float, end: Callable[[str], None] | None = None) -> None:
        self._stall_s = stall_s
        self._end = end or _end_process
        self._rows = Pace("characters of text", stall_s, LEAST_CHARACTERS)
        self._batch = Pace("tokens in a batch", stall_s, LEAST_TOKENS)
        self._options = Pace("characters of options", stall_s, LEAST_CHARACTERS)

    def start(self) -> None:
        """Watch from a thread."""
        threading.Thread(target=self._watch, name="limits", daemon=True).start()

    @contextmanager
    def rows(self, n_characters: int) -> Iterator[None]:
        """Limit the time of what the engine does with rows, tokenising included."""
        self._rows.begin(n_characters)
        try:
            yield
            self._batch.end()
            self._rows.end()
        finally:
            self._batch.drop()
            self._rows.drop()

    @contextmanager
    def options(self, n_characters: int) -> Iterator[None]:
        """Limit the time in which the engine says whether it can serve options: a template in them is tokenised."""
        self._options.begin(n_characters)
        try:
            yield
            self._options.end()
        finally:
            self._options.drop()

    def computed(self, share: float) -> None:
        """Say which share of the rows the engine computed; the others were quick, and teach nothing of its pace."""
        self._rows.scale(share)

    def batch(self, padded_tokens: int) -> None:
        """Note that a batch starts, and with it that the one before has ended."""
        self._batch.end()
        self._batch.begin(padded_tokens)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._stall_s / 4))
            reason = self._batch.overdue() or self._rows.overdue() or self._options.overdue()
            if reason:
                self._end(reason)
                return


def _end_process(reason: str) -> None:
    log.error("Slot ends, its work hangs: %s", reason, extra={"action": "end"})
    os._exit(EXIT_OVERDUE)
