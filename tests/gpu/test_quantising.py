"""Quantised weights on a CUDA device. Not yet run: `make test-gpu` where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Pair
from tasks.settings import Settings
from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_bert
from workers.engines.causal_reranker import CausalReranker
from workers.engines.quantising import weight_bytes
from workers.engines.sentence_transformer import SentenceTransformerEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXTS = [f"sentence number {i} of the corpus " * (i % 11 + 1) for i in range(200)]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.02)])
def test_vectors_are_those_of_the_cpu(
    tmp_path: Path, quantize: str, precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same quantised numbers, restored on both devices."""
    monkeypatch.setattr("workers.engines.quantising.has_integer_products", lambda: False)
    spec = ModelSpec.parse(tiny_bert(tmp_path / "model", hidden=256, limit=512))
    options = EncodeOptions(normalize=True)
    on_cpu = SentenceTransformerEncoder(spec, "cpu", Settings(quantize=quantize, max_batch_tokens=1000))
    engine = SentenceTransformerEncoder(
        spec, "cuda", Settings(quantize=quantize, precision=precision, state_dir=tmp_path)
    )
    np.testing.assert_allclose(
        engine.encode(TEXTS, options).values, on_cpu.encode(TEXTS, options).values, atol=tolerance
    )
    if precision == "fp32":
        assert engine.weights == on_cpu.weights


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.6), ("int4", 0.4)])
def test_the_device_never_holds_the_unquantised_model(tmp_path: Path, quantize: str, most: float) -> None:
    """Its peak while loading stays below what the weights in bf16 would take."""
    spec = ModelSpec.parse(tiny_bert(tmp_path / "model", hidden=1024, layers=8))
    full = weight_bytes(SentenceTransformerEncoder(spec, "cuda", Settings(max_batch_tokens=128))._model)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = SentenceTransformerEncoder(spec, "cuda", Settings(quantize=quantize, max_batch_tokens=128))
    assert weight_bytes(engine._model) < most * full
    assert torch.cuda.max_memory_allocated() - before < 0.9 * full


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_causal_rerankers_pass_their_checks_and_reuse_prefixes(tmp_path: Path, quantize: str) -> None:
    """A pair alone scores as among others, as far as bf16 goes."""
    spec = ModelSpec.parse(tiny_causal(tmp_path / "m"), "score")
    settings = Settings(operation="score", quantize=quantize, template="qwen3-reranker", state_dir=tmp_path)
    engine = CausalReranker(spec, "cuda", settings)
    assert engine._causal.reuses
    pairs = [Pair("Why was the road closed?", text) for text in TEXTS[:20]]
    alone = [engine.score([pair], ScoreOptions()).values[0] for pair in pairs]
    np.testing.assert_allclose(engine.score(pairs, ScoreOptions()).values, alone, atol=0.1)
