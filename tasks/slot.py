"""A slot: one process with one engine, and all that the task bodies need of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from celery import Celery

from tasks import delivery
from tasks.errors import Transient
from tasks.ledger import Ledger
from tasks.limits import TimeLimits
from tasks.messages import JobSpec, Receipt
from tasks.ports import Encoder
from tasks.pulse import Pulse
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.store import Store
from tasks.workforce import SlotStatus

T = TypeVar("T")

#: Seconds that a slot goes on trying to reach broker or store before it gives its chunk back. Its work is lost then.
PATIENCE_S = 120.0


@dataclass
class Slot:
    """One process with one engine."""

    settings: Settings
    ledger: Ledger
    store: Store
    app: Celery
    encoder: Encoder
    pulse: Pulse
    limits: TimeLimits

    @property
    def status(self) -> SlotStatus:
        """What this slot is and has done."""
        return self.pulse.status

    def publish(self, spec: JobSpec, chunks: list[int]) -> None:
        """Publish tickets; a fault is left to the reconciler."""
        delivery.publish_or_leave(self.app, spec, chunks)

    def patiently(self, call: Callable[[], T]) -> T:
        """Call broker or store until it answers or the patience ends. While it fails, the slot's status says why."""

        def attempt() -> T:
            try:
                return call()
            except Transient as exc:
                self.pulse.change(error=str(exc))
                raise

        answer = retry_transient(attempt, for_s=PATIENCE_S)
        if self.status.error:
            self.pulse.change(error="")
        return answer

    def count(self, receipt: Receipt) -> None:
        """Add a finished chunk to what this slot has done."""
        busy_s = receipt.read_s + receipt.tokenise_s + receipt.model_s + receipt.write_s
        self.pulse.change(
            chunks=self.status.chunks + 1,
            tokens=self.status.tokens + receipt.tokens,
            tokens_per_s=round(receipt.tokens / busy_s, 1) if busy_s else 0.0,
        )
