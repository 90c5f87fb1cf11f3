"""What the operations make of an engine's answers."""

from __future__ import annotations

import numpy as np

from tasks.operations import OPERATIONS
from tasks.options import ScoreOptions
from tasks.ports import Computed, Pair


class StrangeScorer:
    """Gives pairs these scores, whatever they are."""

    def __init__(self, *scores: float) -> None:
        self._scores = np.array(scores, np.float32)[:, None]

    def score(self, pairs, options, on_batch):
        """Score pairs."""
        return Computed(self._scores, np.ones(len(pairs), np.int32), np.zeros(len(pairs), bool), [None] * len(pairs))


def test_a_score_that_is_no_finite_number_is_an_error():
    """It has no place in a ranking; what overflowed in half precision looks like this."""
    engine = StrangeScorer(0.5, np.nan, np.inf, -np.inf, 3e38)
    computed = OPERATIONS["score"].run(engine, [Pair("q", "d")] * 5, ScoreOptions(), lambda _: None)
    assert [error is not None for error in computed.errors] == [False, True, True, True, False]
