"""What engines that score pairs do alike, whatever kind of model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.options import ScoreOptions
from tasks.ports import Computed, Pair
from workers.engines.batched import BatchedEngine


class PairScorer(BatchedEngine[Pair, ScoreOptions]):
    """One loaded model on one device that gives each pair one number."""

    NOT_FINITE = "the model gave a score that is not finite"

    def dim(self, options: ScoreOptions) -> int:  # noqa: ARG002 - always a score
        """Return 1."""
        return 1

    def score(
        self, pairs: Sequence[Pair], options: ScoreOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Score pairs in their order."""
        return self._compute(pairs, options, on_batch)

    def _size(self, row: Pair) -> int:
        return len(row.query) + len(row.document)
