"""Models with languages, in the formats that they are published in, against SentenceTransformer.encode itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers.normalizers import Lowercase
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartModel,
)

from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from tests.tiny_models import LINES, tiny_bert, tiny_cross_encoder, tiny_m2m100, tiny_sonar
from workers.engines.fingerprint import fingerprint_of
from workers.engines.loading import load_cross_encoder
from workers.engines.sentence_transformer import SentenceTransformerEncoder

#: Of every length; the last ones are longer than the models take.
TEXTS = [*LINES, "", "a", " ".join(LINES), "the river " * 30, "x" * 200] * 4


def load(folder: str, max_batch_tokens: int = 200) -> SentenceTransformerEncoder:
    """Load an engine on the CPU. Batches are small, so that blocks follow each other."""
    return SentenceTransformerEncoder(ModelSpec.parse(folder), "cpu", Settings(max_batch_tokens=max_batch_tokens))


def expected(folder: str, language: str) -> np.ndarray:
    """Return what sentence-transformers alone makes of the texts."""
    model = SentenceTransformer(folder, device="cpu")
    model.tokenizer.src_lang = language
    return model.encode(TEXTS)


Make = Callable[[Path], str]

#: A fast tokenizer and a slow one, with two languages each.
MODELS = [(tiny_sonar, "eng_Latn", "swh_Latn"), (tiny_m2m100, "en", "sw")]


@pytest.mark.parametrize(("make", "one", "other"), MODELS)
def test_each_language_has_the_vectors_of_encode(tmp_path: Path, make: Make, one: str, other: str) -> None:
    """With the language set on the tokenizer, in whatever order languages come."""
    folder = make(tmp_path / "model")
    engine = load(folder)
    found: dict[str, Computed] = {}
    for language in (other, one, other):
        found[language] = engine.encode(TEXTS, EncodeOptions(language=language))
        np.testing.assert_allclose(found[language].values, expected(folder, language), atol=1e-6)
    assert np.abs(found[one].values - found[other].values).max() > 1e-3


@pytest.mark.parametrize(("make", "one", "other"), MODELS)
def test_the_token_of_the_language_is_counted_and_never_cut_off(
    tmp_path: Path, make: Make, one: str, other: str
) -> None:
    """Tokens are those of the model's own tokenizer, language and end included, up to the limit."""
    folder = make(tmp_path / "model")
    engine, model = load(folder), SentenceTransformer(folder, device="cpu")
    for language in (one, other):
        model.tokenizer.src_lang = language
        whole = [len(model.tokenizer(text)["input_ids"]) for text in TEXTS]
        for limit in (model.max_seq_length, 7):
            found = engine.encode(TEXTS, EncodeOptions(language=language, max_tokens=limit))
            assert found.n_tokens.tolist() == [min(n, limit) for n in whole]
            assert found.truncated.tolist() == [n > limit for n in whole]
            cut = model.tokenizer(TEXTS, truncation=True, max_length=limit)["input_ids"]
            assert {ids[0] for ids in cut} == {model.tokenizer.convert_tokens_to_ids(_token(model, language))}
            assert {ids[-1] for ids in cut} == {model.tokenizer.eos_token_id}
            if limit == 7:
                np.testing.assert_allclose(
                    found.values, _encode_cut(model, language, limit), atol=1e-6, err_msg=f"{language} {limit}"
                )


def _token(model: SentenceTransformer, language: str) -> str:
    return model.tokenizer.get_lang_token(language) if hasattr(model.tokenizer, "get_lang_token") else language


def _encode_cut(model: SentenceTransformer, language: str, limit: int) -> np.ndarray:
    """Encode with a lower limit of the model's own."""
    before, model.max_seq_length, model.tokenizer.src_lang = model.max_seq_length, limit, language
    try:
        return model.encode(TEXTS)
    finally:
        model.max_seq_length = before


def test_the_fingerprint_does_not_know_which_language_came_last(tmp_path: Path) -> None:
    """Slots work on different languages, and share jobs all the same; what is set stays set."""
    folder = tiny_sonar(tmp_path / "model")
    model = SentenceTransformer(folder, device="cpu")
    first = fingerprint_of(model)
    model.tokenizer.src_lang = "wol_Latn"
    assert fingerprint_of(model) == first
    assert model.tokenizer.src_lang == "wol_Latn"
    model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert fingerprint_of(model) != first


def test_what_the_languages_of_a_job_lack_is_said_with_the_remedy(tmp_path: Path) -> None:
    """One sentence each, with an example or with names that are alike."""
    engine = load(tiny_sonar(tmp_path / "sonar"))
    assert engine.check(EncodeOptions(language="wol_Latn")) is None
    assert engine.check(EncodeOptions(language_field="lang")) is None
    assert engine.check(EncodeOptions()) == (
        "the model must be told the language of the texts: give --language eng_Latn, or --language-field for records "
        "that say it"
    )
    assert engine.check(EncodeOptions(language="7", language_field="lang")) == (
        "the model has no such language; it has 202, such as eng_Latn"
    )
    for language, meant in (
        *(("ENG", "eng_Latn"), ("zh", "zho_Hans or zho_Hant"), ("wol-latn", "wol_Latn")),
        *(("wolof", "wol_Latn"), ("english", "eng_Latn"), ("Portuguese", "por_Latn")),
    ):
        problem = str(engine.check(EncodeOptions(language=language)))
        assert problem.endswith(f"; did you mean {meant}?"), problem
    other = load(tiny_m2m100(tmp_path / "m2m"))
    assert "give --language en," in str(other.check(EncodeOptions()))
    assert "did you mean en?" in str(other.check(EncodeOptions(language="eng_Latn")))


@pytest.mark.parametrize("language", ["german", "french", "swahili", "qqq", "abc_Latn", "7"])
def test_no_language_is_offered_that_is_merely_a_little_like(tmp_path: Path, language: str) -> None:
    """German is not Armenian."""
    problem = load(tiny_sonar(tmp_path / "model")).check(EncodeOptions(language=language))
    assert str(problem).endswith("; it has 202, such as eng_Latn"), problem


@pytest.mark.parametrize(
    ("language", "shown"),
    [("xx", True), ("xxx_Latn", True), ("qx-QX", True), ("hunter2", False), ("Mrs_Smith", False), ("german", False)],
)
def test_only_what_looks_like_a_code_is_shown(tmp_path: Path, language: str, shown: bool) -> None:
    """A field that was not meant may hold names or secrets, and errors of rows are read by others."""
    problem = str(load(tiny_sonar(tmp_path / "model")).check(EncodeOptions(language=language)))
    assert (language in problem) is shown
    assert problem.startswith("the model has no ")


def test_a_model_without_languages_takes_none(tmp_path: Path) -> None:
    """Nothing would come of one."""
    engine = load(tiny_bert(tmp_path / "bert"))
    for options in (EncodeOptions(language="eng_Latn"), EncodeOptions(language_field="lang")):
        assert engine.check(options) == "the model knows no languages: leave out --language and --language-field"


def test_a_whole_translation_model_is_no_encoder(tmp_path: Path) -> None:
    """Its weights have other names: the encoder would be a random one, another in each slot."""
    folder = Path(tiny_sonar(tmp_path / "model"))
    whole = M2M100ForConditionalGeneration(M2M100Config.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder)
    with pytest.raises(ModelNotFound, match="lack 35 of 35 weights of the M2M100Encoder that would be run, such as"):
        load(str(folder))


@pytest.mark.parametrize(
    ("make", "keep", "lacks"),
    [
        (tiny_bert, "embeddings", "32 of 39 weights of the BertModel"),
        (tiny_sonar, "embed", "34 of 35 weights of the M2M100Encoder"),
        (tiny_bert, "layer|embeddings.weight|LayerNorm.weight", "1 of 39 weights of the BertModel"),
    ],
)
def test_a_checkpoint_with_a_part_of_the_weights_is_refused(tmp_path: Path, make: Make, keep: str, lacks: str) -> None:
    """The rest would be random, however little it is."""
    folder = make(tmp_path / "model")
    keep_weights(folder, keep)
    with pytest.raises(ModelNotFound, match=f"its files lack {lacks} that would be run, such as .* random"):
        load(folder)


def test_a_pooler_may_be_missing_where_it_is_not_used(tmp_path: Path) -> None:
    """The vectors of tokens do not pass it, so many checkpoints have none; scores do."""
    folder = tiny_bert(tmp_path / "model")
    with_pooler = load(folder).encode(TEXTS, EncodeOptions())
    keep_weights(folder, "embeddings|encoder")
    np.testing.assert_array_equal(load(folder).encode(TEXTS, EncodeOptions()).values, with_pooler.values)
    scorer = tiny_cross_encoder(tmp_path / "scorer")
    load_cross_encoder(ModelSpec.parse(scorer), "cpu", Settings())
    keep_weights(scorer, "embeddings|encoder|classifier")
    with pytest.raises(ModelNotFound, match=r"2 of 41 weights of the BertForSequenceClassification .*pooler"):
        load_cross_encoder(ModelSpec.parse(scorer), "cpu", Settings())


def keep_weights(folder: str, pattern: str) -> None:
    """Leave only those weights in a checkpoint whose names have a match."""
    file = Path(folder) / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if re.search(pattern, name)}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", [(MBartConfig, MBartModel), (BartConfig, BartModel)])
def test_an_encoder_with_its_decoder_is_refused(tmp_path: Path, family: tuple[Any, Any]) -> None:
    """sentence-transformers would take the decoder's vectors for those of the text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(tmp_path / "bert"))
    sizes = {"d_model": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    make_config, make = family
    make(make_config(**sizes, **sides, **widths)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelNotFound, match="an encoder with a decoder behind it"):
        load(str(tmp_path / "model"))


def test_reproducible_vectors_are_the_same_bits_in_each_language(tmp_path: Path) -> None:
    """The rows by which shapes are tried are in a language as well."""
    engine = load(tiny_sonar(tmp_path / "model"))
    options = EncodeOptions(language="wol_Latn", reproducible=True)
    together = engine.encode(TEXTS, options).values
    alone = [engine.encode([text], options).values[0] for text in TEXTS[:6]]
    np.testing.assert_array_equal(together[:6], alone)
