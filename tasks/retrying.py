"""Trying again what failed for a passing reason."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tasks.errors import Transient

T = TypeVar("T")

log = logging.getLogger(__name__)

#: First pause and longest pause between two tries, in seconds; each is jittered between a half and the whole.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


def retry_transient(call: Callable[[], T], *, for_s: float) -> T:
    """Call until it succeeds, fails for good, or ``for_s`` seconds have passed; then the last fault is raised."""
    deadline = time.monotonic() + for_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Transient as exc:
            if time.monotonic() + pause_s > deadline:
                raise
            log.warning("Passing fault, trying again: %s", exc, extra={"action": "retry"})
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
