"""What ``--quantize`` refuses without a model, and what ``penstock verify`` says of quantised weights."""

from __future__ import annotations

import os

import pytest

from producer.commands.verify import _environment, _price
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


def test_what_is_none_is_none_where_rows_are_computed_again(monkeypatch, tmp_path) -> None:
    """Neither the environment nor a settings file quantises the weights that are to be unquantised."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "penstock.yaml").write_text("quantize: int8\nshard: tensor\nprecision: bf16\n")
    monkeypatch.setenv("PENSTOCK_QUANTIZE", "int4")
    (tmp_path / "rows").mkdir()
    environment = _environment(Settings.load().model_copy(update={"quantize": None, "shard": None}), tmp_path / "rows")
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = Settings.load()
    assert (found.quantize, found.shard, found.precision) == (None, None, "bf16")


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
