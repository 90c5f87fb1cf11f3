"""One slot over two devices: the same results as on one, from half of the weights on each. Two ranks on the CPU."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn
from transformers import AutoModelForCausalLM

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tests import sharded
from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_bert, tiny_cross_encoder, tiny_decoder
from workers.engines import causal_model, load_engine, loading
from workers.memory import SpreadMemory
from workers.planning import RANKS_VARIABLE
from workers.sharding.placing import check_placed
from workers.sharding.tensors import is_whole

#: Largest difference of a value.
TOLERANCE = 1e-5
#: Seconds that two processes may take to import torch, load and run, on a busy machine.
PATIENCE_S = 240


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the folders of models by name."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "decoder": tiny_decoder(folder / "decoder"),
        "bert": tiny_bert(folder / "bert"),
        "causal": tiny_causal(folder / "causal"),
        "cross": tiny_cross_encoder(folder / "cross", "modernbert"),
    }


def load(model: str, operation: str, kind: str | None, state: Any) -> Any:
    """Load an engine in this process."""
    settings = sharded.settings(kind, model, operation, state)
    return load_engine(ModelSpec.parse(model, operation), "cpu", settings)


def start(kind, model, operation, out, *idle_s):
    """Run a sharded slot in a process of its own; return how it ended."""
    command = [sys.executable, "-m", "tests.sharded", kind, model, operation, str(out), *idle_s]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


#: Python runs a file of this name at its start. The ranks then wait for each other no longer than so many seconds.
HASTE = """
import sys
if any("sharding.rank" in word or "tests.sharded" in word for word in sys.orig_argv):
    import workers.sharding.group
    workers.sharding.group.CALL_S = {call_s}
"""
CALL_S = 20


@pytest.mark.parametrize(
    ("kind", "name", "operation"),
    [
        ("tensor", "decoder", "encode"),
        ("fsdp", "decoder", "encode"),
        ("tensor", "causal", "score"),
        ("fsdp", "causal", "score"),
        ("fsdp", "cross", "score"),
    ],
)
def test_two_ranks_give_what_one_device_gives(models, tmp_path, monkeypatch, kind, name, operation):
    """Values, fixed shapes and the fingerprint are the same, and a rank holds about half of the parameters.

    The first one is idle for longer than ranks may wait within a call: a worker may be so for days. Its ranks meet in a
    folder with a space in its name.
    """
    idle_s = []
    if (kind, name) == ("tensor", "decoder"):
        (tmp_path / "sitecustomize.py").write_text(HASTE.format(call_s=CALL_S))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "a b").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "a b"))
        idle_s = [str(CALL_S + 3)]
    whole = load(models[name], operation, None, tmp_path)
    done = start(kind, models[name], operation, tmp_path / "out.npz", *idle_s)
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.load(tmp_path / "out.npz")
    expected = sharded.run(whole, operation)
    np.testing.assert_allclose(found["values"], expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found["again"], expected, atol=TOLERANCE, rtol=0)
    assert found["weights"] == whole.weights
    n_parameters = count(models[name], operation)
    most = 0.8 if kind == "fsdp" and operation == "score" else 0.52  # FSDP keeps those vocabularies whole once it ran
    assert 0.48 * n_parameters <= found["own"] <= most * n_parameters


def count(model: str, operation: str) -> int:
    """Return the number of a model's parameters; an engine on a CPU may have packed them away."""
    if operation == "encode":
        read: Any = SentenceTransformer(model, device="cpu")
    elif "causal" in model:
        read = AutoModelForCausalLM.from_pretrained(model)
    else:
        read = CrossEncoder(model, device="cpu")
    return sum(parameter.numel() for parameter in read.parameters())


def test_a_family_without_a_plan_is_refused_with_the_alternative(models, tmp_path):
    """In one line, by a slot whose ranks are gone when it ends."""
    done = start("tensor", models["bert"], "encode", tmp_path / "out.npz")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "UsageError" in line]
    assert line.endswith(
        f"--shard tensor: transformers has no plan for parting BertModel ({models['bert']}). Take --shard fsdp or auto."
    )


@pytest.mark.parametrize(
    ("kind", "make", "said"),
    [
        ("tensor", partial(tiny_decoder, hidden=48, heads=3), "3 num_attention_heads of .* among 2 devices.*fsdp or a"),
        ("fsdp", tiny_bert, r"transformers has no plan for parting BertModel .*. Take --shard auto\."),
    ],
)
def test_what_cannot_be_parted_evenly_is_refused(tmp_path, monkeypatch, kind, make, said):
    """Before a batch: heads that do not go round, and layers that FSDP would gather all at once."""
    model = make(tmp_path / "model")
    monkeypatch.setenv(RANKS_VARIABLE, "2")
    loaded = SentenceTransformer(model, device="cpu")
    with pytest.raises(UsageError, match=said):
        check_placed(ModelSpec.parse(model), loaded, sharded.settings(kind, model, "encode", tmp_path))


@pytest.mark.parametrize(("name", "operation"), [("decoder", "encode"), ("causal", "score")])
def test_layers_may_lie_in_several_places(models, tmp_path, monkeypatch, name, operation):
    """One process; here memory and disk take the place of two GPUs, and the engine copes with what is elsewhere."""
    whole = load(models[name], operation, None, tmp_path)
    expected = sharded.run(whole, operation)
    placed = {
        "device_map": "auto",
        "max_memory": {"cpu": 700_000},
        "offload_folder": str(tmp_path / "offloaded"),
        "offload_buffers": True,
    }
    for module in (loading, causal_model):
        monkeypatch.setattr(module, "placement", lambda *_: placed)
        monkeypatch.setattr(module, "check_placed", lambda *_: None)
    spread = load(models[name], operation, "auto", tmp_path)
    model = sharded.model_of(spread)
    assert not is_whole(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu", "meta"}
    np.testing.assert_allclose(sharded.run(spread, operation), expected, atol=TOLERANCE, rtol=0)
    assert spread.weights == whole.weights


def test_a_model_that_does_not_fit_the_named_devices_is_refused(models, tmp_path, monkeypatch):
    """It would lie in memory or on disk, and each batch would fetch it from there."""
    placed = {"device_map": "auto", "max_memory": {"cpu": 700_000}, "offload_folder": str(tmp_path / "offloaded")}
    monkeypatch.setattr(loading, "placement", lambda *_: placed)
    with pytest.raises(UsageError, match="does not fit: no room for layers that would lie in cpu and disk"):
        load(models["decoder"], "encode", "auto", tmp_path)


@pytest.mark.parametrize("kind", ["tensor", "fsdp"])
def test_a_model_without_a_transformer_is_not_parted(tmp_path, monkeypatch, kind):
    """Each rank would compute all of it."""
    monkeypatch.setenv(RANKS_VARIABLE, "2")
    with pytest.raises(UsageError, match=f"--shard {kind}: .* has no layers to part among devices. Leave it out"):
        check_placed(
            ModelSpec.parse("org/static"), nn.EmbeddingBag(9, 4), sharded.settings(kind, "m", "encode", tmp_path)
        )


@pytest.fixture
def gpus(monkeypatch):
    """Return what two GPUs hold at most, as CUDA would tell it; it can be changed."""
    peaks = [50, 10]
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(peaks))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda index: peaks[index])
    return peaks


def test_what_a_batch_takes_is_seen_on_whichever_device_grows(gpus):
    """Not on the one that holds most of the weights."""
    memory = SpreadMemory("cuda", 0.8)
    memory.reset_peak()
    before = memory.peak_bytes
    gpus[1] = 30
    assert memory.peak_bytes - before == 20


def test_auto_on_a_cpu_is_a_slot_as_always(models, tmp_path):
    """There is but one device, and nothing to spread."""
    engine = load(models["decoder"], "encode", "auto", tmp_path)
    assert is_whole(sharded.model_of(engine))
