"""How much of a model each of several devices gets, when whole layers lie on each: ``--shard auto``.

transformers fills devices in their order, each up to a limit. Left alone it would fill the first one to the brim, where
the batches come in and the results go out, and leave the others idle. So the limits are as low as they can be.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Share of a device's room that weights may take. The rest is for batches, and for what CUDA takes itself.
WEIGHTS_SHARE = 0.8
#: What the first device gets of the others' limit. It also holds a batch's tokens and masks and all that comes back. A
#: rule of thumb; not yet measured on GPUs.
FIRST_SHARE = 0.9
#: Steps by which the lowest limit is found: a thousandth of the largest device at least.
STEPS = 12


def limits_of(rooms: Sequence[int], sizes: Sequence[int] | None) -> list[int] | None:
    """Return the bytes of weights that each device may get at most, or None if the model does not fit.

    Args:
        rooms: bytes that may be taken of each device.
        sizes: bytes of each unit of the model, a layer or another part that stays whole, in their order; None if that
            is not known.
    """
    most = [int(WEIGHTS_SHARE * room) for room in rooms]
    if sizes is None:
        return most
    if not _fit(sizes, most):
        return None
    largest = max(sizes, default=0)

    def limits(even: int) -> list[int]:
        """Return limits as even as the devices allow. The first one's room for a layer to come is beyond its share."""
        first = min(most[0], int(FIRST_SHARE * even) + largest)
        return [first, *(min(even, limit) for limit in most[1:])]

    # The last limit of the search is one that was seen to do; the devices' own do if nothing lower does.
    low, high, found = sum(sizes) // len(rooms), max(most), most
    for _ in range(STEPS):
        even = (low + high) // 2
        if _fit(sizes, limits(even)):
            high, found = even, limits(even)
        else:
            low = even
    return [*found[:-1], most[-1]]  # what was reckoned a little otherwise than transformers does ends there


def place_units(sizes: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Return the bytes of each device's units, as transformers places them.

    Devices are filled in their order; what finds no room is on the last one, beyond its limit. The first keeps room for
    the largest unit to come.
    """
    held, device = [0] * len(limits), 0
    for i, size in enumerate(sizes):
        kept = max(sizes[i + 1 :], default=0)
        while device + 1 < len(limits) and held[device] + size > limits[device] - (0 if device else kept):
            device += 1
        held[device] += size
    return held


def _fit(sizes: Sequence[int], limits: Sequence[int]) -> bool:
    held = place_units(sizes, limits)
    return held[-1] <= limits[-1]
