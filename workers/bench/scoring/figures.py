"""The figures of ``penstock bench score``: documents a second, as the article counts them."""

from __future__ import annotations

from typing import Any

from workers.bench.figures import Runs, best, common, known, ratios, spread
from workers.bench.plan import CROSS_ENCODER
from workers.bench.scoring.plan import NAIVE


def summarise(runs: Runs, n_pairs: int) -> list[dict[str, Any]]:
    """Return one row of the table for each contender: medians over the rounds, ratios within each round.

    ``speedup`` is the ratio to one pair at a time in one process, ``ratio`` that to sentence-transformers at its best
    batch size.
    """
    speeds = {
        contender: [None if outcome.error else n_pairs / outcome.seconds for outcome in outcomes]
        for contender, outcomes in runs.items()
    }
    first = {contender: some for contender, some in speeds.items() if contender.processes == 1}
    rows = []
    for contender, outcomes in runs.items():
        good = [outcome for outcome in outcomes if outcome.error is None]
        base, peer = (best(first, name, contender.precision) for name in (NAIVE, CROSS_ENCODER))
        rows.append(
            {
                **common(contender, outcomes),
                "seconds": spread([outcome.seconds for outcome in good]),
                "documents_per_s": spread(known(speeds[contender])),
                "speedup": spread(ratios(speeds[contender], base)),
                "ratio": spread(ratios(speeds[contender], peer)),
                "largest_difference": max(known([outcome.largest_difference for outcome in good]), default=None),
                "equal_ranks": min(known([outcome.equal_ranks for outcome in good]), default=None),
            }
        )
    return rows
