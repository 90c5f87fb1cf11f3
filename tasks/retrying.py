"""Trying again what failed for a passing reason."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tasks.errors import BrokerDenied, BrokerFull, Transient

T = TypeVar("T")

log = logging.getLogger(__name__)

#: First pause and longest pause between two tries, in seconds; each is jittered between a half and the whole.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


def retry_transient(call: Callable[[], T], *, for_s: float) -> T:
    """Call until it succeeds, fails for good, or ``for_s`` seconds have passed; then the last fault is raised.

    A full broker is waited for without limit, and said once: it is there, and whoever gave up would lose work.
    """
    deadline = time.monotonic() + for_s
    pause_s = FIRST_PAUSE_S
    is_full = False
    while True:
        try:
            return call()
        except BrokerFull as exc:
            if not is_full:
                log.warning("Waiting for room: %s", exc, extra={"action": "wait"})
            is_full = True
            deadline = time.monotonic() + for_s
        except Transient as exc:
            # A client's user that may not do this will not be allowed to in a minute; a node that starts waits.
            is_denied = isinstance(exc, BrokerDenied) and for_s != math.inf
            if is_denied or time.monotonic() + pause_s > deadline:
                raise
            is_full = False
            log.warning("Passing fault, trying again: %s", exc, extra={"action": "retry"})
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
