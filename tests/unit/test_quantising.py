"""What ``--quantize`` refuses without a model, and what ``penstock verify`` says of quantised weights."""

from __future__ import annotations

import pytest

from producer.commands.verify import _price
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import MIB, Settings
from workers.engines import load_engine, loads


@pytest.mark.parametrize("model", ["fake:dim=4", "laser:laser2"])
def test_engines_without_a_transformer_refuse_it(model: str) -> None:
    """In one line that names the option, and before anything is loaded."""
    before = loads()
    with pytest.raises(UsageError, match=r"^--quantize is for transformers; --model (fake|laser):.*Leave it out\.$"):
        load_engine(ModelSpec.parse(model), "cpu", Settings(quantize="int8"))
    assert loads() == before


def _result(**of_fp32: object) -> dict[str, object]:
    full = {"least_cosine": None, "mean_cosine": None, "largest": 0.5, "mean": 0.25, "equal_ranks": None, "failed": 0}
    return {
        "quantize": "int8",
        "weight_bytes": 25 * MIB,
        "beside_fp32": {**full, "weight_bytes": 100 * MIB, **of_fp32},
    }


def test_the_price_of_vectors_is_their_cosine() -> None:
    """With the memory of both, and what is saved."""
    assert _price(_result(least_cosine=0.99, mean_cosine=0.999)) == [
        "memory of the weights: 25.0 MiB in int8, 100.0 MiB in fp32: 75% saved",
        "beside fp32: least cosine 0.99000, mean 0.99900",
        "beside fp32: largest difference 0.5, mean 0.25",
    ]


def test_the_price_of_scores_is_their_ranks() -> None:
    """And rows that could not be computed in fp32 are told."""
    assert _price(_result(equal_ranks=0.875, failed=2))[1:] == [
        "beside fp32: largest difference 0.5, mean 0.25",
        "beside fp32: equal first ten ranks 87.5%",
        "beside fp32: 2 rows could not be computed",
    ]
