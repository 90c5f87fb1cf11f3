"""Whether all contenders computed the same scores: otherwise their speeds do not compare."""

from __future__ import annotations

import numpy as np

from tasks.errors import Permanent
from workers.bench.scoring.plan import NAIVE

#: Largest difference of a score that other batches explain, relative to the largest score and to 1, by precision.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.05}
#: Ranks of a query that are compared.
TOP = 10


def check(who: str, scores: np.ndarray, reference: np.ndarray, precision: str) -> float:
    """Return the largest difference of scores (n_pairs,) to those of one pair at a time.

    Raises:
        Permanent: pairs are missing, or a score is another one.
    """
    if scores.shape != reference.shape:
        raise Permanent(f"{who} gave scores of shape {scores.shape}, not {reference.shape}.")
    tolerance = TOLERANCES[precision] * max(1.0, float(np.abs(reference).max()))
    differences = np.abs(scores.astype(np.float64) - reference)
    n_other = int((~(differences <= tolerance)).sum())  # a NaN is above
    if n_other:
        worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
        raise Permanent(
            f"{who} gave other scores than {NAIVE}: {n_other} of {len(scores)} differ by more than {tolerance:.2g}, "
            f"pair {worst} by {differences[worst]:.2g}. The speeds do not compare."
        )
    return float(differences.max())


def equal_ranks(scores: np.ndarray, reference: np.ndarray, query_ids: list[str], doc_ids: list[str]) -> float:
    """Return the share of each query's first ranks that hold the same document, the mean over the queries."""
    by_query: dict[str, list[int]] = {}
    for row, query in enumerate(query_ids):
        by_query.setdefault(query, []).append(row)
    shares = []
    for rows in by_query.values():
        ranked = [sorted(rows, key=lambda i: (-values[i], doc_ids[i]))[:TOP] for values in (scores, reference)]
        shares.append(np.mean([one == other for one, other in zip(*ranked, strict=True)]))
    return float(np.mean(shares))
