"""The pulse of a slot: it tells the ledger that the slot lives, from its first moment, and keeps its lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tasks.errors import Transient
from tasks.ledger import Ledger
from tasks.records import Lease
from tasks.settings import Settings
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)

#: Seconds for which a report may be under way.
RECENT_S = 0.5


class Pulse:
    """What a slot is and holds, reported now and at every heartbeat."""

    def __init__(self, ledger: Ledger, settings: Settings, status: SlotStatus) -> None:
        self.status = status
        self.ledger = ledger
        self._settings = settings
        self._lease: Lease | None = None
        self._lost_lease: Lease | None = None
        self._stopped = threading.Event()
        self._reported_at = 0.0
        self._change = threading.Lock()

    def start(self) -> None:
        """Report, and go on doing so from a thread until the process ends or ``stop``."""
        self.report()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    def is_stopped_within(self, seconds: float) -> bool:
        """Wait so long, or until it beats no more; return whether that is so."""
        return self._stopped.wait(seconds)

    def change(self, **changes: Any) -> None:
        """Change fields of the status; the next report tells them. Threads may do so."""
        with self._change:
            self.status = replace(self.status, **changes)

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Keep a lease while its chunk is worked on.

        The claim itself has told the ledger; but a beat that was under way then may have taken that back.
        """
        self._lease = lease
        self.change(claim=f"{lease.job} {lease.chunk} {lease.token}")
        if time.monotonic() - self._reported_at < RECENT_S:
            self.report()
        try:
            yield
        finally:
            self._lease = None
            self.change(claim="")

    @property
    def has_lost_lease(self) -> bool:
        """Whether the lease is somebody else's by now, or its job ended."""
        return self._lease is not None and self._lost_lease is self._lease

    def report(self) -> None:
        """Tell the ledger what this slot is and does; a fault is left to the next beat."""
        self._reported_at = time.monotonic()
        try:
            self.ledger.workforce.report(self.status)
        except Transient as exc:
            log.warning("Slot not reported: %s", exc, extra={"action": "report"})

    def _beat(self) -> None:
        while not self._stopped.wait(self._settings.heartbeat_s):
            try:
                self.report()
                lease = self._lease
                if lease is not None and not self.ledger.touch(lease, self._settings.lease_s):
                    self._lost_lease = lease
            except Exception as exc:  # noqa: BLE001 - a pulse that stops looks like a dead slot
                log.warning("Lease not renewed: %s", exc, extra={"action": "touch"})
