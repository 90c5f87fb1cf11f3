"""How worker processes end: their exit statuses, and what those say to people."""

from __future__ import annotations

import signal

#: A node whose slot cannot load its model, or a setting is wrong: starting it again would end in the same way.
EXIT_NOT_STARTED = 78
#: A slot whose batch or chunk ran over its time limit.
EXIT_OVERDUE = 75
#: A slot whose engine fails on everything.
EXIT_ENGINE_BROKEN = 70

_WORDS = {
    EXIT_OVERDUE: "it ran over its time limit",
    EXIT_ENGINE_BROKEN: "the engine failed on everything after it",
}


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


def is_by_will(status: int | None) -> bool:
    """Whether somebody ended the process on purpose, so that its chunk is not to blame."""
    return status in {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT, -signal.SIGHUP}
