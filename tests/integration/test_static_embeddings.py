"""Static embeddings, sentence-transformers' own and model2vec's, against SentenceTransformer.encode itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.normalizers import Lowercase

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import LINES, tiny_model2vec
from workers.engines.fingerprint import fingerprint_of
from workers.engines.sentence_transformer import SentenceTransformerEncoder

#: Some have no token at all; one is longer than any limit here.
TEXTS = [*LINES, "", "   ", "river", "the river " * 60] * 30


def load(folder: str) -> SentenceTransformerEncoder:
    """Load an engine on the CPU. Batches are small, so that blocks follow each other."""
    return SentenceTransformerEncoder(ModelSpec.parse(folder), "cpu", Settings(max_batch_tokens=300))


def static(folder: Path) -> str:
    """Save random static embeddings of words, and return their folder."""
    words = {word: i for i, word in enumerate(["[UNK]", *sorted({word for line in LINES for word in line.split()})])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    modules = [StaticEmbedding(tokenizer, embedding_dim=12)]
    SentenceTransformer(modules=modules, device="cpu", prompts={"query": "the river "}).save(str(folder))
    return str(folder)


@pytest.mark.parametrize("make", [static, tiny_model2vec])
@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"prompt": "the mill "}, {"truncate_dim": 5}])
def test_the_vectors_are_those_of_encode(tmp_path: Path, make, options: dict) -> None:
    """model2vec itself is not needed for what it saved."""
    folder = make(tmp_path / "model")
    model = SentenceTransformer(folder, device="cpu", truncate_dim=options.get("truncate_dim"))
    expected = model.encode(TEXTS, prompt=options.get("prompt"), normalize_embeddings=options.get("normalize", False))
    found = load(folder).encode(TEXTS, EncodeOptions(**options))
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.errors == [None] * len(TEXTS)


def test_a_prompt_of_the_model_s_own_stands_before_each_text(tmp_path: Path) -> None:
    """And is counted."""
    engine = load(static(tmp_path / "model"))
    with_prompt, by_hand = (
        engine.encode(texts, EncodeOptions(**options))
        for texts, options in ((["a mill"], {"prompt_name": "query"}), (["the river a mill"], {}))
    )
    np.testing.assert_array_equal(with_prompt.values, by_hand.values)
    assert with_prompt.n_tokens.tolist() == by_hand.n_tokens.tolist() == [4]


def test_a_limit_cuts_what_is_averaged(tmp_path: Path) -> None:
    """A text that is cut has the vector of its beginning, and only such a one is marked."""
    engine = load(static(tmp_path / "model"))
    found = engine.encode(["the river", "the river rose", "the river rose above"], EncodeOptions(max_tokens=2))
    assert found.n_tokens.tolist() == [2, 2, 2]
    assert found.truncated.tolist() == [False, True, True]
    np.testing.assert_array_equal(found.values, np.stack([found.values[0]] * 3))


def test_a_limit_in_the_tokenizer_s_file_counts_too(tmp_path: Path) -> None:
    """model2vec's cut at 512 tokens by themselves; what was cut is marked."""
    found = load(tiny_model2vec(tmp_path / "model")).encode([LINES[0], "river " * 40, "river " * 41], EncodeOptions())
    assert found.truncated.tolist() == [False, False, True]
    assert found.n_tokens.tolist()[1:] == [40, 40]


@pytest.mark.parametrize(("make", "limit"), [(static, 7), (tiny_model2vec, None)])
def test_a_long_text_is_not_tokenised_whole_for_a_limit(tmp_path: Path, make, limit: int | None) -> None:
    """Its beginning has the same tokens. The limit may be a job's or that of the tokenizer's file."""
    engine = load(make(tmp_path / "model"))
    features: Any = engine._features
    options = EncodeOptions(max_tokens=limit)
    texts = ["the river rose " * 4000, " " * 5000 + "the river " * 5000, *TEXTS]
    features._may_clip = False
    whole = engine.encode(texts, options)
    features._may_clip = True
    tokenizer, seen = features._tokenizer, []

    class Watched:
        def encode_batch_fast(self, some: list[str], *, add_special_tokens: bool) -> list[Any]:
            seen.extend(map(len, some))
            return tokenizer.encode_batch_fast(some, add_special_tokens=add_special_tokens)

    features._tokenizer = Watched()
    found = engine.encode(texts, options)
    assert max(seen) < 30_000
    np.testing.assert_array_equal(found.values, whole.values)
    assert found.n_tokens.tolist() == whole.n_tokens.tolist()
    assert found.truncated.tolist() == whole.truncated.tolist()
    assert found.truncated[:2].all()


def test_what_static_embeddings_cannot_do_is_said(tmp_path: Path) -> None:
    """There are no special tokens, so a limit of one token is fine."""
    engine = load(static(tmp_path / "model"))
    assert engine.check(EncodeOptions(max_tokens=1)) is None
    assert "12 dimensions" in str(engine.check(EncodeOptions(truncate_dim=13)))
    assert "knows no languages" in str(engine.check(EncodeOptions(language="en")))


def test_texts_without_tokens_have_vectors_of_zeros(tmp_path: Path) -> None:
    """Alone in a batch as well."""
    found = load(static(tmp_path / "model")).encode(["", " "], EncodeOptions())
    assert found.n_tokens.tolist() == [0, 0]
    np.testing.assert_array_equal(found.values, np.zeros((2, 12)))


def test_reproducible_vectors_are_the_same_bits(tmp_path: Path) -> None:
    """Whatever stands beside them."""
    engine = load(static(tmp_path / "model"))
    together = engine.encode(TEXTS, EncodeOptions(reproducible=True)).values
    alone = [engine.encode([text], EncodeOptions(reproducible=True)).values[0] for text in TEXTS[:9]]
    np.testing.assert_array_equal(together[:9], alone)


def test_the_fingerprint_is_of_the_tokenizer_too(tmp_path: Path) -> None:
    """Its file says how texts become words, which no tensor shows; use leaves no trace."""
    model = SentenceTransformer(static(tmp_path / "model"), device="cpu")
    first = fingerprint_of(model)
    model.encode(TEXTS)
    assert fingerprint_of(model) == first
    model[0].tokenizer.normalizer = Lowercase()
    assert fingerprint_of(model) != first
