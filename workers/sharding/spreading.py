"""How much of a model each of several devices gets, when whole layers lie on each: ``--shard auto``.

transformers fills devices in their order. Left alone with their limits it would fill the first one to the brim, where
the batches come in and the results go out, and leave the others idle.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Share of a device's room that weights may take. The rest is for batches, and for what CUDA takes itself.
WEIGHTS_SHARE = 0.8
#: What the first device gets of an even share. It also holds a batch's tokens and masks and all that comes back. A rule
#: of thumb; not yet measured on GPUs.
FIRST_SHARE = 0.9


def limits_of(rooms: Sequence[int], weights_bytes: int | None) -> list[int] | None:
    """Return the bytes of weights that each device may get at most, or None if the model does not fit.

    Args:
        rooms: bytes that may be taken of each device.
        weights_bytes: of the model; None if that is not known.
    """
    limits = [int(WEIGHTS_SHARE * room) for room in rooms]
    if weights_bytes is None:
        return limits
    if weights_bytes > sum(limits):
        return None
    wanted = min(limits[0], int(FIRST_SHARE * weights_bytes / len(rooms)))
    limits[0] = max(wanted, weights_bytes - sum(limits[1:]))  # more if the others are too small
    return limits
