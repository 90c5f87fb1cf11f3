"""Whole layers on several devices, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def place_units(sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Return the bytes of each device's units, so that the fullest is as little full as can be.

    Each device holds units that follow each other, because what one computes goes on to the next.

    Args:
        sizes: bytes of each unit, in the order of the model.
        rooms: bytes that each device has for them.
    """
    ends = [0, *accumulate(sizes)]
    usable = [max(1, room) for room in rooms]
    # fullest[n]: of the devices so far, if they hold the first n units; and where the last of them begins.
    fullest: list[float] = [end / usable[0] for end in ends]
    begins: list[list[int]] = [[0] * len(ends)]
    for room in usable[1:]:
        before, begin = fullest, []
        fullest = []
        for n, end in enumerate(ends):
            best = min(range(n + 1), key=lambda start: max(before[start], (end - ends[start]) / room))
            begin.append(best)
            fullest.append(max(before[best], (end - ends[best]) / room))
        begins.append(begin)
    held, n = [], len(sizes)
    for begin in reversed(begins):
        held.append(ends[n] - ends[begin[n]])
        n = begin[n]
    return held[::-1]
