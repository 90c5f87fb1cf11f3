"""Messages that no node could read: kept for a person instead of deleted, as many as there is room for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, cast

from pydantic import Field, ValidationError

from tasks import keys
from tasks.ledger import Ledger
from tasks.options import Message

#: How many are kept, the latest ones: the ledger issues again what was a ticket.
MOST_PARKED = 500
#: Bytes of one that are kept; no ticket has more.
MOST_BYTES = 4096
#: Where one may be put back.
QUEUE_PATTERN = r"^penstock(\.[a-z0-9]+)+$"


class Parked(Message):
    """A message that was taken out of a queue and not read.

    Attributes:
        queue: where it lay.
        why: what is wrong with it.
        node: who took it out.
        at_ms: when, by the broker's time.
        size_bytes: its length.
        message: its beginning, a character a byte (Latin-1).
    """

    queue: Annotated[str, Field(pattern=QUEUE_PATTERN)]
    why: str
    node: str
    at_ms: int
    size_bytes: int
    message: str

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here, so that it can be put back."""
        return len(_encode(self.message)) == self.size_bytes


def park(ledger: Ledger, node: str, queue: str, raw: bytes, why: str) -> None:
    """Keep a message."""
    text = raw[:MOST_BYTES].decode("latin-1")
    parked = {"queue": queue, "why": why, "node": node, "at_ms": ledger.now_ms(), "size_bytes": len(raw)}
    with ledger.reaching(), ledger.redis.pipeline() as pipe:
        pipe.lpush(keys.PARKED, json.dumps({**parked, "message": text}))
        pipe.ltrim(keys.PARKED, 0, MOST_PARKED - 1)
        pipe.execute()


def parked(ledger: Ledger) -> list[Parked]:
    """Return the messages that are kept, the latest first."""
    with ledger.reaching():
        notes = cast("list[str]", ledger.redis.lrange(keys.PARKED, 0, -1))
    return [_read(note) for note in notes]


def reasons(ledger: Ledger) -> Counter[str]:
    """Return how many are kept for which reason."""
    return Counter(message.why for message in parked(ledger))


def empty(ledger: Ledger, *, requeue: bool) -> tuple[int, int]:
    """Take all of them off, and put those back into their queues that are whole, if asked to.

    Whoever dies in between loses one, which the ledger issues again if it was a ticket. Returns how many went back,
    and how many are gone.
    """
    n_back = n_gone = 0
    with ledger.reaching():
        for _ in range(ledger.redis.llen(keys.PARKED)):  # not until it is empty: an old node may park them again
            note = cast("str | None", ledger.redis.rpop(keys.PARKED))
            if note is None:
                break
            message = _read(note)
            is_back = requeue and message.is_whole
            if is_back:
                ledger.redis.lpush(message.queue, _encode(message.message))
            n_back, n_gone = n_back + is_back, n_gone + (not is_back)
    return n_back, n_gone


def _read(note: str) -> Parked:
    try:
        return Parked.model_validate_json(note)
    except ValidationError:
        return Parked(queue="penstock.none", why="no note of a node", node="", at_ms=0, size_bytes=-1, message="")


def _encode(text: str) -> bytes:
    return text.encode("latin-1", "replace")
