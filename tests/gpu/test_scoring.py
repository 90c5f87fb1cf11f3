"""Scoring engines on a CUDA device. Not yet run: `make test-gpu` where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.messages import ModelSpec
from tasks.options import ScoreOptions
from tasks.ports import Pair, Scorer
from tasks.settings import Settings
from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_cross_encoder
from workers.engines import load_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PAIRS = [Pair(f"which record has {i // 50}?", f"sentence {i} of the corpus " * (i % 11 + 1)) for i in range(500)]


def load(folder: str, device: str = "cuda", **settings: object) -> Scorer:
    """Load an engine."""
    loaded = Settings.load(operation="score", template="qwen3-reranker" if "causal" in folder else None, **settings)
    return load_engine(ModelSpec.parse(folder, "score"), device, loaded)  # type: ignore[return-value]


@pytest.fixture(params=["causal", "cross"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A random model of each kind."""
    make = tiny_causal if request.param == "causal" else tiny_cross_encoder
    return make(tmp_path / request.param)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.02)])
def test_scores_are_those_of_the_cpu(folder: str, tmp_path: Path, precision: str, tolerance: float) -> None:
    """Whatever is under way at the same time, each pair has its own score."""
    expected = load(folder, "cpu", max_batch_tokens=1000).score(PAIRS, ScoreOptions())
    found = load(folder, precision=precision, state_dir=tmp_path).score(PAIRS, ScoreOptions())
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance)
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    assert found.errors == [None] * len(PAIRS)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.02)])
@pytest.mark.parametrize("words", [1, 400])
def test_reused_prefixes_change_nothing_but_rounding(
    tmp_path: Path, precision: str, tolerance: float, words: int
) -> None:
    """Also behind a query that is many times as long as its documents."""
    pairs = [Pair(f"{pair.query} {'mill ' * words}", pair.document) for pair in PAIRS]
    engine: Any = load(tiny_causal(tmp_path / "causal"), precision=precision, state_dir=tmp_path)
    assert engine._causal.reuses
    found = engine.score(pairs, ScoreOptions())
    assert found.padded_tokens < found.n_tokens.sum()
    engine._causal.reuses = False
    expected = engine.score(pairs, ScoreOptions())
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance)
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    assert found.errors == expected.errors == [None] * len(pairs)


def test_reproducible_scores_have_the_same_bits(folder: str) -> None:
    """In any company."""
    engine = load(folder, max_batch_tokens=4096)
    options = ScoreOptions(reproducible=True)
    together = engine.score(PAIRS, options).values
    np.testing.assert_array_equal(together, engine.score(PAIRS[::-1], options).values[::-1])
    np.testing.assert_array_equal(together[:3], engine.score(PAIRS[:3], options).values)
