"""A slot: one process with one engine, its lease, and the pulse that keeps both alive in the ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from celery import Celery

from tasks import delivery
from tasks.errors import Transient
from tasks.ledger import Lease, Ledger
from tasks.messages import JobSpec, Receipt
from tasks.ports import Encoder
from tasks.settings import Settings
from tasks.store import Store
from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)


@dataclass
class Slot:
    """All that the task bodies need of this process."""

    status: SlotStatus
    settings: Settings
    ledger: Ledger
    store: Store
    app: Celery
    encoder: Encoder
    lease: Lease | None = None
    _is_lost: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start_pulse(self) -> None:
        """Report this slot and renew its lease from a thread of its own, until the process ends."""
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Keep a lease alive while its chunk is worked on."""
        self.lease, self._is_lost = lease, False
        self.status = replace(self.status, claim=f"{lease.job} {lease.chunk} {lease.token}")
        self.report()
        try:
            yield
        finally:
            self.lease = None
            self.status = replace(self.status, claim="")

    @property
    def has_lost_lease(self) -> bool:
        """Whether the lease is somebody else's by now, or its job ended."""
        return self._is_lost

    def publish(self, spec: JobSpec, chunks: list[int]) -> None:
        """Publish tickets; a fault is left to the reconciler."""
        try:
            delivery.publish(self.app, spec, chunks)
        except Transient as exc:
            log.warning("Tickets not published: %s", exc, extra={"action": "publish", "job": spec.job})

    def count(self, receipt: Receipt) -> None:
        """Add a finished chunk to what this slot has done."""
        busy_s = receipt.read_s + receipt.tokenise_s + receipt.model_s + receipt.write_s
        self.status = replace(
            self.status,
            chunks=self.status.chunks + 1,
            tokens=self.status.tokens + receipt.tokens,
            tokens_per_s=round(receipt.tokens / busy_s, 1) if busy_s else 0.0,
        )

    def report(self) -> None:
        """Tell the ledger what this slot is and does; a fault is left to the next beat."""
        try:
            self.ledger.workforce.report(self.status)
        except Transient as exc:
            log.warning("Slot not reported: %s", exc, extra={"action": "report"})

    def _beat(self) -> None:
        while not self._stopped.wait(self.settings.heartbeat_s):
            self.report()
            lease = self.lease
            if lease is None:
                continue
            try:
                if not self.ledger.touch(lease, self.settings.lease_s) and self.lease is lease:
                    self._is_lost = True
            except Transient as exc:
                log.warning("Lease not renewed: %s", exc, extra={"action": "touch"})
