"""Comparing a sample of a job's rows with the same rows computed again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from producer.verification import Sample, compare
from tasks.options import EncodeOptions, ScoreOptions


def sample_of(values, queries=None, documents=None) -> Sample:
    """Return a sample with these values, (n, dim)."""
    values = np.array(values, np.float32)
    n_rows = len(values)
    return Sample(
        rows=[f"row {i}" for i in range(n_rows)],
        values=values,
        queries=queries or [""] * n_rows,
        documents=documents or [""] * n_rows,
    )


def recomputed(values, errors=None) -> pa.Table:
    """Return what the worker's part hands back."""
    values = np.array(values, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.table({"value": column, "error": pa.array(errors or [None] * len(values), pa.string())})


@pytest.fixture
def score_spec(make_spec):
    """Return the spec of a scoring job."""
    return make_spec(options=ScoreOptions())


def test_equal_scores_differ_by_nothing(score_spec):
    """And all their ranks are equal."""
    sample = sample_of([[0.1], [0.9]], ["q", "q"], ["a", "b"])
    verdict = compare(sample, recomputed([[0.1], [0.9]]), score_spec)
    assert (verdict.rows, verdict.failed, verdict.largest, verdict.mean) == (2, 0, 0.0, 0.0)
    assert (verdict.queries, verdict.equal_ranks, verdict.least_cosine) == (1, 1.0, None)
    assert verdict.passes(0.0)


def test_the_largest_and_the_mean_difference_are_told(score_spec):
    """One row is off by a half, three are right."""
    sample = sample_of([[0.0], [0.25], [0.5], [1.0]], ["q"] * 4, list("abcd"))
    verdict = compare(sample, recomputed([[0.5], [0.25], [0.5], [1.0]]), score_spec)
    assert (verdict.largest, verdict.mean) == (0.5, 0.125)
    assert verdict.passes(0.5)
    assert not verdict.passes(0.49)


def test_ranks_are_compared_within_a_query(score_spec):
    """In one of two queries the first two documents change places; a query with one pair has no ranks."""
    queries = ["q1"] * 4 + ["q2"] * 2 + ["q3"]
    sample = sample_of([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4], [0.3]], queries, list("abcdefg"))
    verdict = compare(sample, recomputed([[0.8], [0.9], [0.7], [0.6], [0.5], [0.4], [0.3]]), score_spec)
    assert (verdict.queries, verdict.equal_ranks) == (2, 0.75)


def test_ties_are_ranked_by_document(score_spec):
    """As in a ranking, so a tie that both have is no difference."""
    sample = sample_of([[0.5], [0.5]], ["q", "q"], ["b", "a"])
    assert compare(sample, recomputed([[0.5], [0.5]]), score_spec).equal_ranks == 1.0


def test_only_the_first_ten_ranks_count(score_spec):
    """What stands behind them may change places."""
    before = [[1 - i / 100] for i in range(12)]
    after = [*before[:10], before[11], before[10]]
    sample = sample_of(before, ["q"] * 12, [f"{i:02d}" for i in range(12)])
    assert compare(sample, recomputed(after), score_spec).equal_ranks == 1.0


def test_a_row_that_cannot_be_computed_here_fails_the_sample(score_spec):
    """However alike the others are."""
    sample = sample_of([[0.1], [0.2]], ["q", "q"], ["a", "b"])
    verdict = compare(sample, recomputed([[0.1], [0.0]], [None, "the engine failed"]), score_spec)
    assert (verdict.rows, verdict.failed, verdict.largest) == (1, 1, 0.0)
    assert not verdict.passes(1.0)


def test_vectors_are_compared_by_their_cosine_as_well(make_spec):
    """Two at a right angle, and two vectors of zeros, which are alike."""
    sample = sample_of([[1, 0], [0, 0]])
    verdict = compare(sample, recomputed([[0, 1], [0, 0]]), make_spec())
    assert (verdict.least_cosine, verdict.mean_cosine, verdict.largest, verdict.equal_ranks) == (0.0, 0.5, 1.0, None)


def test_stored_half_precision_is_no_difference(make_spec):
    """What is computed again is rounded as the job's was."""
    vector = np.float32([[0.1, 1 / 3]])
    sample = sample_of(vector.astype(np.float16))
    verdict = compare(sample, recomputed(vector), make_spec(options=EncodeOptions(vector_dtype="float16")))
    assert verdict.largest == 0.0
