"""The Celery application: ``celery -A tasks.app worker -I workers.boot``, ``flower``, ``inspect``.

A node that was started without an engine (no ``-I workers.boot``) refuses to consume, with a line that says so.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery.signals import celeryd_init, worker_init
from celery.worker.control import Panel
from pydantic import ValidationError

from tasks import broker, delivery, transport
from tasks.broker import DEFAULT_BROKER_URL
from tasks.chunk import run_chunk
from tasks.endings import EXIT_ENGINE_BROKEN
from tasks.errors import EngineBroken, Transient
from tasks.ledger import Ledger
from tasks.messages import Ticket
from tasks.options import explain
from tasks.settings import Settings
from tasks.signing import Signer
from tasks.slot import Slot

log = logging.getLogger(__name__)

#: What a node does when it is asked over the broker: it says what it is and does. It takes no orders there, so whoever
#: may watch cannot stop it, end its tasks, or have it write files.
ANSWERED = {
    *("ping", "stats", "conf", "registered", "active_queues", "clock", "heartbeat", "enable_events", "disable_events"),
    *("active", "reserved", "scheduled", "revoked", "query_task"),
    *("dump_active", "dump_reserved", "dump_schedule", "dump_revoked", "dump_conf", "dump_tasks"),
}

app = delivery.make_app(lambda: Settings.load().broker_url or DEFAULT_BROKER_URL)


class _Installed:
    """What workers.boot puts into this process: whether it can make an engine, and the slot once it is ready."""

    has_engine = False
    slot: Slot | None = None


installed = _Installed()


@celeryd_init.connect
def _use_consumer_settings(conf: Any, **_: Any) -> None:
    conf.update(delivery.consume_settings())


@worker_init.connect
def _prepare_node(sender: Any, **_: Any) -> None:
    if not installed.has_engine:
        sys.exit(
            "This node has no engine and would swallow tickets: start it with `penstock worker --model MODEL`, or "
            "add `-I workers.boot` and set PENSTOCK_MODEL."
        )
    # A prefork parent takes tickets while its slots still load, so it begins with no queue at all.
    app.amqp.queues.select([])
    settings = Settings.load()
    url = settings.broker_url or DEFAULT_BROKER_URL
    signer = Signer.read(settings.signing_key_file)
    transport.keep_door(transport.Door(sender.hostname, Ledger(broker.connect(url), url), signer))
    for name in set(Panel.data) - ANSWERED:
        del Panel.data[name]


@app.task(name="penstock.encode")
def encode(job: str, chunk: int, version: int = 0) -> str:
    """Work on one chunk of an encode job, if the ledger says that there is need."""
    return _work({"job": job, "chunk": chunk, "version": version})


@app.task(name="penstock.score")
def score(job: str, chunk: int, version: int = 0) -> str:
    """Work on one chunk of a scoring job, if the ledger says that there is need."""
    return _work({"job": job, "chunk": chunk, "version": version})


def _work(arguments: dict[str, Any]) -> str:
    try:
        ticket = Ticket.model_validate(arguments)
    except ValidationError as exc:
        log.error("Ticket refused: %s", explain(exc), extra={"action": "refuse"})  # noqa: TRY400 - one line
        return f"refused: {explain(exc)}"
    if installed.slot is None:
        return "void: the slot is not ready"
    try:
        return run_chunk(installed.slot, ticket)
    except EngineBroken as exc:
        log.error("Slot ends: %s", exc, extra={"action": "end"})  # noqa: TRY400 - the reason is known
        os._exit(EXIT_ENGINE_BROKEN)  # the node replaces this process, and with it the engine
    except Transient as exc:  # the chunk's lease lapses, or was never taken; its ticket comes again
        log.warning("Ticket left to the ledger: %s", exc, extra={"action": "leave"})
        return "left: broker or store away"
