"""Every choice of numbers and shards for a model on some devices: what fits, and which to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.sizing.blueprint import Blueprint
from workers.sizing.numbers import Numbers
from workers.sizing.rooms import Room
from workers.sizing.sharing import SHARDS, Share, shares, why_not

#: Shard choices in the order in which they are suggested: without any, each device has a slot of its own, and all
#: compute at once; of tensor's all compute, too; of auto's one at a time; fsdp sends the weights around for each batch.
PREFERRED = ("none", "tensor", "auto", "fsdp")
#: Share of what a device has for weights and batches that batches should have: with less they are so small that the
#: device computes slowly. A rule of thumb, not measured.
ROOMY_SHARE = 0.1


@dataclass(frozen=True)
class Choice:
    """One way to keep a model on the devices.

    Attributes:
        numbers: that the weights are kept in.
        shard: one of SHARDS.
        rooms: the devices.
        shares: what each holds; empty if this is no way.
        reason: why it is none.
    """

    numbers: Numbers
    shard: str
    rooms: tuple[Room, ...]
    shares: tuple[Share, ...] = ()
    reason: str = ""

    @property
    def left_bytes(self) -> list[int]:
        """What each device has left for batches; less than nothing if the weights do not fit."""
        return [share.left_bytes(room.spare_bytes) for room, share in self._held]

    @property
    def fitting(self) -> list[Room]:
        """The devices to name: those that it fits on, or all, if it needs all."""
        fits = [room for room, share in self._held if not share.lacking_bytes(room.spare_bytes)]
        return fits if self.shard == "none" or len(fits) == len(self.rooms) else []

    @property
    def least_left_bytes(self) -> int:
        """What the device has left for batches that has least, of those to name."""
        return min(left for left, room in zip(self.left_bytes, self.rooms, strict=True) if room in self.fitting)

    @property
    def is_roomy(self) -> bool:
        """Whether batches have a fair share of each device to name."""
        return self.least_left_bytes >= ROOMY_SHARE * max(room.spare_bytes for room in self.fitting)

    @property
    def lacking_bytes(self) -> int:
        """What the device lacks that lacks most; or, where one device is enough, the one that lacks least."""
        worst = min if self.shard == "none" else max
        return worst(share.lacking_bytes(room.spare_bytes) for room, share in self._held)

    @property
    def loads_beyond(self) -> bool:
        """Whether it lacks room while it is loaded alone: quantised, it would fit."""
        return not self.fitting and any(left >= 0 for left in self.left_bytes) and self.numbers.quantize is not None

    @property
    def _held(self) -> list[tuple[Room, Share]]:
        return list(zip(self.rooms, self.shares, strict=True)) if self.shares else []


def choices(blueprint: Blueprint, rooms: Sequence[Room]) -> list[Choice]:
    """Return all choices that these devices have: one shares nothing out, and quantised weights are not shared."""
    precisions = ["fp32", "bf16"]
    base = "fp32" if rooms[0].is_cpu else "bf16"
    kinds = [*map(Numbers, precisions), Numbers(base, "int8"), Numbers(base, "int4")]
    return [
        _choice(blueprint, numbers, shard, tuple(rooms))
        for numbers in kinds
        for shard in (SHARDS if len(rooms) > 1 and not numbers.quantize else SHARDS[:1])
    ]


def _choice(blueprint: Blueprint, numbers: Numbers, shard: str, rooms: tuple[Room, ...]) -> Choice:
    if reason := why_not(blueprint, shard, numbers, len(rooms)):
        return Choice(numbers, shard, rooms, reason=reason)
    held = shares(blueprint, shard, numbers, [room.limit_bytes for room in rooms], is_cpu=rooms[0].is_cpu)
    return Choice(numbers, shard, rooms, tuple(held))


def suggest(found: Sequence[Choice]) -> Choice | None:
    """Return the choice to take, or None if nothing fits.

    First come the numbers that a worker takes by itself, then bf16 on a CPU, then quantised weights, which change
    vectors and scores most; of these, what leaves batches a fair share. On a CPU what fits quantised fits otherwise,
    too, as it is loaded so.
    """
    fitting = [choice for choice in found if choice.fitting]
    return min(fitting, key=_rank, default=None)


def nearest(found: Sequence[Choice]) -> Choice | None:
    """Return the choice that lacks least, or None if nothing is possible at all."""
    possible = [choice for choice in found if choice.shares]
    return min(possible, key=lambda choice: choice.lacking_bytes, default=None)


def _rank(choice: Choice) -> tuple[int, bool, int]:
    order = ["fp32", "bf16", "int8", "int4"] if choice.rooms[0].is_cpu else ["bf16", "fp32", "int8", "int4"]
    return order.index(str(choice.numbers)), not choice.is_roomy, PREFERRED.index(choice.shard)
