"""The processes of a node's slots: which are alive, how the others ended, and which make no sign of life."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

from tasks.endings import Ending, ending_of
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)

#: Leases that a slot may stay silent beyond its own before the node ends it: by then its chunk is another's.
SILENT_LEASES = 2


class Children:
    """The children of one node's pool.

    Args:
        pool: Celery's prefork pool.
        lease_s: how long a slot that says nothing keeps its chunk.
    """

    def __init__(self, pool: Any, lease_s: float) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._processes: dict[int, Any] = {}
        self._silent_since: dict[int, float] = {}
        self._silenced: set[int] = set()
        self._seen_alive: set[int] = set()

    @property
    def has_changed(self) -> bool:
        """Whether a process ended or came since the last look."""
        return self.alive != self._seen_alive

    def look(self) -> None:
        """Take note of the processes that there are, so that their exit statuses are known later.

        The pool replaces those that ended, and forgets their tasks. By itself it looks every 5 s only.
        """
        for process in self._members():
            self._processes.setdefault(process.pid, process)
        self._seen_alive = self.alive
        self._pool.maintain_pool()

    @property
    def alive(self) -> set[int]:
        """The processes that run."""
        return {process.pid for process in self._members() if process.exitcode is None}

    def deaths(self, slots: list[SlotStatus]) -> list[tuple[SlotStatus, Ending]]:
        """Return the slots whose processes ended, and how. To be told of each once it is buried: ``forget``."""
        alive = self.alive
        dead = [slot for slot in slots if slot.pid not in alive and slot.state != "failed"]
        return [(slot, self._ending(slot.pid)) for slot in dead]

    def forget(self, pid: int) -> None:
        """Forget a process that is buried."""
        self._processes.pop(pid, None)
        self._silenced.discard(pid)

    def end_silent(self, slots: list[SlotStatus]) -> None:
        """Kill the processes that live but have not reported for long: they hang, and hold the interpreter's lock."""
        now = time.monotonic()
        heard = {slot.pid for slot in slots if slot.seen_s <= self._lease_s}
        known = {slot.pid for slot in slots} | self._silent_since.keys()
        self._silent_since = {pid: self._silent_since.get(pid, now) for pid in (known & self.alive) - heard}
        for pid, since in self._silent_since.items():
            if now - since > SILENT_LEASES * self._lease_s and pid not in self._silenced:
                log.error(
                    "Slot process %d made no sign of life for %.0f s, killing it",
                    *(pid, now - since + self._lease_s),
                    extra={"action": "kill"},
                )
                self._silenced.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def forget_silence(self) -> None:
        """Begin anew to listen: the broker was away, and nobody could report."""
        self._silent_since.clear()

    def kill(self) -> None:
        """Kill all of them."""
        for pid in self.alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ending(self, pid: int) -> Ending:
        if pid in self._silenced:
            return Ending("died", "its process made no sign of life and was killed")
        process = self._processes.get(pid)
        return ending_of(process.exitcode if process is not None else None)

    def _members(self) -> list[Any]:
        return list(self._pool._pool._pool) if self._pool._pool is not None else []  # noqa: SLF001 - no public way
