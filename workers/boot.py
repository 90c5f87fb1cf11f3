"""What runs inside a node: ``celery -A tasks.app worker -I workers.boot``.

In each child (slot): one engine, loaded and warmed up once, reported to the ledger. In the parent (node), which never
imports torch: the model's queue once a slot is ready, the leases of children that died, the reconciler.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any

import billiard
from celery import bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import setup_logging, worker_init, worker_process_init, worker_process_shutdown
from celery.worker import state as worker_state

from tasks import app as celery_app
from tasks import broker, delivery, lifeline
from tasks.errors import PenstockError, Transient, UsageError
from tasks.ledger import Ledger
from tasks.lifeline import LIFELINE_VARIABLE
from tasks.logs import log_to_stderr
from tasks.messages import ModelSpec
from tasks.pulse import Pulse
from tasks.reconciler import reconcile
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.slot import Slot
from tasks.store import open_store, store_id
from tasks.workforce import SlotStatus
from workers.batching import default_batch_tokens

log = logging.getLogger(__name__)

#: Exit status of a node whose slots cannot start.
EXIT_FAILED = 1
#: Seconds between two looks of a node at its slots.
WATCH_S = 0.25

#: The same once all of them are ready.
CALM_WATCH_S = 1.0

celery_app.installed.has_engine = True

# Celery announces at each lost connection what it might do in version 6; our setting is explicit.
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


@setup_logging.connect
def use_our_logs(**_: Any) -> None:
    """Keep Celery from setting its own handlers."""
    log_to_stderr(Settings.load().log_format)


def model_spec(settings: Settings) -> ModelSpec:
    """Return the model of this node.

    Raises:
        UsageError: none is set.
    """
    if settings.model is None:
        raise UsageError("This node has no model: use `penstock worker --model MODEL` or set PENSTOCK_MODEL.")
    return ModelSpec.parse(settings.model)


def broker_url(settings: Settings) -> str:
    """Return the broker of this node."""
    return settings.broker_url or celery_app.DEFAULT_BROKER_URL


@worker_process_init.connect
def start_slot(sender: str | None = None, **_: Any) -> None:
    """Load the engine of this child. If that fails, say so and wait for the node to end it.

    A child that died here would be replaced at once and fail again, for ever.
    """
    settings = Settings.load()
    log_to_stderr(settings.log_format)
    lifeline.hang_on_parent(int(os.environ[lifeline.PARENT_VARIABLE]))
    spec = model_spec(settings)
    url = broker_url(settings)
    ledger = Ledger(broker.connect(url), url)
    retry_transient(ledger.ping, for_s=math.inf)
    node = sender or "node"
    status = SlotStatus(
        slot=f"{node}/{billiard.current_process().index}",
        node=node,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=os.environ.get("PENSTOCK_SHOWN_DEVICE", "cpu"),
        model=str(spec),
        queue=spec.queue("encode"),
        store_id="",
        state="loading",
    )
    pulse = Pulse(ledger, settings, status)
    pulse.start()
    try:
        celery_app.installed.slot = _load(settings, spec, ledger, pulse)
    except Exception as exc:  # noqa: BLE001 - a process boundary
        if not isinstance(exc, PenstockError):
            traceback.print_exc()
        log.error("Slot failed to start: %s", exc, extra={"action": "start"})  # noqa: TRY400 - shown above
        pulse.change(state="failed", error=str(exc) or repr(exc))
        pulse.report()


@worker_process_shutdown.connect
def end_slot(**_: Any) -> None:
    """Strike this slot off the ledger: it ends because it was told to."""
    slot = celery_app.installed.slot
    if slot is not None:
        slot.pulse.stop()
        with suppress(Transient):
            slot.ledger.workforce.forget(slot.status.slot)


def _load(settings: Settings, spec: ModelSpec, ledger: Ledger, pulse: Pulse) -> Slot:
    url = broker_url(settings)
    store = open_store(settings.store_url or url, redis_limit_bytes=settings.redis_store_limit_bytes)
    pulse.change(store_id=store_id(store))
    device = "cpu" if pulse.status.device == "cpu" else "cuda"
    budget = settings.max_batch_tokens or default_batch_tokens(device)
    # Last, because it takes longest; imported here, because the parent must not import torch.
    from workers.engines import load_encoder

    encoder = load_encoder(spec, device, budget)
    pulse.change(state="ready")
    pulse.report()
    log.info("Slot %s ready: %s", pulse.status.slot, spec, extra={"action": "ready"})
    return Slot(settings, ledger, store, delivery.make_app(url), encoder, pulse)


class Watch(bootsteps.StartStopStep):  # type: ignore[misc]
    """The node's part: opens the queue when a slot is ready, frees the leases of dead children, reconciles."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._settings = Settings.load()
        self._queue = model_spec(self._settings).queue("encode")
        url = broker_url(self._settings)
        self._ledger = Ledger(broker.connect(url), url)
        self._app = delivery.make_app(url)
        self._timer: Any = None
        self._look_at = 0.0

    def start(self, consumer: Any) -> None:
        """Begin to look, in the node's own loop."""
        self._timer = consumer.timer.call_repeatedly(WATCH_S, self._look, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, consumer: Any) -> None:
        if time.monotonic() < self._look_at:
            return
        try:
            names = [f"{consumer.hostname}/{index}" for index in range(consumer.pool.num_processes)]
            slots = self._ledger.workforce.named(names)
            self._open_queue(consumer, slots)
            if len(slots) == len(names) and all(slot.state == "ready" for slot in slots):
                self._look_at = time.monotonic() + CALM_WATCH_S
            self._bury(consumer, slots)
            every_s = self._settings.reconcile_s
            reconcile(self._ledger, self._app, who=consumer.hostname, every_s=every_s)
        except Exception as exc:  # noqa: BLE001 - the timer must go on
            log.warning("Node could not look after its slots: %s", exc, extra={"action": "watch"})

    def _open_queue(self, consumer: Any, slots: list[SlotStatus]) -> None:
        for slot in slots:
            if slot.state == "failed":
                log.error("Node ends, its slot %s failed: %s", slot.slot, slot.error, extra={"action": "end"})
                worker_state.should_stop = EXIT_FAILED
                return
        if any(slot.state == "ready" for slot in slots):
            consumer.add_task_queue(self._queue)

    def _bury(self, consumer: Any, slots: list[SlotStatus]) -> None:
        """Free what a dead child held, so that nobody waits for its lease to lapse."""
        alive = set(consumer.pool.info.get("processes", ()))
        for slot in slots:
            if slot.pid in alive or slot.state == "failed":
                continue
            log.warning("Slot %s died (pid %d)", slot.slot, slot.pid, extra={"action": "bury"})
            freed = self._ledger.bury(slot, blame="its process ended")
            if freed:
                delivery.publish(self._app, *freed)


celery_app.app.steps["consumer"].add(Watch)


@worker_init.connect
def begin_node(**_: Any) -> None:
    """Refuse to start without a usable model setting; end with whoever started this node, if that one asks for it."""
    try:
        model_spec(Settings.load())
    except PenstockError as exc:
        sys.exit(f"penstock worker: {exc}")
    os.environ[lifeline.PARENT_VARIABLE] = str(os.getpid())
    if os.environ.get(LIFELINE_VARIABLE):
        lifeline.hang_on_stdin(lambda: os.kill(os.getpid(), signal.SIGKILL))
