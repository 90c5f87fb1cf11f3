"""From what was measured in each round to figures: what the tables of all benches have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from workers.bench.plan import Contender


@dataclass(frozen=True)
class Outcome:
    """One run of one contender.

    Attributes:
        error: why there is nothing else.
        seconds: of the work alone; see docs/benchmarks.md for what that is with each contender.
        command_s: of its whole process, start and model loading included.
        device_use: share of the cores' or GPUs' time that was used during the work.
        peak_bytes: resident memory of all its processes together at most.
        gpu_peak_bytes: memory in use on one GPU at most, whoever used it.
        padded_tokens: that went through the model; None where it is not known.
        model_share: penstock's: share of its slots' time that the model was at work.
        flops_per_s: of the ceiling.
        kernel: of the ceiling: whose matrix products these were, the faster ones.
        largest_difference: of a score to the reference's.
        equal_ranks: share of the first ranks of a query that hold the same document as the reference's.
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
    largest_difference: float | None = None
    equal_ranks: float | None = None


Runs = Mapping[Contender, Sequence[Outcome]]
#: Of each contender the speed in each round, None for a round that failed.
Speeds = Mapping[Contender, Sequence[float | None]]


def common(contender: Contender, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what a row of every table has."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    return {
        **contender.to_json(),
        "errors": [outcome.error for outcome in outcomes if outcome.error is not None],
        "device_use": middle([outcome.device_use for outcome in good]),
        "peak_bytes": max((outcome.peak_bytes for outcome in good), default=None),
        "gpu_peak_bytes": max((outcome.gpu_peak_bytes for outcome in good), default=None),
        "model_share": middle([outcome.model_share for outcome in good]),
        "command_s": middle([outcome.command_s for outcome in good]),
        "rounds": [vars(outcome) for outcome in outcomes],
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, least and most of the rounds' values, None if there are none."""
    return {"median": median(values), "least": min(values), "most": max(values)} if values else None


def known(values: Sequence[float | None]) -> list[float]:
    """Return the values that there are."""
    return [value for value in values if value is not None]


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that there are, None if there are none."""
    found = known(values)
    return median(found) if found else None


def best(speeds: Speeds, name: str, precision: str) -> Sequence[float | None]:
    """Return the speeds of the fastest contender of a name, by its median."""
    found = [some for contender, some in speeds.items() if (contender.name, contender.precision) == (name, precision)]
    return max(found, key=lambda some: median([speed or 0.0 for speed in some]), default=())


def ratios(speeds: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Return the ratio to the base in each round in which both have a speed."""
    return [ours / theirs for ours, theirs in zip(speeds, base, strict=False) if ours and theirs]
