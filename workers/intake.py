"""What a node takes from its queue: as many tickets as slots are ready, none while it drains, and no standstill."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import redis
from celery.worker import state as worker_state

from tasks.workforce import SlotStatus

log = logging.getLogger(__name__)

#: Seconds for which tickets may wait while slots of this node are idle and it takes none.
STANDSTILL_S = 20.0


class Intake:
    """The way from the queue to one node's slots.

    Args:
        consumer: Celery's consumer.
        queue: the model's queue.
    """

    def __init__(self, consumer: Any, queue: str) -> None:
        self._consumer = consumer
        self._queue = queue
        self._n_ready = 0
        self._is_open = False
        self._taken = -1
        self._moved_at = time.monotonic()
        self._has_reconnected = False

    @property
    def is_open(self) -> bool:
        """Whether a slot of this node was ever ready."""
        return self._is_open

    def adjust(self, slots: list[SlotStatus]) -> None:
        """Take tickets for the slots that are ready. A prefork parent would take them for slots that still load."""
        self._n_ready = sum(slot.state == "ready" for slot in slots)
        # Celery reads its autoscaler's limit at each ticket; there is no autoscaler here, and 0 would mean no limit.
        self._consumer.controller.max_concurrency = self._n_ready or -1
        if self._n_ready and not self._is_open:
            self._consumer.add_task_queue(self._queue)
            self._is_open = True

    def is_standing(self, n_waiting: int) -> bool:
        """Whether tickets have waited for long while slots are idle and the node takes none."""
        taken = sum(worker_state.total_count.values())
        # By Celery's own view: a slot that waits for the broker to grant its claim is not idle.
        is_idle = len(worker_state.reserved_requests) < self._n_ready
        if not (n_waiting and is_idle) or taken != self._taken:
            self._has_reconnected &= taken == self._taken
            self._taken, self._moved_at = taken, time.monotonic()
        return time.monotonic() - self._moved_at > STANDSTILL_S

    def free(self, end_slots: Callable[[], None]) -> None:
        """Get a node going again that stands still: reconnect, and if that did not help, start its program anew.

        Args:
            end_slots: called before the program starts anew, with new slots.

        Raises:
            ConnectionError: for Celery's loop, which drops the connection to the broker and makes a new one.
        """
        self._moved_at = time.monotonic()
        if not self._has_reconnected:
            self._has_reconnected = True
            log.error(
                "Node takes no tickets though some wait and slots are idle; reconnecting to the broker",
                extra={"action": "reconnect"},
            )
            raise redis.ConnectionError("the connection takes no tickets")
        log.error("Node still takes no tickets; starting it again", extra={"action": "restart"})
        end_slots()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
