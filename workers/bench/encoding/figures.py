"""The figures of ``penstock bench encode``: tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.bench.encoding.plan import pieces
from workers.bench.encoding.work import Work
from workers.bench.figures import Outcome, Runs, best, common, known, middle, ratios, spread
from workers.bench.plan import CEILING, PENSTOCK, SENTENCE_TRANSFORMERS, Contender


@dataclass(frozen=True)
class Corpus:
    """The corpus in numbers.

    Attributes:
        lengths: (n_rows,) tokens of each row as they are fed.
        n_chars: (n_rows,) characters of each row.
    """

    lengths: np.ndarray
    n_chars: np.ndarray

    @property
    def tokens(self) -> int:
        """All tokens."""
        return int(self.lengths.sum())

    def padded_tokens(self, contender: Contender) -> int:
        """Return what a peer runs through the model: it sorts each piece by characters, and pads batches of rows."""
        if contender.batch_size is None:
            raise ValueError(f"{contender.name} has no batch size")
        padded = 0
        for piece in pieces(contender.name, len(self.lengths), contender.processes):
            rows = np.arange(piece.start, piece.stop)
            ordered = self.lengths[rows[np.argsort(-self.n_chars[rows])]]
            for start in range(0, len(ordered), contender.batch_size):
                batch = ordered[start : start + contender.batch_size]
                padded += len(batch) * int(batch.max())
        return padded


def summarise(runs: Runs, corpus: Corpus, work: Work) -> list[dict[str, Any]]:
    """Return one row of the table for each contender: medians over the rounds, ratios within each round."""
    speeds = {contender: _speeds(contender, outcomes, corpus, work) for contender, outcomes in runs.items()}
    rows = []
    for contender, outcomes in runs.items():
        base = best(speeds, SENTENCE_TRANSFORMERS, contender.precision)
        ceiling = best(speeds, CEILING, contender.precision)
        good = [outcome for outcome in outcomes if outcome.error is None]
        row: dict[str, Any] = {
            **common(contender, outcomes),
            "tokens_per_s": spread(known(speeds[contender])),
            "ratio": spread(ratios(speeds[contender], base)),
            "of_ceiling": spread(ratios(speeds[contender], ceiling)),
            "padding": middle([_padding(outcome, corpus) for outcome in good]),
            "kernel": max(good, key=lambda outcome: outcome.flops_per_s).kernel if good else None,
        }
        row["rows_per_s"] = row["tokens_per_s"] and row["tokens_per_s"]["median"] * len(corpus.lengths) / corpus.tokens
        rows.append(row)
    return sorted(rows, key=lambda row: (row["precision"], row["name"] == CEILING, row["name"] != PENSTOCK))


def _speeds(contender: Contender, outcomes: Sequence[Outcome], corpus: Corpus, work: Work) -> list[float | None]:
    """Return tokens a second in each round, None for a round that failed."""
    if contender.name == CEILING:
        tokens_a_flop = corpus.tokens / work.flops(corpus.lengths)
        return [None if outcome.error else outcome.flops_per_s * tokens_a_flop for outcome in outcomes]
    return [None if outcome.error else corpus.tokens / outcome.seconds for outcome in outcomes]


def _padding(outcome: Outcome, corpus: Corpus) -> float | None:
    return 1 - corpus.tokens / outcome.padded_tokens if outcome.padded_tokens else None
