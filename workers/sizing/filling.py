"""Whole layers on several devices, one after the other, as ``--shard auto`` lays them there."""

from __future__ import annotations

from collections.abc import Sequence

from workers.sharding.spreading import limits_of

#: How often the largest unit goes into what a device but the last gets beside an even share, so that the last one is
#: not left with too many. As transformers has it for ``device_map="auto"``.
SPARE = 1.25


def limits_for(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Return the bytes of units that each device may get at most.

    Args:
        sizes: bytes of each unit, in the order of the model.
        rooms: bytes that each device has.
    """
    limits = limits_of(rooms, sum(sizes))
    if limits is None:
        limits = limits_of(rooms, None) or list(rooms)
    even = sum(sizes) // len(rooms) + int(SPARE * max(sizes, default=0))
    return [*(min(even, limit) for limit in limits[:-1]), limits[-1]]


def place_units(sizes: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Return the bytes of each device's units; what finds no room is on the last one, beyond its limit.

    Devices are filled in their order. The first keeps room for the largest unit to come: transformers does so.
    """
    held, device = [0] * len(limits), 0
    for i, size in enumerate(sizes):
        kept = max(sizes[i + 1 :], default=0)
        while device + 1 < len(limits) and held[device] + size > limits[device] - (0 if device else kept):
            device += 1
        held[device] += size
    return held
