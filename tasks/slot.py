"""A slot: one process with one engine, and all that the task bodies need of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from celery import Celery

from tasks import delivery
from tasks.blocks import BlockCache
from tasks.errors import Transient
from tasks.ledger import Ledger
from tasks.limits import TimeLimits
from tasks.messages import JobSpec, Receipt
from tasks.ports import Engine
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
    engine: Engine[Any]
    pulse: Pulse
    limits: TimeLimits
    #: Tells how often this process has loaded weights.
    loads: Callable[[], int] = lambda: 0
    #: The job of the last chunk, and when the model was done with it.
    _worked: tuple[str, float] = ("", 0.0)

    def __post_init__(self) -> None:
        #: Text blocks of scoring jobs.
        self.blocks = BlockCache(
            self.settings.blocks_folder,
            self.settings.block_cache_bytes,
            lambda key: self.patiently(lambda: self.store.get(key)),
            self.status.store_id,
        )

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

    def idle_s(self, job: str, started: float, model_s: float) -> float:
        """Return the seconds without model work since the last chunk of the same job, or since this one's start.

        To be asked when the model is done with a chunk.

        Args:
            job: whose chunk it is.
            started: when work on it began, by ``time.perf_counter``.
            model_s: seconds that it was in the model.
        """
        now = time.perf_counter()
        last_job, ended = self._worked
        self._worked = job, now
        return max(0.0, now - (ended if last_job == job else started) - model_s)

    def count(self, receipt: Receipt) -> None:
        """Add a finished chunk to what this slot has done."""
        busy_s = receipt.wall_s + receipt.write_s
        self.pulse.change(
            chunks=self.status.chunks + 1,
            tokens=self.status.tokens + receipt.tokens,
            tokens_per_s=round(receipt.tokens / busy_s, 1) if busy_s else 0.0,
            model_s=self.status.model_s + receipt.model_s,
            idle_s=self.status.idle_s + receipt.idle_s,
        )
