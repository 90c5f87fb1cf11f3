"""From what was measured in each round to the figures of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from workers.bench.plan import CEILING, PENSTOCK, SENTENCE_TRANSFORMERS, Contender, pieces
from workers.bench.work import Work


@dataclass(frozen=True)
class Outcome:
    """One run of one contender.

    Attributes:
        error: why there is nothing else.
        seconds: of the encoding alone; see docs/benchmarks.md for what that is with each contender.
        command_s: of its whole process, start and model loading included.
        device_use: share of the cores' or GPUs' time that was used while it encoded.
        peak_bytes: resident memory of all its processes together at most.
        gpu_peak_bytes: memory in use on one GPU at most, whoever used it.
        padded_tokens: that went through the model; None where it is not known.
        model_share: penstock's: share of its slots' time that the model was at work.
        flops_per_s: of the ceiling.
        kernel: of the ceiling: whose matrix products these were, the faster ones.
    """

    error: str | None = None
    seconds: float = 0.0
    command_s: float = 0.0
    device_use: float | None = None
    peak_bytes: int = 0
    gpu_peak_bytes: int = 0
    padded_tokens: int | None = None
    model_share: float | None = None
    flops_per_s: float = 0.0
    kernel: str | None = None


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


Runs = Mapping[Contender, Sequence[Outcome]]


def summarise(runs: Runs, corpus: Corpus, work: Work) -> list[dict[str, Any]]:
    """Return one row of the table for each contender: medians over the rounds, ratios within each round."""
    speeds = {contender: _speeds(contender, outcomes, corpus, work) for contender, outcomes in runs.items()}
    rows = []
    for contender, outcomes in runs.items():
        base = _best(speeds, SENTENCE_TRANSFORMERS, contender.precision)
        ceiling = _best(speeds, CEILING, contender.precision)
        good = [outcome for outcome in outcomes if outcome.error is None]
        row: dict[str, Any] = {
            **contender.to_json(),
            "errors": [outcome.error for outcome in outcomes if outcome.error is not None],
            "tokens_per_s": spread([speed for speed in speeds[contender] if speed]),
            "ratio": spread(_ratios(speeds[contender], base)),
            "of_ceiling": spread(_ratios(speeds[contender], ceiling)),
            "device_use": _middle([outcome.device_use for outcome in good]),
            "peak_bytes": max((outcome.peak_bytes for outcome in good), default=None),
            "gpu_peak_bytes": max((outcome.gpu_peak_bytes for outcome in good), default=None),
            "padding": _middle([_padding(outcome, corpus) for outcome in good]),
            "model_share": _middle([outcome.model_share for outcome in good]),
            "command_s": _middle([outcome.command_s for outcome in good]),
            "kernel": max(good, key=lambda outcome: outcome.flops_per_s).kernel if good else None,
            "rounds": [vars(outcome) for outcome in outcomes],
        }
        row["rows_per_s"] = row["tokens_per_s"] and row["tokens_per_s"]["median"] * len(corpus.lengths) / corpus.tokens
        rows.append(row)
    return sorted(rows, key=lambda row: (row["precision"], row["name"] == CEILING, row["name"] != PENSTOCK))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, least and most of the rounds' values, None if there are none."""
    return {"median": median(values), "least": min(values), "most": max(values)} if values else None


def _speeds(contender: Contender, outcomes: Sequence[Outcome], corpus: Corpus, work: Work) -> list[float | None]:
    """Return tokens a second in each round, None for a round that failed."""
    if contender.name == CEILING:
        tokens_a_flop = corpus.tokens / work.flops(corpus.lengths)
        return [None if outcome.error else outcome.flops_per_s * tokens_a_flop for outcome in outcomes]
    return [None if outcome.error else corpus.tokens / outcome.seconds for outcome in outcomes]


def _best(speeds: Mapping[Contender, Sequence[float | None]], name: str, precision: str) -> Sequence[float | None]:
    """Return the speeds of the fastest contender of a name, by its median."""
    found = [some for contender, some in speeds.items() if (contender.name, contender.precision) == (name, precision)]
    return max(found, key=lambda some: median([speed or 0.0 for speed in some]), default=())


def _ratios(speeds: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Return the ratio to the base in each round in which both have a speed."""
    return [ours / theirs for ours, theirs in zip(speeds, base, strict=False) if ours and theirs]


def _padding(outcome: Outcome, corpus: Corpus) -> float | None:
    return 1 - corpus.tokens / outcome.padded_tokens if outcome.padded_tokens else None


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
