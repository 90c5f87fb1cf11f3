"""How a node ends when it is told to: with its chunks finished, or handed back, never failed.

SIGTERM or Ctrl-C: no more tickets; slots get ``grace_s`` to finish their chunks, then these are handed back. SIGQUIT
or a second Ctrl-C: they are handed back at once. The exit status is 0 either way.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from celery.worker import state as worker_state

log = logging.getLogger(__name__)

#: Seconds that handing back may take: the broker may be away, and then the leases lapse.
HAND_BACK_S = 5.0


class Stopping:
    """The end of one node.

    Args:
        grace_s: seconds to finish chunks.
        hand_back: ends the slots and frees their leases.
    """

    def __init__(self, grace_s: float, hand_back: Callable[[], None]) -> None:
        self._grace_s = grace_s
        self._hand_back = hand_back
        self._has_begun = False
        self._is_interrupted = False

    def install(self) -> None:
        """Take over the signals from Celery, which waits for a task without end, and fails it when it does not."""
        signal.signal(signal.SIGTERM, lambda *_: self._begin())
        signal.signal(signal.SIGINT, lambda *_: self._interrupt())
        signal.signal(signal.SIGQUIT, lambda *_: self._end())

    def _interrupt(self) -> None:
        if self._is_interrupted:
            self._end()
        self._is_interrupted = True
        self._begin()

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        _say(f"stops, and gives its slots {self._grace_s:.0f} s to finish their chunks; Ctrl-C or SIGQUIT ends it now")
        worker_state.should_stop = 0  # the loop ends, and Celery waits for the slots
        timer = threading.Timer(self._grace_s, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        """Hand back and go, from a thread: a signal may have interrupted just such a call."""
        threading.Thread(target=self._leave, name="hand back", daemon=True).start()

    def _leave(self) -> None:
        worker = threading.Thread(target=self._hand_back, name="leases", daemon=True)
        worker.start()
        worker.join(HAND_BACK_S)
        _say("ended; what it had in work is handed back")
        os._exit(0)


def _say(what: str) -> None:
    """Write a line as it is: a logger's lock may be held where a signal arrives."""
    os.write(sys.stderr.fileno(), f"penstock worker: this node {what}\n".encode())
