"""Batches by token budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batching import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, default_batch_tokens, plan_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=200).map(lambda lengths: np.array(lengths, np.int32))
BUDGETS = st.integers(1, 2000)


@given(LENGTHS, BUDGETS)
def test_every_row_is_in_one_batch(lengths, budget):
    """Batches are a partition of the rows."""
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@given(LENGTHS, BUDGETS)
def test_a_batch_costs_no_more_than_its_budget(lengths, budget):
    """The cost is the longest row times the number of rows; only a single row may exceed it."""
    for batch in plan_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= budget


@given(LENGTHS, BUDGETS)
def test_a_batch_takes_all_that_fits(lengths, budget):
    """The next row would not have fitted in, so there are no more batches than needed."""
    batches = plan_batches(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(1, int(lengths[batch].max())) > budget


@given(LENGTHS, BUDGETS)
def test_rows_go_from_long_to_short(lengths, budget):
    """Memory peaks at the first batch, and rows of one length keep their order."""
    rows = [row for batch in plan_batches(lengths, budget) for row in batch.tolist()]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


def test_no_rows_make_no_batches():
    """An empty chunk costs nothing."""
    assert plan_batches(np.array([], np.int32), 1024) == []


def test_rows_without_tokens_are_batched_by_number():
    """A length of zero costs as much as one token, so a batch stays finite."""
    assert [len(batch) for batch in plan_batches(np.zeros(5, np.int32), 2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("device", "tokens"), [("cpu", CPU_BATCH_TOKENS), ("cuda", GPU_BATCH_TOKENS), ("cuda:1", GPU_BATCH_TOKENS)]
)
def test_a_device_has_a_budget_of_its_kind(device, tokens):
    """Small batches suit a CPU's cache, large ones fill a GPU."""
    assert default_batch_tokens(device) == tokens
