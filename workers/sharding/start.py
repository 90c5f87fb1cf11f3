"""The start of this process's slot, as far as its ranks must know: whether it is over, and who hears that it failed."""

from __future__ import annotations

import os
from collections.abc import Callable

from tasks.endings import EXIT_NOT_STARTED


class Start:
    """The start of a slot; a process has one.

    Attributes:
        is_over: whether the slot has worked. Before that, what fails is said, and not tried again.
        on_failure: told why it cannot start, from a thread, when rank 0 does not say so itself: it may wait, within a
            library, for a rank that is gone.
    """

    def __init__(self) -> None:
        self.is_over = False
        self.on_failure: Callable[[str], None] = lambda _: os._exit(EXIT_NOT_STARTED)


START = Start()
