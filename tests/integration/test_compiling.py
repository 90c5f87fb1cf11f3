"""``--compile``, with the real compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import WORDS, tiny_bert
from workers.engines import compiling
from workers.engines.compiling import compile_model
from workers.engines.fingerprint import fingerprint_of
from workers.engines.loading import load_model
from workers.engines.sentence_transformer import SentenceTransformerEncoder

TEXTS = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(i)) for i in (1, 9, 4, 30, 2, 60, 60, 61, 100, 3)]


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    """Return the folder of a small BERT; what is compiled is thrown away."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tiny_bert(tmp_path / "bert", layers=1)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("is_slow", [False, True])
def test_a_compiled_model_gives_the_same_vectors_and_compiles_no_more(tiny, monkeypatch, is_slow) -> None:
    """Whatever shapes come after loading, also a row alone; with MKL's products and with oneDNN's."""
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "has_slow_products", lambda: is_slow)
    spec = ModelSpec.parse(tiny)
    plain, engine = (
        SentenceTransformerEncoder(spec, "cpu", Settings(compile=compile_, max_batch_tokens=128))
        for compile_ in (False, True)
    )
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    found, expected = engine.encode(TEXTS, EncodeOptions()), plain.encode(TEXTS, EncodeOptions())
    alone = engine.encode(TEXTS[:1], EncodeOptions())
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    np.testing.assert_allclose(alone.values, expected.values[:1], atol=1e-5)
    assert found.errors == [None] * len(TEXTS)
    assert counters["stats"]["unique_graphs"] == graphs
    assert engine.weights == plain.weights


def test_an_opaque_layer_computes_the_same() -> None:
    """With and without a bias."""
    for bias in (True, False):
        layer = torch.nn.Linear(24, 40, bias=bias)
        rows = torch.randn(2, 3, 24)
        with torch.inference_mode():
            expected = layer(rows)
            layer.__class__ = compiling.OpaqueLinear
            torch.testing.assert_close(layer(rows), expected)


def test_without_a_compiler_one_line_says_so(tiny, tmp_path) -> None:
    """In a process of its own, because torch looks for it once."""
    code = (
        "import sys; from workers.engines.loading import load_model; from tasks.messages import ModelSpec\n"
        "from tasks.settings import Settings; from tasks.errors import UsageError\n"
        "try: load_model(ModelSpec.parse(sys.argv[1]), 'cpu', Settings(compile=True))\n"
        "except UsageError as exc: print('refused:', exc)"
    )
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code, tiny], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "refused: --compile needs a C++ compiler: install g++, or name one in CXX, or leave the option out.\n"
    )


def test_a_model_without_a_transformer_is_refused() -> None:
    """It names what the model begins with."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    with pytest.raises(UsageError, match="begins with Normalize"):
        compile_model(SentenceTransformer(modules=[Normalize()], device="cpu"))


def test_a_model_that_cannot_be_compiled_is_one_line(tiny, monkeypatch) -> None:
    """Without the compiler's pages of output."""
    model = load_model(ModelSpec.parse(tiny), "cpu", Settings())

    def fail(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    fingerprint = fingerprint_of(model)
    with pytest.raises(UsageError, match=r"cannot be compiled here \(RuntimeError: first line\)"):
        compile_model(model)
    assert fingerprint_of(model) == fingerprint
