"""What runs inside a node: ``celery -A tasks.app worker -I workers.boot``.

In each child (slot): one engine, loaded and warmed up once, reported to the ledger. What the parent (node) does is
workers/node.py's.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import billiard
from celery.signals import setup_logging, worker_init, worker_process_init, worker_process_shutdown

from tasks import app as celery_app
from tasks import broker, delivery, lifeline
from tasks.endings import EXIT_NOT_STARTED, EXIT_SLOT_FAILED
from tasks.errors import PenstockError, Transient
from tasks.ledger import Ledger
from tasks.lifeline import LIFELINE_VARIABLE
from tasks.limits import TimeLimits
from tasks.logs import log_to_stderr
from tasks.operations import OPERATIONS
from tasks.options import OPTIONS
from tasks.pulse import Pulse
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.signing import Signer
from tasks.slot import Slot
from tasks.store import open_store, store_id
from tasks.workforce import SlotStatus
from workers.node import Watch
from workers.occupancy import tell_memory
from workers.serving import broker_url, model_spec
from workers.sharding.start import START

log = logging.getLogger(__name__)

#: Seconds that a new slot leaves its node to bury the one before it; its lease lapses otherwise.
BURIAL_S = 5.0

#: Seconds before a slot ends that could not report itself, so that its node does not start new ones without pause.
MUTE_S = 5.0

#: What is encoded to know a first pace: some 50 tokens a row, and enough rows to count.
FIRST_TEXT = "It rained for a week, and the river rose above the road to the mill. " * 3
FIRST_ROWS = 10

celery_app.installed.has_engine = True


@setup_logging.connect
def use_our_logs(**_: Any) -> None:
    """Keep Celery from setting its own handlers."""
    log_to_stderr(Settings.load().log_format)
    # A traceback of the pool's for each slot that dies; the node says in one line what happened.
    logging.getLogger("celery.worker.request").setLevel(logging.CRITICAL)


@worker_process_init.connect
def start_slot(sender: str | None = None, **_: Any) -> None:
    """Load the engine of this child. If that fails, say so and wait for the node to end it.

    A child that died here would be replaced at once and fail again, for ever.
    """
    lifeline.hang_on_parent(int(os.environ[lifeline.PARENT_VARIABLE]))
    try:
        settings = Settings.load()
        log_to_stderr(settings.log_format)
        pulse = _begin_pulse(settings, sender or "node")
    except Exception:
        # A process boundary, and nobody whom the slot could tell: a new process tries again.
        log.exception("Slot could not report itself", extra={"action": "start"})
        time.sleep(MUTE_S)
        os._exit(EXIT_SLOT_FAILED)
    try:
        celery_app.installed.slot = _load(settings, pulse)
    except Exception as exc:
        # A process boundary. An error of penstock's own says all in its line.
        trace = None if isinstance(exc, PenstockError) else exc
        log.error("Slot failed to start: %s", exc, exc_info=trace, extra={"action": "start"})  # noqa: TRY400
        _report_failure(pulse, str(exc) or repr(exc))


def _report_failure(pulse: Pulse, error: str) -> None:
    pulse.change(state="failed", error=error)
    pulse.report()


def _end_failed(pulse: Pulse, error: str) -> None:
    """Report a start that failed while the main thread hangs, where no signal of the node's reaches it."""
    _report_failure(pulse, error)
    time.sleep(MUTE_S)  # the node sees the report, and begins no new slot
    os._exit(EXIT_NOT_STARTED)


def _begin_pulse(settings: Settings, node: str) -> Pulse:
    """Tell the ledger that this slot is there."""
    spec = model_spec(settings)
    url = broker_url(settings)
    ledger = Ledger(broker.connect(url), url, Signer.read(settings.signing_key_file))
    status = SlotStatus(
        slot=f"{node}/{billiard.current_process().index}",
        node=node,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=os.environ.get("PENSTOCK_SHOWN_DEVICE", "cpu"),
        model=str(spec),
        queue=spec.queue(settings.operation),
        store_id="",
        state="loading",
    )
    _wait_for_burial(ledger, status)
    pulse = Pulse(ledger, settings, status)
    pulse.start()
    return pulse


def _wait_for_burial(ledger: Ledger, status: SlotStatus) -> None:
    """Let the node free what the last process of this name held, before its status is overwritten."""
    deadline = time.monotonic() + BURIAL_S
    while retry_transient(lambda: ledger.workforce.named([status.slot]), for_s=math.inf):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


@worker_process_shutdown.connect
def end_slot(**_: Any) -> None:
    """Strike this slot off the ledger: it ends because it was told to."""
    slot = celery_app.installed.slot
    if slot is not None:
        slot.pulse.stop()
        with suppress(Transient):
            slot.ledger.workforce.forget(slot.status.slot)


def _load(settings: Settings, pulse: Pulse) -> Slot:
    spec, url, ledger = model_spec(settings), broker_url(settings), pulse.ledger
    store = open_store(settings.store_url or url, redis_limit_bytes=settings.redis_store_limit_bytes)
    pulse.change(store_id=retry_transient(lambda: store_id(store), for_s=math.inf))
    device = "cpu" if pulse.status.device.startswith("cpu") else "cuda"
    # Last, because it takes longest; imported here, because the parent must not import torch.
    from workers.engines import load_engine, loads

    START.on_failure = lambda error: _end_failed(pulse, error)
    engine = load_engine(spec, device, settings)
    limits = _measure_pace(engine, settings)
    START.is_over = True
    engine = _wrap(engine, settings)
    pulse.change(state="ready")
    pulse.report()
    tell_memory(pulse)
    log.info("Slot %s ready: %s", pulse.status.slot, spec, extra={"action": "ready"})
    app = delivery.make_app(url, ledger.signer)
    return Slot(settings, ledger, store, app, engine, pulse, limits, loads)


def _measure_pace(engine: Any, settings: Settings) -> TimeLimits:
    """Return the time limits of a slot, which know a first pace if the engine serves jobs without options."""
    limits = TimeLimits(settings.stall_s)
    work, options = OPERATIONS[settings.operation], OPTIONS[settings.operation]()
    rows = [work.row_of(FIRST_TEXT)] * FIRST_ROWS
    if engine.check(options) is None:
        with limits.rows(work.size(rows)):
            work.run(engine, rows, options, limits.batch)
    limits.start()
    return limits


def _wrap(engine: Any, settings: Settings) -> Any:
    """Put before an encoder what the settings ask for."""
    from workers.caching import wrap

    return wrap(engine, settings) if settings.operation == "encode" else engine


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
