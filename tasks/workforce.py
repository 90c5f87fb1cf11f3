"""Who works: the slots that report to the ledger, and what each one does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tasks import keys

if TYPE_CHECKING:
    from tasks.ledger import Ledger

#: Seconds after which a slot that says nothing is forgotten.
FORGET_S = 60
#: Devices of a slot that are told of at most, and characters of a device's name: the ledger is no place for more.
MOST_DEVICES = 64
MOST_CHARS = 64


@dataclass(frozen=True)
class DeviceUse:
    """How full a device of a slot is.

    Attributes:
        device: its name.
        used_bytes: of a GPU all that is in use; of the host's memory what the slot's own process there has.
        total_bytes: of the device, or that the slot's control group may have of the host's memory.
    """

    device: str
    used_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """The part that is in use."""
        return self.used_bytes / self.total_bytes if self.total_bytes > 0 else 0.0


@dataclass(frozen=True)
class SlotStatus:
    """One slot: a process with one engine.

    Attributes:
        slot: its name, ``NODE/INDEX``.
        node: the Celery worker that it belongs to.
        pid: its process on ``host``.
        device: ``cpu``, ``cuda:0``, ...
        model: the model as people write it; ``queue`` is what it consumes.
        state: loading, ready, drained (ready, but its node takes no more tickets) or failed.
        error: why it failed, or what it cannot reach at present.
        claim: ``JOB CHUNK TOKEN`` of the lease that it holds, or empty.
        chunks: chunks done since its start; ``tokens`` likewise.
        tokens_per_s: of the last chunk.
        model_s: seconds that its model worked since its start; ``idle_s`` those that it did not, within jobs.
        memory: how full its devices are; empty if nobody tells. Of a slot in several processes an entry each.
        seen_s: seconds since it last reported.
    """

    slot: str
    node: str
    host: str
    pid: int
    device: str
    model: str
    queue: str
    store_id: str
    state: str
    error: str = ""
    claim: str = ""
    chunks: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    model_s: float = 0.0
    idle_s: float = 0.0
    memory: tuple[DeviceUse, ...] = ()
    seen_s: float = 0.0

    @property
    def balance(self) -> float | None:
        """The share in use of the emptiest device by that of the fullest, 1 being even; None of fewer than two."""
        shares = [one.share for one in self.memory]
        return min(shares) / max(shares) if len(shares) > 1 and max(shares) else None


class Workforce:
    """The slots of one broker."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def report(self, status: SlotStatus) -> None:
        """Write what a slot is and does."""
        fields: dict[Any, Any] = {name: str(value) for name, value in asdict(status).items() if name != "seen_s"}
        fields["memory"] = _written(status.memory)
        with self._ledger.reaching():
            now_ms = self._now_ms()
            with self._ledger.redis.pipeline(transaction=False) as pipe:
                pipe.hset(keys.slot(status.slot), mapping=fields)
                pipe.expire(keys.slot(status.slot), FORGET_S)
                pipe.zadd(keys.SLOTS, {status.slot: now_ms})
                pipe.zremrangebyscore(keys.SLOTS, "-inf", now_ms - FORGET_S * 1000)
                pipe.execute()

    def forget(self, slot: str) -> None:
        """Strike a slot off: it ended."""
        with self._ledger.reaching(), self._ledger.redis.pipeline() as pipe:
            pipe.delete(keys.slot(slot))
            pipe.zrem(keys.SLOTS, slot)
            pipe.execute()

    def drain(self, node: str) -> None:
        """Ask a node to take no more tickets. It stays so until it ends."""
        with self._ledger.reaching():
            self._ledger.redis.sadd(keys.DRAINED, node)

    def forget_drained(self, node: str) -> None:
        """Strike off a node that ended."""
        with self._ledger.reaching():
            self._ledger.redis.srem(keys.DRAINED, node)

    def slots(self, *, queue: str = "") -> list[SlotStatus]:
        """Return the slots that reported lately, of one queue if named."""
        with self._ledger.reaching():
            names = cast("list[str]", self._ledger.redis.zrange(keys.SLOTS, 0, -1))
        return [slot for slot in self.named(names) if not queue or slot.queue == queue]

    def named(self, names: Sequence[str]) -> list[SlotStatus]:
        """Return those of the named slots that reported lately."""
        if not names:
            return []
        with self._ledger.reaching():
            now_ms = self._now_ms()
            with self._ledger.redis.pipeline(transaction=False) as pipe:
                pipe.zmscore(keys.SLOTS, list(names))
                pipe.smembers(keys.DRAINED)
                for name in names:
                    pipe.hgetall(keys.slot(name))
                seen, drained, *hashes = pipe.execute()
        found = [
            _slot_status(fields, max(0.0, now_ms - (at_ms or 0)) / 1000)
            for at_ms, fields in zip(seen, hashes, strict=True)
            if fields
        ]
        return [
            replace(slot, state="drained") if slot.node in drained and slot.state == "ready" else slot for slot in found
        ]

    def _now_ms(self) -> int:
        seconds, microseconds = self._ledger.redis.time()
        return seconds * 1000 + microseconds // 1000


def _written(memory: Sequence[DeviceUse]) -> str:
    """Write how full devices are as JSON: a list of name, used and total bytes for each."""
    return json.dumps([(one.device[:MOST_CHARS], one.used_bytes, one.total_bytes) for one in memory[:MOST_DEVICES]])


def _read(memory: str | None) -> tuple[DeviceUse, ...]:
    """Read what ``_written`` wrote; a node of an earlier release wrote nothing, and one of a later may otherwise."""
    try:
        return tuple(DeviceUse(str(name), int(used), int(total)) for name, used, total in json.loads(memory or "[]"))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return ()


def _slot_status(fields: dict[str, str], seen_s: float) -> SlotStatus:
    return SlotStatus(
        slot=fields["slot"],
        node=fields["node"],
        host=fields["host"],
        pid=int(fields["pid"]),
        device=fields["device"],
        model=fields["model"],
        queue=fields["queue"],
        store_id=fields["store_id"],
        state=fields["state"],
        error=fields["error"],
        claim=fields["claim"],
        chunks=int(fields["chunks"]),
        tokens=int(fields["tokens"]),
        tokens_per_s=float(fields["tokens_per_s"]),
        model_s=float(fields.get("model_s", 0)),  # a node of an earlier release reports neither
        idle_s=float(fields.get("idle_s", 0)),
        memory=_read(fields.get("memory")),
        seen_s=seen_s,
    )
