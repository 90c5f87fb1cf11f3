"""The parent of a node's slots, which never imports torch: it takes tickets, buries dead slots and looks after jobs."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import worker_shutdown
from celery.worker import state as worker_state

from tasks import broker, delivery
from tasks.endings import EXIT_NOT_STARTED, EXIT_SLOT_FAILED, FORGIVEN, Ending
from tasks.errors import PenstockError
from tasks.ledger import Ledger
from tasks.reconciler import Reconciler
from tasks.recovery import Office
from tasks.settings import Settings
from tasks.signing import Signer
from tasks.store import open_store
from tasks.workforce import SlotStatus
from workers.children import Children
from workers.idleness import IdlenessNotes
from workers.intake import Intake
from workers.serving import broker_url, queue
from workers.stopping import Stopping

log = logging.getLogger(__name__)

#: Seconds between two looks of a node at its slots, and once all of them are ready.
WATCH_S = 0.25
CALM_WATCH_S = 1.0


class Watch(bootsteps.StartStopStep):  # type: ignore[misc]
    """The node's part in Celery's loop: one look after the other."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._settings = Settings.load()
        self._node = consumer.hostname
        self._queue = queue(self._settings)
        url = broker_url(self._settings)
        self._ledger = Ledger(broker.connect(url), url, Signer.read(self._settings.signing_key_file))
        self._app = delivery.make_app(url, self._ledger.signer)
        self._names = [f"{self._node}/{index}" for index in range(consumer.controller.concurrency)]
        self._children = Children(consumer.pool, self._settings.lease_s)
        self._intake = Intake(consumer, self._queue)
        self._idleness = IdlenessNotes.of_environment(len(self._names))
        self._reconciler: Reconciler | None = None
        self._timer: Any = None
        self._look_at = 0.0
        self._is_ending = False

    def start(self, consumer: Any) -> None:
        """Begin to look, in the node's own loop."""
        # Celery announces at each lost connection what it might do in version 6; our setting is explicit. Not before:
        # Celery's own set-up of logging turns these warnings on.
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        Stopping(self._settings.grace_s, self._hand_back).install()
        worker_shutdown.connect(self._free_all)
        self._timer = consumer.timer.call_repeatedly(WATCH_S, self._look)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        is_calm = time.monotonic() < self._look_at and not self._children.has_changed
        if is_calm or self._is_ending:
            return
        is_standing = False
        try:
            slots = self._ledger.workforce.named(self._names)
            if len(slots) == len(self._names) and all(slot.state == "ready" for slot in slots):
                self._look_at = time.monotonic() + CALM_WATCH_S
            is_standing = self._look_after(slots)
            self._reconcile()
        except PenstockError as exc:
            log.warning("Node could not look after its slots: %s", exc, extra={"action": "watch"})
            self._children.forget_silence()
            is_standing = False  # it waits for the broker, as it should
        except Exception:
            # The timer must go on.
            log.exception("Node could not look after its slots", extra={"action": "watch"})
        if is_standing:
            self._intake.free(self._hand_back)

    def _reconcile(self) -> None:
        if self._reconciler is None:  # a store that is away does not keep a node from starting
            url = self._settings.store_url or broker_url(self._settings)
            store = open_store(url, redis_limit_bytes=self._settings.redis_store_limit_bytes)
            office = Office(self._ledger, store, self._app)
            self._reconciler = Reconciler(office, who=self._node, every_s=self._settings.reconcile_s)
        self._reconciler.look()

    def _look_after(self, slots: list[SlotStatus]) -> bool:
        """Do what the slots need. Returns whether the node stands still."""
        self._children.look()
        for slot in slots:
            if slot.state == "failed":
                log.error("Node ends, its slot %s failed: %s", slot.slot, slot.error, extra={"action": "end"})
                worker_state.should_stop = EXIT_SLOT_FAILED if self._intake.is_open else EXIT_NOT_STARTED
                return False
        self._children.end_silent(slots)
        for slot, ending in self._children.deaths(slots):
            if self._is_ending:  # this node kills them itself, and hands their chunks back
                return False
            log.warning("Slot %s died: %s", slot.slot, ending.why, extra={"action": "bury"})
            self._bury(slot, ending)
            self._children.forget(slot.pid)
        self._idleness.see(slots)
        alive = self._children.alive
        self._intake.adjust([slot for slot in slots if slot.pid in alive])
        return self._intake.is_standing(self._ledger.waiting_tickets(self._queue))

    def _bury(self, slot: SlotStatus, ending: Ending) -> None:
        """Free what a dead slot held, so that nobody waits for its lease to lapse."""
        freed = self._ledger.bury(slot, ending)
        if freed:
            delivery.publish(self._app, *freed)

    def _hand_back(self) -> None:
        """End the slots; their chunks are not to blame."""
        self._is_ending = True
        self._children.kill()
        self._free_all()

    def _free_all(self, **_: Any) -> None:
        """Free what slots hold that ended with this node. Those that ended in peace have struck themselves off."""
        if self._reconciler is not None:
            self._reconciler.stop()
        with suppress(PenstockError):
            for slot in self._ledger.workforce.named(self._names):
                self._bury(slot, FORGIVEN)
            self._ledger.workforce.forget_drained(self._node)
