"""Batches by token budget."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.batching import PADDING_SHARE, bucket_length, cost, cut_blocks, plan_batches

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
    """The next row would not have fitted in, or would have wasted too much."""
    batches = plan_batches(lengths, budget)
    counts = np.maximum(lengths, 1)
    for batch, following in pairwise(batches):
        longer = np.append(batch, following[0])
        tokens = len(longer) * int(counts[longer].max())
        assert tokens > budget or tokens - counts[longer].sum() > budget * PADDING_SHARE


@given(LENGTHS, BUDGETS)
def test_a_batch_wastes_little_on_padding(lengths, budget):
    """However the lengths fall, so that the cost of a corpus is its own tokens and a small share."""
    counts = np.maximum(lengths, 1)
    for batch in plan_batches(lengths, budget):
        assert len(batch) * int(counts[batch].max()) - counts[batch].sum() <= budget * PADDING_SHARE


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


@given(LENGTHS, BUDGETS)
def test_a_batch_without_padding_costs_the_sum_of_its_lengths(lengths, budget):
    """Each batch but a single row is within the budget, and the next row would not have fitted in."""
    batches = plan_batches(lengths, budget, pads=False)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], np.array([], int)], strict=False):
        costs = np.maximum(lengths[batch], 1).sum()
        assert len(batch) == 1 or costs <= budget
        assert not len(following) or costs + max(1, lengths[following[0]]) > budget


def test_the_cost_of_a_batch_is_what_the_model_computes():
    """With padding the longest row counts for all."""
    lengths = np.array([5, 2, 2], np.int32)
    assert (cost(lengths), cost(lengths, pads=False)) == (15, 9)


@given(st.lists(st.integers(0, 80), max_size=60), st.integers(1, 20), st.integers(1, 200))
def test_blocks_hold_every_row_once_and_the_longest_first(n_chars, limit, block_tokens):
    """Rows of like length share a block; beyond the limit characters do not count."""
    blocks = cut_blocks(n_chars, limit, block_tokens)
    rows = [row for block in blocks for row in block.tolist()]
    assert sorted(rows) == list(range(len(n_chars)))
    expected = [min(n_chars[row] // 4 + 1, limit) for row in rows]
    assert expected == sorted(expected, reverse=True)
    assert all(len(block) for block in blocks)


def test_blocks_are_a_quarter_of_the_rows():
    """No less than a batch, no more than sixteen."""
    n_chars = [39] * 100  # ten tokens each
    assert [len(block) for block in cut_blocks(n_chars, 256, 30)] == [25] * 4
    assert [len(block) for block in cut_blocks(n_chars, 256, 500)] == [50] * 2
    assert {len(block) for block in cut_blocks(n_chars * 10, 256, 10)} == {16, 8}


@given(st.integers(1, 5000))
def test_a_bucket_is_at_most_an_eighth_longer(n_tokens):
    """Above 64 tokens; below, at most seven tokens more. The same row always gets the same bucket."""
    length = bucket_length(n_tokens)
    assert n_tokens <= length <= max(n_tokens + 7, n_tokens * 9 / 8)
    assert bucket_length(length) == length


def test_there_are_few_buckets():
    """So that few shapes are compiled and checked."""
    assert len({bucket_length(n) for n in range(1, 8193)}) < 70
