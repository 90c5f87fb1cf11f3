"""Kombu's way to Redis, with a look at each message of a queue before Celery sees it.

Kombu ends a node on a message that is no JSON, and Celery deletes tasks and content that it does not know. Here such a
message is parked instead, and nothing arrives.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import redis
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis

from tasks.errors import Transient
from tasks.ledger import Ledger
from tasks.parking import park
from tasks.screening import Unfit, screen
from tasks.signing import Signer

log = logging.getLogger(__name__)

#: The queues with tickets; Celery has others of its own, for its remote control.
PREFIX = b"penstock."


class Door:
    """What comes out of the queues of one node: its tickets, written anew. The rest is parked."""

    def __init__(self, node: str, ledger: Ledger, signer: Signer) -> None:
        self._node = node
        self._ledger = ledger
        self._signer = signer

    def admit(self, queue: bytes, raw: bytes) -> bytes | None:
        """Return the ticket of a message, or None if there is none."""
        try:
            return screen(raw, self._signer)
        except Unfit as exc:
            name = queue.split(kombu_redis.Channel.sep.encode(), 1)[0].decode(errors="replace")
            where = {"queue": name, "bytes": len(raw)}
            log.warning("Message parked: %s", exc, extra={"action": "park", **where})
            self._park(name, raw, str(exc))
            return None

    def _park(self, queue: str, raw: bytes, why: str) -> None:
        try:
            park(self._ledger, self._node, queue, raw, why)
        except Transient as exc:  # the broker is full: the ledger issues again what was a ticket
            log.warning("Message not parked, it is gone: %s", exc, extra={"action": "park"})


class Client(redis.Redis):
    """A client whose blocking pops bring tickets only. Nothing came, if it was something else."""

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Read an answer, and look at it if it is a message."""
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        door = Transport.door
        if door is None or command_name != "BRPOP" or not answer or not answer[0].startswith(PREFIX):
            return answer
        message = door.admit(*answer)
        return None if message is None else (answer[0], message)


class Takings(virtual.QoS):
    """The messages that a node has taken, which the broker is not told.

    Kombu notes them there, and gives back what was noted long ago. The ledger does that here, by the broker's clock. A
    broker without room could not take the note, and would end the node; and it saves two requests a ticket.
    """

    restore_at_shutdown = False

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:  # noqa: ARG002 - kombu's signature
        """Drop a message; the ledger issues its ticket again."""
        self.ack(delivery_tag)  # type: ignore[no-untyped-call]

    def restore_visible(self, **_: Any) -> None:
        """Give nothing back; kombu's loop asks for it."""


class Channel(kombu_redis.Channel):
    """A channel with such a client. Kombu makes a new one for each message that it sends, a quarter of the cost."""

    QoS = Takings  # type: ignore[assignment]  # kombu asks for nothing else
    _kept: redis.Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> redis.Redis:
        kept = self._kept
        if asynchronous or kept is None or kept.connection_pool is not self.pool:
            kept = super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        if not asynchronous:
            self._kept = kept
        return kept

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # type: ignore[no-untyped-call]  # checks the version of redis-py
        return Client


class Transport(kombu_redis.Transport):
    """The transport of a node."""

    Channel = Channel
    door: ClassVar[Door | None] = None


def keep_door(door: Door) -> None:
    """Let this process take tickets through a door."""
    Transport.door = door


# Before the first connection is made, as kombu remembers what an alias led to.
for _scheme in ("redis", "rediss"):
    TRANSPORT_ALIASES[_scheme] = f"{__name__}:Transport"
