"""The engine on a CUDA device. Not yet run: `make test-gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import tiny_bert
from workers.engines.sentence_transformer import SentenceTransformerEncoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXTS = [f"sentence number {i} of the corpus " * (i % 11 + 1) for i in range(500)]


def load(folder: str, device: str = "cuda", **settings: object) -> SentenceTransformerEncoder:
    """Load an engine."""
    return SentenceTransformerEncoder(ModelSpec.parse(folder), device, Settings.load(**settings))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A random BERT of two layers."""
    return tiny_bert(tmp_path / "model", hidden=256, limit=512)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have 1 GiB of the device."""
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.02)])
def test_vectors_are_those_of_the_cpu(folder: str, tmp_path: Path, precision: str, tolerance: float) -> None:
    """Whatever is under way at the same time, each row has its own vector."""
    expected = load(folder, "cpu", max_batch_tokens=1000).encode(TEXTS, EncodeOptions(normalize=True))
    engine = load(folder, precision=precision, state_dir=tmp_path)
    found = engine.encode(TEXTS, EncodeOptions(normalize=True))
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance)
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    assert found.errors == [None] * len(TEXTS)


@pytest.mark.usefixtures("little_memory")
def test_a_shortage_of_memory_halves_batches(folder: str) -> None:
    """Real allocations that really fail; the vectors are those of small batches."""
    engine = load(folder, max_batch_tokens=2**20, precision="fp32")
    texts = TEXTS * 20
    found = engine.encode(texts, EncodeOptions())
    assert found.memory_splits >= 1
    assert found.errors == [None] * len(texts)
    few = load(folder, max_batch_tokens=4096, precision="fp32").encode(TEXTS, EncodeOptions())
    np.testing.assert_allclose(found.values[: len(TEXTS)], few.values, atol=1e-4)


def test_reproducible_vectors_have_the_same_bits(folder: str) -> None:
    """In any company."""
    engine = load(folder, max_batch_tokens=4096)
    options = EncodeOptions(reproducible=True)
    together = engine.encode(TEXTS, options).values
    np.testing.assert_array_equal(together, engine.encode(TEXTS[::-1], options).values[::-1])
    np.testing.assert_array_equal(together[:3], engine.encode(TEXTS[:3], options).values)


def test_the_budget_is_found_within_the_memory_ratio(folder: str, tmp_path: Path) -> None:
    """Probing a GPU ends at its knee, far from the end of its memory."""
    engine = load(folder, state_dir=tmp_path)
    assert engine.batch_tokens >= 4096
    free, total = torch.cuda.mem_get_info()
    assert free >= 0.1 * total
