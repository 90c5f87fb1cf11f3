"""How worker processes end: their exit statuses, and what those say to people."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

#: A slot that could not be replaced, though others of its node could start: it may be for a passing reason.
EXIT_SLOT_FAILED = 69
#: A node whose slot cannot load its model, or a setting is wrong: starting it again would end in the same way.
EXIT_NOT_STARTED = 78
#: A slot whose batch or chunk ran over its time limit.
EXIT_OVERDUE = 75
#: A slot whose engine fails on everything.
EXIT_ENGINE_BROKEN = 70
#: A slot over several devices, one of whose other ranks ended.
EXIT_RANK_LOST = 71
#: The same, where a device had no memory for a batch: of several rows, of which the next one has fewer, or of one.
EXIT_RANK_FULL, EXIT_ROW_FULL = 72, 73

_WORDS = {
    EXIT_SLOT_FAILED: "one of its slots could not be replaced",
    EXIT_OVERDUE: "it ran over its time limit",
    EXIT_ENGINE_BROKEN: "the engine failed on everything after it",
    EXIT_RANK_LOST: "one of the processes that it is parted among ended",
    EXIT_RANK_FULL: "one of its devices had no memory for a batch; the next ones are smaller",
    EXIT_ROW_FULL: "one of its devices had no memory for a single row",
}


@dataclass(frozen=True)
class Ending:
    """How an attempt at a chunk ended without a result.

    Attributes:
        kind: ``forgiven``: the chunk was handed back, the attempt does not count. ``stopped``: somebody ended the slot,
            likewise, but not without limit, since a row may do that too. ``failed``: it counts. ``died``: it counts,
            and is evidence against the rows at work.
        why: in words.
    """

    kind: Literal["forgiven", "stopped", "failed", "died"]
    why: str = ""


FORGIVEN = Ending("forgiven")
STOPPED = Ending("stopped", "its slot was told to end")


def describe(status: int | None) -> str:
    """Say how a process ended, by the exit status that ``subprocess`` and billiard give: negative for a signal."""
    if status is None:
        return "its process is gone"
    if status >= 0:
        return _WORDS.get(status, f"its process ended with exit status {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"


def ending_of(status: int | None) -> Ending:
    """Return how the attempt of a process ended that ended so."""
    if status in {-signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT, -signal.SIGHUP}:
        return STOPPED
    if status == EXIT_RANK_FULL:
        return Ending("stopped", describe(status))
    return Ending("died", describe(status))
