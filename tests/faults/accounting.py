"""Set accounting: ids in = ids out, each once, vectors equal to those of a run without faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Tally:
    """What is wrong with a result: rows that are missing, that are there more than once, or not as they should be."""

    lost: int = 0
    doubled: int = 0
    altered: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.lost + other.lost, self.doubled + other.doubled, self.altered + other.altered)


#: Nothing is wrong.
FLAWLESS = Tally()


def compare(found: pa.Table, expected: pa.Table) -> Tally:
    """Compare two results bit for bit, in the order of the rows."""
    counts, wanted = Counter(found["id"].to_pylist()), Counter(expected["id"].to_pylist())
    lost, doubled = (wanted - counts).total(), (counts - wanted).total()
    if lost or doubled:
        return Tally(lost, doubled)
    is_other = np.zeros(found.num_rows, bool)
    for name in expected.column_names:
        is_other |= _differs(found[name].combine_chunks(), expected[name].combine_chunks())
    return Tally(altered=int(is_other.sum()))


def _differs(found: pa.Array, expected: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(expected.type):
        pairs = [array.flatten().to_numpy().reshape(len(array), -1).view(np.uint32) for array in (found, expected)]
        return (pairs[0] != pairs[1]).any(axis=1)
    return np.array([a != b for a, b in zip(found.to_pylist(), expected.to_pylist(), strict=True)], bool)
