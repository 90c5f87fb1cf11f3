"""What must be known before the rounds: token counts, and the best batch sizes of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.ports import Pair
from workers.bench.batch_sizes import DEFAULT_BATCH_SIZE, try_sizes
from workers.bench.scoring.peers import ScoreSetup, count_tokens, is_causal, load_cross_encoder

#: Pairs of which the size of the sample is learnt. A large model takes seconds for each on a CPU; with fewer, the
#: default batch size would not be tried.
FIRST_PAIRS = DEFAULT_BATCH_SIZE


def survey(setup: ScoreSetup, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Look at model and pairs.

    Returns:
        ``lengths``: tokens of each pair as one is fed alone. ``batch_seconds``, ``sample_rows``: see ``try_sizes``.
        ``kind``: of the model.
    """
    model = load_cross_encoder(setup, setup.devices[0])

    def score(some: Sequence[Pair], size: int) -> None:
        model.predict(some, batch_size=size, show_progress_bar=False)

    return {
        **try_sizes(score, pairs, n_first=FIRST_PAIRS),
        "lengths": count_tokens(setup, model.tokenizer, pairs),
        "kind": "causal reranker" if is_causal(setup) else "cross-encoder",
    }
