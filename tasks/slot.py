"""A slot: one process with one engine, and all that the task bodies need of it."""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery

from tasks import delivery
from tasks.ledger import Ledger
from tasks.messages import JobSpec, Receipt
from tasks.ports import Encoder
from tasks.pulse import Pulse
from tasks.settings import Settings
from tasks.store import Store
from tasks.workforce import SlotStatus


@dataclass
class Slot:
    """One process with one engine."""

    settings: Settings
    ledger: Ledger
    store: Store
    app: Celery
    encoder: Encoder
    pulse: Pulse

    @property
    def status(self) -> SlotStatus:
        """What this slot is and has done."""
        return self.pulse.status

    def publish(self, spec: JobSpec, chunks: list[int]) -> None:
        """Publish tickets; a fault is left to the reconciler."""
        delivery.publish_or_leave(self.app, spec, chunks)

    def count(self, receipt: Receipt) -> None:
        """Add a finished chunk to what this slot has done."""
        busy_s = receipt.read_s + receipt.tokenise_s + receipt.model_s + receipt.write_s
        self.pulse.change(
            chunks=self.status.chunks + 1,
            tokens=self.status.tokens + receipt.tokens,
            tokens_per_s=round(receipt.tokens / busy_s, 1) if busy_s else 0.0,
        )
