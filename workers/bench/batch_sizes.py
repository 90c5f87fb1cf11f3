"""Which batch size is best for a peer, tried on a sample of the rows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from workers.bench.plan import BATCH_SIZES, FINALISTS

#: The batch size that sentence-transformers has by default; the search begins with it.
DEFAULT_BATCH_SIZE = 32
#: Seconds that one batch size gets on the sample, about.
TRY_S = 1.5


def try_sizes(run: Callable[[Sequence[Any], int], object], rows: Sequence[Any], *, n_first: int) -> dict[str, Any]:
    """Time batch sizes on a sample of the rows, each twice.

    Args:
        run: computes rows with a batch size.
        rows: all of them.
        n_first: rows of which the size of the sample is learnt, and the smallest sample.

    Returns:
        ``batch_seconds``: batch size -> seconds for the sample, the better of the tries; a size above the sample's
        would be tried as one batch all the same, and is left out. ``sample_rows``: how many rows the sample has.
    """

    def seconds(some: Sequence[Any], size: int) -> float:
        began = time.perf_counter()
        run(some, size)
        return time.perf_counter() - began

    shuffled = random.Random(0).sample(list(rows), len(rows))  # noqa: S311 - no secret
    seconds(shuffled[:n_first], DEFAULT_BATCH_SIZE)
    rows_per_s = len(shuffled[:n_first]) / seconds(shuffled[:n_first], DEFAULT_BATCH_SIZE)
    sample = shuffled[: max(n_first, int(rows_per_s * TRY_S))]
    sizes = [size for size in BATCH_SIZES if size <= len(sample)] or [BATCH_SIZES[0]]
    tries = [{size: seconds(sample, size) for size in some} for some in (sizes, sizes[::-1])]
    return {
        "batch_seconds": {str(size): min(found[size] for found in tries) for size in sizes},
        "sample_rows": len(sample),
    }


def best_sizes(survey: dict[str, Any]) -> list[int]:
    """Return the batch sizes that go into the rounds, the best one first."""
    seconds = survey["batch_seconds"]
    return [int(size) for size in sorted(seconds, key=lambda size: float(seconds[size]))[:FINALISTS]]
