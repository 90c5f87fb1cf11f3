"""Batches by token budget over true lengths.

A padded batch costs its longest row times its number of rows; one without padding costs the sum of its lengths. Rows
sorted by length waste the least padding, and a budget in tokens instead of rows keeps the cost of every batch alike,
whatever the texts' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Share of the budget that a batch may spend on padding, if a smaller batch wastes less. A batch costs something by
#: itself, so a share of nothing would be too little: 1/32 halved the padding of short sentences, for a fifth more
#: batches.
PADDING_SHARE = 1 / 32
#: Blocks into which rows are cut at least, and batches of a block at most.
LEAST_BLOCKS, MOST_BATCHES = 4, 16
#: Characters of a token to reckon with before texts are tokenised; English has four to five.
CHARS_PER_TOKEN = 4


def plan_batches(lengths: np.ndarray, max_batch_tokens: int, *, pads: bool = True) -> list[np.ndarray]:
    """Group rows so that each batch costs at most ``max_batch_tokens``, and little of that for padding.

    Args:
        lengths: (n_rows,) tokens of each row.
        max_batch_tokens: budget; a single row above it is a batch of its own.
        pads: whether the model pads a batch to its longest row.

    Returns:
        Arrays of row numbers, longest rows first, so that memory peaks at once and not at the end. Together they
        hold every row once. Equal lengths keep their order.
    """
    order = np.argsort(-lengths, kind="stable")
    sorted_lengths = np.maximum(lengths[order], 1).astype(np.int64)
    ends = np.cumsum(sorted_lengths)
    batches = []
    start, before = 0, 0
    while start < len(order):
        # For each further row: true tokens of the batch that it would end, and what they cost.
        tokens = ends[start : start + max_batch_tokens] - before
        costs = sorted_lengths[start] * np.arange(1, len(tokens) + 1) if pads else tokens
        fits = (costs <= max_batch_tokens) & (costs - tokens <= PADDING_SHARE * max_batch_tokens)
        stop = start + max(1, len(fits) if fits.all() else int(fits.argmin()))
        batches.append(order[start:stop])
        start, before = stop, int(ends[stop - 1])
    return batches


def cost(lengths: np.ndarray, *, pads: bool = True) -> int:
    """Return the tokens that a batch of rows of these lengths costs."""
    return int(lengths.max()) * len(lengths) if pads else int(lengths.sum())


def cut_blocks(n_chars: Sequence[int], limit: int, batch_tokens: int) -> list[np.ndarray]:
    """Cut rows into blocks of about as many tokens, longest rows first, to be tokenised one after the other.

    A block is a quarter of the rows, so that all but the first can be tokenised while the model works, but no less than
    a batch and no more than sixteen.

    Rows of like length share a block, so sorting by true length inside a block wastes hardly more padding than
    sorting the whole.

    Args:
        n_chars: (n_rows,) characters of each row.
        limit: tokens of a row that the model takes at most.
        batch_tokens: the budget of a batch.

    Returns:
        Arrays of row numbers that together hold every row once.
    """
    n_tokens = np.minimum(np.array(n_chars, np.int64) // CHARS_PER_TOKEN + 1, limit)
    order = np.argsort(-n_tokens, kind="stable")
    block_tokens = max(batch_tokens, min(MOST_BATCHES * batch_tokens, int(n_tokens.sum()) // LEAST_BLOCKS))
    blocks = (np.cumsum(n_tokens[order]) - n_tokens[order]) // block_tokens
    return np.split(order, np.flatnonzero(np.diff(blocks)) + 1) if len(order) else []


def bucket_length(n_tokens: int, step: int = 8) -> int:
    """Return the length that a row is padded to where only a few lengths are allowed, at most about an eighth more.

    Multiples of the step up to 16 steps, of twice the step up to 32, and so on.
    """
    while 16 * step < n_tokens:
        step *= 2
    return -(-max(1, n_tokens) // step) * step
