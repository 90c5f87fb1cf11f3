"""A lifeline: whoever hangs on it ends when its parent does, even by SIGKILL, on Linux and macOS alike.

The parent holds the writing end of a pipe that is the child's standard input; the kernel closes it with the parent,
and the child reads the end of the file. ``python -m tasks.lifeline COMMAND...`` hangs a program on it that knows
nothing of this: the embedded server.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

#: Seconds that a command gets to end by itself after SIGTERM.
GRACE_S = 5.0
#: Seconds between two looks at who the parent is.
POLL_S = 0.5

#: Set by a node for its slots: its pid. A slot that asked who its parent is might learn too late that it has none.
PARENT_VARIABLE = "PENSTOCK_NODE_PID"
#: Set for a node whose standard input is a lifeline.
LIFELINE_VARIABLE = "PENSTOCK_LIFELINE"

_PR_SET_PDEATHSIG = 1


def hang_on_stdin(then: Callable[[], None]) -> None:
    """Call ``then`` from a thread when the other end of standard input is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        then()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def hang_on_parent(parent: int) -> None:
    """Kill this process when the parent with this pid is gone, or is gone already.

    For children whose standard input is taken.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def die_with_parent() -> None:
    """Ask Linux to kill this process with its parent; elsewhere nothing happens. For ``preexec_fn``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs ``arguments`` on a lifeline."""
    return [sys.executable, "-P", "-m", "tasks.lifeline", *arguments]


def main() -> int:
    """Run a command; end it when standard input does. SIGTERM and SIGINT go on to it."""
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread so far
        close_fds=False,  # a lock file may be inherited
    )

    def end() -> None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()

    # The command's own group gets Ctrl-C too; whoever holds the lifeline decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    hang_on_stdin(end)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
