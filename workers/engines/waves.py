"""Which prompts are computed together, so that what the prompts of a query begin with is computed once.

A wave is a few queries whose prefixes fit the budget of one batch together; their keys and values stay while the rests
of all their prompts go through the model, and are dropped then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.ports import Pair
from workers.batching import CHARS_PER_TOKEN, LEAST_BLOCKS, MOST_BATCHES
from workers.engines.prompts import Ids, Prompt


@dataclass(frozen=True)
class Wave:
    """Some queries' prompts.

    Attributes:
        prefixes: the longest that any prompt of the query has, for each query.
        rows: (n_rows,) numbers of the prompts.
        owners: (n_rows,) number of each one's prefix.
    """

    prefixes: list[Ids]
    rows: np.ndarray
    owners: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Tokens of the prefixes when they are padded to the longest."""
        return len(self.prefixes) * len(self.prefixes[0])

    def halves(self) -> tuple[Wave, Wave]:
        """Return two waves of half the queries each; there must be two queries at least."""
        half = len(self.prefixes) // 2
        is_first = self.owners < half
        return (
            Wave(self.prefixes[:half], self.rows[is_first], self.owners[is_first]),
            Wave(self.prefixes[half:], self.rows[~is_first], self.owners[~is_first] - half),
        )


def plan_waves(prompts: Sequence[Prompt], max_tokens: int) -> tuple[list[Wave], np.ndarray]:
    """Put prompts with their queries' prefixes into waves.

    Args:
        prompts: of a block.
        max_tokens: that the prefixes of a wave may have, padded; a single one may have more.

    Returns:
        The waves, longest prefixes first, and the numbers of the prompts that share theirs with no other.
    """
    by_query = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_query[prompt.query].append(row)
    groups = [(max(rows, key=lambda row: prompts[row].prefix), rows) for rows in by_query.values() if len(rows) > 1]
    groups = sorted((group for group in groups if prompts[group[0]].prefix), key=lambda it: -prompts[it[0]].prefix)
    waves = []
    start = 0
    while start < len(groups):
        n_queries = max(1, max_tokens // prompts[groups[start][0]].prefix)
        waves.append(_wave(prompts, groups[start : start + n_queries]))
        start += n_queries
    shared = {row for _, rows in groups for row in rows}
    return waves, np.array([row for row in range(len(prompts)) if row not in shared], np.int64)


def _wave(prompts: Sequence[Prompt], groups: list[tuple[int, list[int]]]) -> Wave:
    return Wave(
        prefixes=[prompts[longest].ids[: prompts[longest].prefix] for longest, _ in groups],
        rows=np.concatenate([rows for _, rows in groups]),
        owners=np.repeat(np.arange(len(groups)), [len(rows) for _, rows in groups]),
    )


def cut_by_query(pairs: Sequence[Pair], limit: int, batch_tokens: int) -> list[np.ndarray]:
    """Cut pairs into blocks as ``workers.batching.cut_blocks`` does, but so that pairs of a query stay together.

    A query with more pairs than a block takes has them in several, longest documents first.

    Returns:
        Arrays of row numbers that together hold every row once.
    """
    n_tokens = np.array(
        [min((len(query) + len(text)) // CHARS_PER_TOKEN + 1, limit) for query, text in pairs], np.int64
    )
    numbers = {query: number for number, query in enumerate(dict.fromkeys(pair.query for pair in pairs))}
    order = np.lexsort((-n_tokens, np.array([numbers[pair.query] for pair in pairs], np.int64)))
    block_tokens = max(batch_tokens, min(MOST_BATCHES * batch_tokens, int(n_tokens.sum()) // LEAST_BLOCKS))
    blocks = (np.cumsum(n_tokens[order]) - n_tokens[order]) // block_tokens
    return np.split(order, np.flatnonzero(np.diff(blocks)) + 1) if len(order) else []
