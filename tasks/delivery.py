"""How Celery carries tickets: the settings of both roles, and publishing.

Celery over Redis is no at-least-once queue, so it is not asked to be one: tickets are acknowledged before they run,
nothing is prefetched, and what gets lost is issued again from the ledger. Each setting says what it prevents.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from tasks import broker
from tasks.errors import BrokerUnavailable
from tasks.messages import VERSION, JobSpec, Ticket
from tasks.screening import SIGNATURE
from tasks.signing import Signer

log = logging.getLogger(__name__)

#: Where a node listens that serves no model: nobody sends there.
NO_QUEUE = "penstock.none"

_SHARED: dict[str, Any] = {
    # Only JSON is read: a pickle in the queue would run code.
    "accept_content": ["json"],
    "task_serializer": "json",
    "event_serializer": "json",
    # Results live in the store and the ledger; a result backend would cost a SUBSCRIBE a ticket.
    "result_backend": None,
    "task_ignore_result": True,
    # Without timeouts a half-open connection hangs for good; health checks find one that is idle.
    "broker_transport_options": {
        "socket_timeout": broker.SOCKET_TIMEOUT_S,
        "socket_connect_timeout": broker.CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": broker.HEALTH_CHECK_S,
    },
    "redis_socket_timeout": broker.SOCKET_TIMEOUT_S,
    "task_default_queue": NO_QUEUE,
    "task_create_missing_queues": True,
    # Flower shows a ticket from its publication on.
    "task_send_sent_event": True,
    "enable_utc": True,
}

_SUBMIT: dict[str, Any] = {
    # A client that cannot publish says so; the ledger issues the ticket again later.
    "task_publish_retry_policy": {
        "max_retries": 3,
        "interval_start": 0.1,
        "interval_step": 0.5,
        "interval_max": 2,
    },
}

_CONSUME: dict[str, Any] = {
    # Late acknowledgement over Redis runs long tasks twice and reloads models on a broker blip.
    "task_acks_late": False,
    # A node takes a ticket when a slot is free, not before: others may be idle.
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    # A fork would carry CUDA state and threads over.
    "worker_pool_start_method": "spawn",
    # A replacement child that loads a large model was killed after 4 s, again and again.
    "worker_proc_alive_timeout": 900,
    # A task of a slot that died held its place for 10 s, in case a result were still to come; results go elsewhere.
    "worker_lost_wait": 0.1,
    # A lost broker connection must not end the children: their models would be loaded again.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # A broker without room answers with an error; Celery would end the node, and with it its models.
    "broker_channel_error_retry": True,
    # Flower and `penstock workers` see what runs.
    "worker_send_task_events": True,
    "task_track_started": True,
    # Our own logging; a library's print to stdout does not become a log line.
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


def make_app(broker_url: str | Callable[[], str], signer: Signer | None = None) -> Celery:
    """Return a Celery application with a client's delivery settings; a node adds ``consume_settings``.

    Args:
        broker_url: the broker, or a function that finds it when it is first needed.
        signer: signs its tickets.
    """

    def settings() -> dict[str, Any]:
        url = broker_url() if callable(broker_url) else broker_url
        return {**_SHARED, **_SUBMIT, "broker_url": broker.celery_url(url)}

    app = Celery("penstock", set_as_current=False)
    app.add_defaults(settings)
    app.signer = signer or Signer()
    return app


def consume_settings() -> dict[str, Any]:
    """Return the whole settings of a node but for its broker.

    Whole, because a spawned child gets a copy of the application that holds only what was set on it.
    """
    return {**_SHARED, **_CONSUME}


def publish(app: Celery, spec: JobSpec, chunks: Sequence[int]) -> None:
    """Publish tickets for chunks that the ledger released.

    Raises:
        BrokerUnavailable: the broker took none, some or all of them; the ledger will issue the missing ones again.
    """
    if not chunks:
        return
    try:
        with app.producer_or_acquire() as producer:
            for chunk in chunks:
                app.send_task(
                    f"penstock.{spec.operation}",
                    # All by position: a name would take its place in the body, and an own `argsrepr` in the headers
                    # and again in the properties. A ticket is to stay under 1 kB.
                    args=(spec.job, chunk, VERSION),
                    queue=spec.queue,
                    task_id=f"{spec.job}:{chunk}",
                    root_id=spec.job,
                    headers=_signed(app, spec.job, chunk),
                    reply_to="nobody",  # instead of a UUID
                    producer=producer,
                )
    except (OSError, OperationalError, redis.RedisError) as exc:
        raise BrokerUnavailable(f"Tickets of job {spec.job} could not be published: {exc}") from exc


def _signed(app: Celery, job: str, chunk: int) -> dict[str, str]:
    signature = app.signer.sign_ticket(Ticket(version=VERSION, job=job, chunk=chunk))
    return {SIGNATURE: signature} if signature else {}


def publish_or_leave(app: Celery, spec: JobSpec, chunks: Sequence[int]) -> None:
    """Publish tickets; a fault is logged and left to the reconciler, which issues them again."""
    try:
        publish(app, spec, chunks)
    except BrokerUnavailable as exc:
        log.warning("Tickets not published: %s", exc, extra={"action": "publish", "job": spec.job})
