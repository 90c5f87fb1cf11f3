"""`penstock encode` with models that must be told the language of a text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from tests.acceptance.conftest import Shell
from tests.tiny_models import tiny_model2vec, tiny_sonar

RECORDS = [
    {"id": str(i), "text": f"{text} {i}", **({"lang": language} if language else {})}
    for i, (text, language) in enumerate(
        zip(
            ["the river rose", "mto ulipanda juu", "nobody knew", "no language here", "of a foreign one"] * 6,
            ["eng_Latn", "swh_Latn", "eng_Latn", "", "xxx_Latn"] * 6,
            strict=True,
        )
    )
]


@pytest.fixture
def sonar(tmp_path: Path) -> str:
    """A random text encoder in SONAR's published format."""
    return tiny_sonar(tmp_path / "sonar")


def expected(folder: str, records: list[dict[str, str]]) -> np.ndarray:
    """Return what sentence-transformers alone makes of records, one at a time."""
    model = SentenceTransformer(folder, device="cpu")
    vectors = []
    for record in records:
        model.tokenizer.src_lang = record.get("lang", "wol_Latn")
        vectors.append(model.encode(record["text"]))
    return np.array(vectors)


def test_records_of_several_languages_have_their_vectors(shell: Shell, sonar: str) -> None:
    """Those without one have --language's, those in one that the model lacks are error rows, and no row moves."""
    shell.write("corpus.jsonl", map(json.dumps, RECORDS))
    command = ("encode", "corpus.jsonl", "--model", sonar, "--language-field", "lang", "--language", "wol_Latn")
    result = shell.json(*command, "--out", "v.parquet", "--keep-fields", "lang", "--chunk-rows", 7, code=1)
    assert (result["rows"], result["failed_rows"]) == (30, 6)
    table = pq.read_table(shell.folder / "v.parquet")
    assert table["id"].to_pylist() == [record["id"] for record in RECORDS]
    assert table["lang"].to_pylist() == [record.get("lang") for record in RECORDS]
    errors = table["error"].to_pylist()
    assert [bool(error) for error in errors] == [record.get("lang") == "xxx_Latn" for record in RECORDS]
    assert errors[4].startswith("the model has no language 'xxx_Latn'")
    sound = [record for record in RECORDS if record.get("lang") != "xxx_Latn"]
    found = np.array([vector for vector in table["vector"].to_pylist() if vector is not None])
    np.testing.assert_allclose(found, expected(sonar, sound), atol=1e-6)


def test_a_sample_of_a_job_is_verified_in_its_languages(shell: Shell, sonar: str) -> None:
    """Each row is computed again in the language of its record."""
    records = [record for record in RECORDS if record.get("lang") in {"eng_Latn", "swh_Latn"}]
    shell.write("corpus.jsonl", map(json.dumps, records))
    job = shell.json("encode", "corpus.jsonl", "--model", sonar, "--language-field", "lang")["job"]
    verdict = shell.json("verify", job, "--sample", 10)
    assert (verdict["rows"], verdict["failed"], verdict["passes"], verdict["same_weights"]) == (10, 0, True, True)


def test_a_job_without_the_language_that_its_model_wants_fails_with_the_option(shell: Shell, sonar: str) -> None:
    """So does one in a language that it has not, with the name that may be meant."""
    shell.write("corpus.txt", ["one", "two"])
    refused = shell.run("encode", "corpus.txt", "--model", sonar, "--out", "v.npy", code=1)
    assert "give --language eng_Latn, or --language-field" in refused.stderr
    refused = shell.run("encode", "corpus.txt", "--model", sonar, "--out", "v.npy", "--language", "eng", code=1)
    assert "the model has no language 'eng'; did you mean eng_Latn?" in refused.stderr


def test_a_model_without_languages_refuses_them(shell: Shell) -> None:
    """Static embeddings, in model2vec's format, and then without the option."""
    shell.write("corpus.txt", ["the river rose", "nobody knew"])
    folder = tiny_model2vec(shell.folder / "static")
    command = ("encode", "corpus.txt", "--model", folder, "--out", "v.npy")
    refused = shell.run(*command, "--language", "eng_Latn", code=1)
    assert "the model knows no languages: leave out --language" in refused.stderr
    shell.run(*command)
    model = SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(
        np.load(shell.folder / "v.npy"), model.encode(["the river rose", "nobody knew"]), atol=1e-6
    )


def test_a_field_that_no_record_has_is_told(shell: Shell) -> None:
    """With what it counts, before anything is submitted, and with a job."""
    shell.write("corpus.jsonl", ['{"text": "one", "lang": "eng_Latn"}', '{"text": "two"}'])
    command = ("encode", "corpus.jsonl", "--model", "fake", "--language-field", "language")
    for more in (("--dry-run",), ("--out", "v.npy", "--language", "eng_Latn")):
        assert 'No record has a language in field "language"' in shell.run(*command, *more).stderr
    assert "No record" not in shell.run(*command[:-1], "lang", "--dry-run").stderr


def test_a_language_that_is_none_and_lines_of_text_are_one_line(shell: Shell) -> None:
    """Neither starts anything."""
    shell.write("corpus.jsonl", ['{"text": "one", "lang": "a sentence instead"}'])
    shell.write("corpus.txt", ["one"])
    for name, says in (
        ("corpus.jsonl", 'corpus.jsonl, line 1: field "lang" does not hold the name of a language'),
        ("corpus.txt", "corpus.txt: lines of text have no fields; leave out --language-field"),
    ):
        refused = shell.run("encode", name, "--model", "fake", "--language-field", "lang", code=4)
        assert says in refused.stderr
        assert "Traceback" not in refused.stderr
        assert "a sentence instead" not in refused.stderr
