"""LASER's engine on tiny checkpoints in the published formats, against torch's own layers."""

from __future__ import annotations

import errno
import math
import os
import pickle
import shutil
from argparse import Namespace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sacremoses import MosesPunctNormalizer
from sentencepiece import SentencePieceProcessor

from tasks import object_store
from tasks.errors import DeviceFull, ModelNotFound, StoreUnavailable, UsageError
from tasks.languages import encode_by_language
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.ports import Passage
from tasks.settings import Settings
from tests.tiny_laser import make_laser2, make_laser3, words
from workers import engines
from workers.engines import load_engine
from workers.engines.laser import by_language, text_steps
from workers.engines.laser.bilstm import BiLstm
from workers.engines.laser.by_language import LaserByLanguage
from workers.engines.laser.download import Downloads
from workers.engines.laser.encoder import LaserEncoder
from workers.engines.laser.reading import read_checkpoint, read_vocabulary, reading
from workers.engines.laser.text_steps import EOS, PAD, UNKNOWN, TextSteps
from workers.engines.laser.transformer import Transformer
from workers.memory import DeviceMemory

WORDS = words(7, 400)
#: Texts of all lengths in many scripts.
TEXTS = [
    "",
    "   ",
    "One line.",
    "emoji 🎉 and a NUL \x00, a tab\t, a no-break space\u00a0.",
    "<s> <pad> </s> <unk> <mask>",
    "word " * 300,
    *(" ".join(WORDS[i : i + 1 + i % 23]) for i in range(60)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """LASER2 and two students: one with a masked objective, one with pieces of its own."""
    folder = tmp_path_factory.mktemp("laser")
    make_laser2(folder)
    make_laser3(folder, "wol_Latn", masked=True)
    make_laser3(folder, "kab_Latn", masked=False, own_pieces=True, has_decoder=False, seed=1)
    return folder


def settings(tmp_path: Path, **others) -> Settings:
    """Return settings that need no probing."""
    return Settings(max_batch_tokens=256, state_dir=tmp_path, **others)


@pytest.fixture(params=["laser2", "laser3-wol_Latn", "laser3-kab_Latn"])
def engine(request, folder, tmp_path) -> LaserEncoder:
    """Each kind of checkpoint."""
    return LaserEncoder(request.param, folder, "cpu", settings(tmp_path))


@pytest.fixture
def chooser(folder, tmp_path) -> LaserByLanguage:
    """All checkpoints of the folder."""
    loaded = load_engine(ModelSpec.parse(f"laser:{folder}"), "cpu", settings(tmp_path))
    assert isinstance(loaded, LaserByLanguage)
    return loaded


def lstm_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """Encode one by one with torch's LSTM."""
    checkpoint = torch.load(folder / "laser2.pt")
    params = checkpoint["params"]
    embedding = torch.nn.Embedding(params["num_embeddings"], params["embed_dim"], PAD)
    lstm = torch.nn.LSTM(params["embed_dim"], params["hidden_size"], params["num_layers"], bidirectional=True)
    both = torch.nn.ModuleDict({"embed_tokens": embedding, "lstm": lstm})
    both.load_state_dict(checkpoint["model"])
    steps = TextSteps(folder / "laser2.spm", checkpoint["dictionary"], begins=False)
    with torch.inference_mode():
        found = [lstm(embedding(torch.from_numpy(row).long()))[0].amax(0).numpy() for row in steps(texts)]
    return np.stack(found)


def test_laser2_gives_the_vectors_of_torch_s_lstm(folder, tmp_path):
    """In batches of many lengths, by penstock's own steps, within rounding."""
    found = LaserEncoder("laser2", folder, "cpu", settings(tmp_path)).encode(TEXTS, EncodeOptions())
    assert found.errors == [None] * len(TEXTS)
    np.testing.assert_allclose(found.values, lstm_vectors(folder, TEXTS), atol=1e-6)
    assert found.padded_tokens == found.n_tokens.sum()


@pytest.mark.parametrize("is_fixed", [False, True])
def test_an_lstm_that_runs_whole_gives_the_same(folder, is_fixed):
    """The way that a GPU takes, here by torch's own CPU kernels; lengths in any order, and each row alone."""
    content = read_checkpoint(folder / "laser2.pt")
    stepwise, whole = (BiLstm(content, torch.float32, "cpu") for _ in range(2))
    whole.fused = torch.nn.LSTM(16, 16, 2, bidirectional=True)
    whole.fused.load_state_dict({n.removeprefix("lstm."): w for n, w in content["model"].items() if "lstm." in n})
    lengths = torch.tensor([2, 9, 1, 5])
    tokens = torch.full((4, 12 if is_fixed else 9), PAD)
    for i, length in enumerate(lengths):
        tokens[i, :length] = torch.arange(4, 4 + length) + i
    with torch.inference_mode():
        alone = [stepwise(tokens[i : i + 1, :length], lengths[i : i + 1]) for i, length in enumerate(lengths)]
        for found in (whole(tokens, lengths), stepwise(tokens, lengths, is_fixed=is_fixed)):
            torch.testing.assert_close(found, torch.cat(alone), atol=1e-6, rtol=0)


def student_vector(checkpoint: dict, ids: np.ndarray) -> np.ndarray:
    """Encode one row with torch's own transformer layers, in double precision."""
    cfg, model = checkpoint["cfg"]["model"], checkpoint["model"]
    weights = {name.removeprefix("encoder."): tensor.double() for name, tensor in model.items()}
    dim, half = cfg.encoder_embed_dim, cfg.encoder_embed_dim // 2
    places = torch.arange(2, 2 + len(ids), dtype=torch.float64)
    rates = torch.tensor([10_000.0 ** (-i / (half - 1)) for i in range(half)], dtype=torch.float64)
    angles = torch.outer(places, rates)
    values = math.sqrt(dim) * weights["embed_tokens.weight"][torch.from_numpy(ids).long()]
    values = (values + torch.cat([angles.sin(), angles.cos()], dim=1)).unsqueeze(0)
    for i in range(cfg.encoder_layers):
        own = {n.removeprefix(f"layers.{i}."): w for n, w in weights.items() if n.startswith(f"layers.{i}.")}
        layer = torch.nn.TransformerEncoderLayer(dim, cfg.encoder_attention_heads, cfg.encoder_ffn_embed_dim, 0.0)
        parts = [f"self_attn.{part}_proj" for part in "qkv"]
        renamed = {
            "self_attn.in_proj_weight": torch.cat([own[f"{part}.weight"] for part in parts]),
            "self_attn.in_proj_bias": torch.cat([own[f"{part}.bias"] for part in parts]),
        }
        others = {"self_attn.out_proj": "self_attn.out_proj", "fc1": "linear1", "fc2": "linear2"}
        others |= {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"}
        for theirs, torchs in others.items():
            renamed |= {f"{torchs}.{kind}": own[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
        layer.load_state_dict(renamed)
        layer.double().train()  # in evaluation it takes other kernels; there is no dropout
        values = layer(values.transpose(0, 1)).transpose(0, 1)
    if "layer_norm.weight" in weights:
        values = torch.nn.functional.layer_norm(
            values, (dim,), weights["layer_norm.weight"], weights["layer_norm.bias"]
        )
    return values[0, 0].detach().numpy()


@pytest.mark.parametrize("name", ["laser3-wol_Latn", "laser3-kab_Latn"])
def test_a_student_gives_the_vectors_of_torch_s_layers(name, folder, tmp_path):
    """Both kinds: with the masked objective's last norm, and without."""
    engine = LaserEncoder(name, folder, "cpu", settings(tmp_path))
    with torch.serialization.safe_globals([Namespace]):
        checkpoint = torch.load(folder / f"{name}.v1.pt")
    found = engine.encode(TEXTS, EncodeOptions())
    rows = engine._prepare(TEXTS, EncodeOptions(), engine._most).rows
    expected = np.stack([student_vector(checkpoint, row) for row in rows])
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_a_row_s_vector_is_that_of_the_row_alone(engine):
    """Whatever stands beside it in a batch."""
    together = engine.encode(TEXTS, EncodeOptions()).values
    alone = np.concatenate([engine.encode([text], EncodeOptions()).values for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=1e-6)


def test_a_reproducible_row_has_the_same_bits_in_any_company(engine):
    """And they are the vectors that it has otherwise, within rounding."""
    how = EncodeOptions(reproducible=True)
    together = engine.encode(TEXTS, how).values
    parts = [engine.encode(TEXTS[i : i + 7], how).values for i in range(0, len(TEXTS), 7)]
    assert np.array_equal(together, np.concatenate(parts))
    np.testing.assert_allclose(together, engine.encode(TEXTS, EncodeOptions()).values, atol=2e-6)


def test_max_tokens_cuts_a_row_and_keeps_its_end(engine):
    """The last token is still the end of a text; the report says what was cut."""
    special = engine._steps.n_special
    limit = special + 4
    prepared = engine._prepare(["word " * 40, ""], EncodeOptions(), limit)
    assert prepared.rows[0][-1] == EOS
    found = engine.encode(["word " * 40, ""], EncodeOptions(max_tokens=limit))
    assert found.n_tokens[0] == limit
    assert found.truncated.tolist() == [True, False]
    assert engine.check(EncodeOptions(max_tokens=special)) == (
        f"--max-tokens {special} leaves no room beside the {special} special tokens"
    )


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_text_of_any_length_is_read_whole(engine, reproducible):
    """Students too: the published code cuts none at the 1024 tokens that they were trained with."""
    long = " ".join(WORDS * 3)
    found = engine.encode([long, f"{long} end"], EncodeOptions(reproducible=reproducible))
    assert found.n_tokens.min() > 1200
    assert not found.truncated.any()
    assert np.ptp(found.values, axis=0).max() > 0


def test_normalized_vectors_have_length_1(engine):
    """After the model, as for other models."""
    raw, scaled = (engine.encode(TEXTS[:9], EncodeOptions(normalize=is_on)).values for is_on in (False, True))
    np.testing.assert_allclose(scaled, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "query: "}, "LASER was trained without prompts"),
        ({"truncate_dim": 16}, "LASER's vectors are not made to be cut"),
    ],
)
def test_options_that_are_not_for_laser_are_refused(chooser, options, said):
    """In one sentence."""
    assert said in str(chooser.check(EncodeOptions(language="eng", **options)))


@pytest.mark.parametrize(
    "option", [{"backend": "onnx"}, {"compile": True}, {"trust_remote_code": True}, {"precision": "fp16"}]
)
def test_settings_that_do_nothing_for_laser_are_refused(folder, tmp_path, option):
    """They name the option."""
    with pytest.raises(UsageError, match=f"--{next(iter(option)).replace('_', '-')}"):
        load_engine(ModelSpec.parse(f"laser:{folder}"), "cpu", settings(tmp_path, **option))


def test_text_steps_are_the_published_ones(folder):
    """Unprintable characters, punctuation, case, pieces: each is seen in the text that reaches the pieces."""
    pieces = SentencePieceProcessor(model_file=str(folder / "laser2.spm"))
    names = [pieces.IdToPiece(i) for i in range(3, pieces.GetPieceSize())]
    steps = TextSteps(folder / "laser2.spm", {name: 4 + i for i, name in enumerate(names)}, begins=False)
    for text, cleaned in (
        ("A\x00B\u200bC\u00adD\ue000E", "a b c d e"),
        ("«a» „b“ ‘c’ ‚d", '"a" "b" "c" "d'),
        ("1\u00a02 …", "1.2 ..."),
        ('"a", b', '"a," b'),
        ("ÀÉ ΑΣ İ", "àé ας i̇"),
    ):
        expected = [4 + names.index(p) if p in names else UNKNOWN for p in pieces.encode(cleaned, out_type=str)]
        assert steps([text])[0].tolist() == [*expected, EOS], text


def test_the_punctuation_rules_of_others_stay_as_they_are(folder):
    """Two of them are changed for LASER alone."""
    before = MosesPunctNormalizer("en", perl_parity=True).normalize("‘a‚")
    TextSteps(folder / "laser2.spm", {}, begins=False)
    assert MosesPunctNormalizer("en", perl_parity=True).normalize("‘a‚") == before


def test_students_share_pieces_and_their_numbers(folder, tmp_path):
    """Most have those of LASER2. Another file of that name is read anew."""
    for name in ("laser2.spm", "laser2.cvocab"):
        shutil.copy(folder / name, tmp_path)
    vocabulary = tmp_path / "laser2.cvocab"
    numbers = read_vocabulary(vocabulary)
    assert read_vocabulary(vocabulary) is numbers
    one, other = (TextSteps(tmp_path / "laser2.spm", numbers, begins=begins) for begins in (False, True))
    assert one._pieces is other._pieces
    assert one._numbers is other._numbers
    vocabulary.write_text("a 1\n")
    assert len(read_vocabulary(vocabulary)) == 5


def test_a_vocabulary_of_another_length_is_named_with_its_weights(folder, tmp_path):
    """Either may be the wrong one."""
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    lines = (cut / "laser2.cvocab").read_text(encoding="utf-8").splitlines(keepends=True)
    (cut / "laser2.cvocab").write_text("".join(lines[:-3]), encoding="utf-8")
    n_tokens = len(lines) + 4
    said = rf"laser2\.cvocab has {n_tokens - 3} tokens, .*laser3-wol_Latn\.v1\.pt is for {n_tokens}: one of them"
    with pytest.raises(ModelNotFound, match=said):
        LaserEncoder("laser3-wol_Latn", cut, "cpu", settings(tmp_path))


def test_a_dictionary_that_does_not_fit_is_said_when_it_is_loaded(folder, tmp_path):
    """And not at the first text that has the piece."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    content = torch.load(spoilt / "laser2.pt")
    content["dictionary"][next(reversed(content["dictionary"]))] = 10**6
    torch.save(content, spoilt / "laser2.pt")
    with pytest.raises(ModelNotFound, match=r"laser2\.pt is not LASER's .*numbers beyond the \d+ rows"):
        LaserEncoder("laser2", spoilt, "cpu", settings(tmp_path))


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("encoder_learned_pos", True, "its positions are not sines"),
        ("no_token_positional_embeddings", True, "its positions are not sines"),
        ("layernorm_embedding", True, "a norm behind its embedding"),
        ("activation_fn", "tanh", "its activation function 'tanh' is none of"),
        ("prepend_bos", False, "a first token that it does not have"),
    ],
)
def test_a_student_of_another_kind_is_refused(folder, setting, value, said):
    """Its weights may fit all the same, and its vectors would be others."""
    content = read_checkpoint(folder / "laser3-wol_Latn.v1.pt")
    setattr(content["cfg"]["model"], setting, value)
    with pytest.raises(ValueError, match=said):
        Transformer(content, len(read_vocabulary(folder / "laser2.cvocab")) + 1, torch.float32, "cpu")


def test_a_student_that_does_not_say_its_longest_text_is_read(folder):
    """There is no longest one."""
    content = read_checkpoint(folder / "laser3-wol_Latn.v1.pt")
    del content["cfg"]["model"].max_source_positions
    Transformer(content, len(read_vocabulary(folder / "laser2.cvocab")) + 1, torch.float32, "cpu")


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 200 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 200 bytes"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_no_fault_of_a_file(tmp_path, fault):
    """Nobody shall remove a sound file for it."""
    with pytest.raises(type(fault)) as caught, reading(tmp_path / "laser2.pt"):
        raise fault
    assert caught.value is fault


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_said_to_be_wrong(tmp_path, number):
    """Its permissions or its disk are."""
    with pytest.raises(ModelNotFound) as caught, reading(tmp_path / "laser2.pt"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"{tmp_path}/laser2.pt cannot be read ({os.strerror(number)}): look at its permissions and its disk."
    )


class Evil:
    """What a file must not make penstock do."""

    def __reduce__(self):
        return os.system, ("true",)


def damage(folder: Path, name: str, how: str) -> None:
    """Spoil one file."""
    path = folder / name
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404 Not Found</html>\n")
    elif how == "code":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    elif how == "shape":
        content = torch.load(path)
        content["model"]["lstm.weight_hh_l0"] = torch.ones(2, 2)
        torch.save(content, path)
    elif how == "other":
        torch.save({"weight": torch.ones(2)}, path)
    else:
        torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("laser2.pt", how) for how in ("missing", "cut", "text", "code", "shape", "other", "list")),
        *(("laser2.spm", how) for how in ("missing", "cut", "text", "empty")),
        *(("laser2.cvocab", how) for how in ("missing", "text")),
        *(("laser3-wol_Latn.v1.pt", how) for how in ("cut", "code", "other")),
    ],
)
def test_a_damaged_file_is_said_in_one_line(folder, tmp_path, name, how):
    """Which one, and what to do; nothing in it is run."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    damage(spoilt, name, how)
    checkpoint = "laser2" if name in {"laser2.pt", "laser2.spm"} else "laser3-wol_Latn"
    with pytest.raises(ModelNotFound) as caught:
        LaserEncoder(checkpoint, spoilt, "cpu", settings(tmp_path))
    said = str(caught.value)
    assert said.startswith(str(spoilt / name))
    assert "\n" not in said
    assert said.endswith(("remove it, or replace it.", "it is one of LASER's published files."))


def test_a_checkpoint_in_torch_s_old_form_is_read(folder, tmp_path):
    """As it wrote them before its version 1.6."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    torch.save(torch.load(old / "laser2.pt"), old / "laser2.pt", _use_new_zipfile_serialization=False)
    expected = LaserEncoder("laser2", folder, "cpu", settings(tmp_path)).encode(TEXTS, EncodeOptions()).values
    found = LaserEncoder("laser2", old, "cpu", settings(tmp_path)).encode(TEXTS, EncodeOptions()).values
    assert np.array_equal(found, expected)


def test_the_fingerprint_is_that_of_content_and_numbers(folder, tmp_path):
    """Copies have the same one; other weights, pieces or numbers another."""

    def fingerprint(folder: Path, **others) -> str:
        return LaserEncoder("laser2", folder, "cpu", settings(tmp_path, **others)).weights

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert fingerprint(copy) == fingerprint(folder)
    found = {fingerprint(folder), fingerprint(folder, precision="bf16")}
    make_laser2(copy, seed=1)
    found.add(fingerprint(copy))
    shutil.copy(folder / "laser2.pt", copy)
    found.add(fingerprint(copy))
    assert len(found) == 4


def test_versions_of_what_cuts_texts_are_in_the_fingerprint(folder, tmp_path, monkeypatch):
    """Slots that cut them differently do not serve one job."""
    for package in ("sacremoses", "sentencepiece"):
        assert f"{package} {version(package)}" in text_steps.FACTS
    before = LaserEncoder("laser2", folder, "cpu", settings(tmp_path)).weights
    monkeypatch.setattr(text_steps, "FACTS", "others")
    assert LaserEncoder("laser2", folder, "cpu", settings(tmp_path)).weights != before


def test_a_folder_s_fingerprint_is_that_of_all_its_students(folder, tmp_path):
    """A student that was trained again has the same name and size."""

    def fingerprint(place: Path) -> str:
        return load_engine(ModelSpec.parse(f"laser:{place}"), "cpu", settings(tmp_path)).weights

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = fingerprint(copy)
    assert before == fingerprint(folder)
    make_laser3(copy, "wol_Latn", masked=True, seed=9)
    found = {before, fingerprint(copy)}
    (copy / "laser3-wol_Latn.v1.pt").unlink()
    found.add(fingerprint(copy))
    assert len(found) == 3


def test_bf16_vectors_are_near_to_those_in_fp32(folder, tmp_path):
    """Of all kinds of checkpoints."""
    for name in ("laser2", "laser3-wol_Latn"):
        full, half = (
            LaserEncoder(name, folder, "cpu", settings(tmp_path, precision=precision)).encode(TEXTS, EncodeOptions())
            for precision in ("fp32", "bf16")
        )
        cosines = (full.values * half.values).sum(1) / (
            np.linalg.norm(full.values, axis=1) * np.linalg.norm(half.values, axis=1)
        )
        assert cosines.min() > 0.99


def test_rows_go_to_the_checkpoint_of_their_language(chooser, folder, tmp_path):
    """In one chunk; students are loaded when they are needed, and kept."""
    assert chooser.loaded == ["laser2"]
    rows = [Passage(f"line {i}", ["eng_Latn", "wol", "kabyle", "", "xx"][i % 5]) for i in range(40)]
    options = EncodeOptions(language_field="language")
    assert chooser.check(options) is None
    found = encode_by_language(chooser, rows, options, lambda _: None)
    assert chooser.loaded == ["laser2", "laser3-wol_Latn", "laser3-kab_Latn"]
    for i, name in enumerate(("laser2", "laser3-wol_Latn", "laser3-kab_Latn")):
        alone = LaserEncoder(name, folder, "cpu", settings(tmp_path))
        assert np.array_equal(
            found.values[i::5], alone.encode([row.text for row in rows[i::5]], EncodeOptions()).values
        )
    assert "has no language in field 'language'" in str(found.errors[3])
    assert "LASER has no language 'xx'" in str(found.errors[4])


def test_a_language_whose_student_is_not_in_the_folder_is_refused(chooser, folder):
    """The sentence names the file."""
    assert chooser.check(EncodeOptions(language="hin")) == (
        f"language 'hin' needs laser3-hin_Deva.v1.pt, which is not in {folder}"
    )
    assert "--model laser:laser2" in str(chooser.check(EncodeOptions()))


def test_the_student_that_was_not_used_for_longest_goes_first(chooser, monkeypatch):
    """When there is no room for another; LASER2 stays."""
    chooser.encode(["a"], EncodeOptions(language="wol"))
    monkeypatch.setattr(DeviceMemory, "room_bytes", property(lambda _: 0 if len(chooser.loaded) > 1 else 10**9))
    chooser.encode(["a"], EncodeOptions(language="kab"))
    assert chooser.loaded == ["laser2", "laser3-kab_Latn"]
    chooser.encode(["a"], EncodeOptions(language="eng"))
    assert chooser.loaded == ["laser2", "laser3-kab_Latn"]


def test_a_student_for_which_there_is_no_room_at_all_is_not_loaded(chooser, monkeypatch):
    """Others have the memory, and would lose more of it."""
    chooser.encode(["a"], EncodeOptions(language="wol"))
    monkeypatch.setattr(DeviceMemory, "room_bytes", 1)
    with pytest.raises(DeviceFull, match=r"laser3-kab_Latn takes \d+ MB, and the device has room for 0 MB\."):
        chooser.encode(["a"], EncodeOptions(language="kab"))
    assert chooser.loaded == ["laser2"]


def test_options_that_a_student_cannot_serve_spoil_its_rows_alone(chooser):
    """It has a special token more than LASER2."""
    options = EncodeOptions(language_field="language", max_tokens=2)
    assert chooser.check(options) is None
    found = encode_by_language(chooser, [Passage("a", "eng"), Passage("a", "wol")], options, lambda _: None)
    assert found.errors == [None, "--max-tokens 2 leaves no room beside the 2 special tokens"]


def test_a_student_of_somebody_s_own_is_chosen_by_its_code(folder, tmp_path):
    """No published list has it."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    make_laser3(own, "xyz_Latn", masked=True)
    chooser = load_engine(ModelSpec.parse(f"laser:{own}"), "cpu", settings(tmp_path))
    assert chooser.check(EncodeOptions(language="xyz_Latn")) is None
    assert chooser.encode(["a"], EncodeOptions(language="xyz")).errors == [None]
    assert chooser.loaded == ["laser2", "laser3-xyz_Latn"]


def test_a_student_says_what_it_was_loaded_from(chooser, caplog):
    """Of downloaded ones the fingerprint of a job knows only the names."""
    caplog.set_level("INFO")
    chooser.encode(["a"], EncodeOptions(language="wol"))
    (record,) = [record for record in caplog.records if record.getMessage() == "Loaded laser3-wol_Latn"]
    assert record.weights == chooser._students["laser3-wol_Latn"].weights


def test_a_damaged_student_spoils_its_own_rows_alone(folder, tmp_path):
    """They are error rows; other languages go on."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    damage(spoilt, "laser3-wol_Latn.v1.pt", "cut")
    chooser = load_engine(ModelSpec.parse(f"laser:{spoilt}"), "cpu", settings(tmp_path))
    found = chooser.encode(["a", "b"], EncodeOptions(language="wol"))
    assert all("laser3-wol_Latn.v1.pt is not LASER's published file" in str(error) for error in found.errors)
    assert chooser.encode(["a"], EncodeOptions(language="eng")).errors == [None]


def test_a_damaged_student_is_read_once(folder, tmp_path, monkeypatch):
    """Until its file is another one."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    damage(spoilt, "laser3-wol_Latn.v1.pt", "cut")
    chooser = load_engine(ModelSpec.parse(f"laser:{spoilt}"), "cpu", settings(tmp_path))
    loads = []
    load = by_language.load_encoder
    monkeypatch.setattr(by_language, "load_encoder", lambda *given: loads.append(given) or load(*given))
    said = [chooser.encode(["a"], EncodeOptions(language="wol")).errors for _ in range(3)]
    assert said[0] == said[1] == said[2] != [None]
    assert len(loads) == 1
    shutil.copy(folder / "laser3-wol_Latn.v1.pt", spoilt)
    assert chooser.encode(["a"], EncodeOptions(language="wol")).errors == [None]


def test_a_student_that_was_removed_spoils_its_own_rows_alone(folder, tmp_path):
    """It was there when the worker started."""
    less = tmp_path / "less"
    shutil.copytree(folder, less)
    chooser = load_engine(ModelSpec.parse(f"laser:{less}"), "cpu", settings(tmp_path))
    (less / "laser3-wol_Latn.v1.pt").unlink()
    (error,) = chooser.encode(["a"], EncodeOptions(language="wol")).errors
    assert error == f"{less}/laser3-wol_Latn.v1.pt is missing; it is one of LASER's published files."


def test_a_student_that_cannot_be_downloaded_spoils_its_own_rows_alone(chooser, tmp_path, monkeypatch):
    """Its chunk does not come again for ever; the rows name address, files and folder."""
    quick = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(object_store, "RETRIES", quick)
    chooser._downloads = Downloads("http://127.0.0.1:9/laser", tmp_path)
    (error,) = chooser.encode(["a"], EncodeOptions(language="wol")).errors
    assert "cannot be downloaded from http://127.0.0.1:9/laser" in error
    assert f"Put laser3-wol_Latn.v1.pt, laser2.spm, laser2.cvocab into {tmp_path}" in error
    assert chooser.encode(["a"], EncodeOptions(language="eng")).errors == [None]


def test_a_student_that_finds_no_memory_hands_its_chunk_back(chooser, monkeypatch):
    """It is nobody's row's fault."""

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(by_language, "load_encoder", fail)
    with pytest.raises(DeviceFull):
        chooser.encode(["a"], EncodeOptions(language="wol"))


def test_a_student_whose_files_are_on_their_way_hands_its_chunk_back(chooser, tmp_path, monkeypatch):
    """The chunk comes again."""
    chooser._downloads = Downloads("http://127.0.0.1:9/laser", tmp_path)

    def wait(self, names, for_s):
        raise StoreUnavailable(f"{names[0]} is being downloaded")

    monkeypatch.setattr(Downloads, "wait", wait)
    with pytest.raises(StoreUnavailable, match=r"laser3-wol_Latn\.v1\.pt is being downloaded"):
        chooser.encode(["a"], EncodeOptions(language="wol"))


def test_a_model_is_loaded_once(folder, tmp_path):
    """As the receipt of a chunk says."""
    before = engines.loads()
    load_engine(ModelSpec.parse(f"laser:{folder}"), "cpu", settings(tmp_path))
    assert engines.loads() == before + 1
