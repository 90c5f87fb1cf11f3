"""Whether all contenders computed the same vectors in the same order: otherwise their speeds do not compare."""

from __future__ import annotations

import random

import numpy as np

from tasks.errors import Permanent

#: Rows that are compared.
SAMPLE_ROWS = 200
#: The least cosine that counts as the same vector: fp16 keeps 0.9999, another text or model has below 0.9.
LEAST_COSINE = 0.999


def sample_rows(n_rows: int) -> list[int]:
    """Return the numbers of the rows that are compared, the same ones every time."""
    return sorted(random.Random(0).sample(range(n_rows), min(SAMPLE_ROWS, n_rows)))  # noqa: S311 - no secret


def check(who: str, vectors: np.ndarray, reference: np.ndarray, n_rows: int) -> None:
    """Compare a contender's vectors with the reference.

    Args:
        who: the contender's label.
        vectors: (n_rows, dim) what it computed.
        reference: (n_sampled, dim) the vectors of ``sample_rows``.
        n_rows: rows of the corpus.

    Raises:
        Permanent: rows are missing, or a vector is another one.
    """
    if vectors.shape != (n_rows, reference.shape[1]):
        raise Permanent(f"{who} gave vectors of shape {vectors.shape}, not {(n_rows, reference.shape[1])}.")
    rows = sample_rows(n_rows)
    found = vectors[rows].astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = np.where(norms > 0, (found * reference).sum(axis=1) / np.maximum(norms, 1e-12), 0.0)
    worst = int(np.argmin(cosines))
    n_other = int((~(cosines >= LEAST_COSINE)).sum())  # a NaN is below
    if n_other:
        raise Permanent(
            f"{who} gave other vectors than sentence-transformers: {n_other} of {len(rows)} rows have a cosine below "
            f"{LEAST_COSINE}, row {rows[worst]} {cosines[worst]:.4f}. The speeds do not compare."
        )
