"""Rows of several languages: who is asked about which, and what becomes of rows without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.corpus import job_key, read_corpus, submission_key
from producer.sources import expand
from tasks import keys, tables
from tasks.blocks import BlockCache
from tasks.errors import EngineBroken, UsageError
from tasks.isolation import Runner, run_bisecting
from tasks.languages import encode_by_language
from tasks.messages import ModelSpec
from tasks.operations import OPERATIONS
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Computed, Passage
from tasks.settings import Settings
from workers.engines.fake import FakeEncoder

ENCODE = OPERATIONS["encode"]
FIELDS = {"text_field": "text", "id_field": None, "keep_fields": ()}


class Polyglot(FakeEncoder):
    """The fake engine with three languages, each of which puts itself before its texts; it remembers its calls."""

    def __init__(self) -> None:
        super().__init__("fake:dim=4", Settings(max_batch_tokens=1000))
        self.calls: list[tuple[str | None, list[str]]] = []
        self.checks: list[str | None] = []
        self.is_broken = False

    def check(self, options: EncodeOptions) -> str | None:
        """Refuse languages that it has not."""
        self.checks.append(options.language)
        if options.language is None and options.language_field is None:
            return "the model wants a language"
        return None if options.language in {None, "en", "fr", "sw"} else f"the model has no {options.language}"

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts of one language."""
        assert options.language_field is None
        self.calls.append((options.language, list(texts)))
        if self.is_broken or "!raise" in texts:
            raise RuntimeError("a row asked for this")
        return super().encode(texts, options.model_copy(update={"prompt": f"{options.language} "}), on_batch)


def vector_of(text: str, language: str) -> np.ndarray:
    """Return what the engine gives a text in a language."""
    return Polyglot().encode([text], EncodeOptions(language=language)).values[0]


def encode(engine: Polyglot, rows: Sequence[Passage], **options) -> Computed:
    """Encode rows as a slot does."""
    return ENCODE.run(engine, rows, EncodeOptions(**options), lambda _: None)


def test_an_engine_is_called_once_for_each_language():
    """However they are mixed, each row has the vector of its own text and language."""
    engine = Polyglot()
    rows = [Passage(str(i), ["en", "fr", ""][i % 3]) for i in range(9)]
    found = encode(engine, rows, language_field="lang", language="sw")
    assert engine.calls == [("en", ["0", "3", "6"]), ("fr", ["1", "4", "7"]), ("sw", ["2", "5", "8"])]
    for row, vector in zip(rows, found.values, strict=True):
        np.testing.assert_array_equal(vector, vector_of(row.text, row.language or "sw"))
    assert found.errors == [None] * 9
    assert engine.checks == ["en", "fr", "sw"]


@given(languages=st.lists(st.sampled_from(["en", "fr", "sw", "xx", ""]), min_size=1, max_size=40))
def test_all_that_is_said_of_a_row_stays_with_it(languages):
    """Tokens, marks and errors come back in the order of the rows."""
    rows = [Passage(" ".join(["word"] * (i % 7)), language) for i, language in enumerate(languages)]
    found = encode(Polyglot(), rows, language_field="lang", max_tokens=5)
    for i, row in enumerate(rows):
        if row.language in {"xx", ""}:
            assert "xx" in str(found.errors[i]) or "no language in field 'lang'" in str(found.errors[i])
            continue
        assert found.errors[i] is None
        assert found.n_tokens[i] == min(5, 1 + i % 7)
        assert found.truncated[i] == (1 + i % 7 > 5)
        expected = Polyglot().encode([row.text], EncodeOptions(language=row.language, max_tokens=5))
        np.testing.assert_array_equal(found.values[i], expected.values[0])


def test_a_row_whose_language_the_model_lacks_is_an_error_row():
    """It takes no other along, and what it lacks is said."""
    found = encode(Polyglot(), [Passage("a", "xx"), Passage("b", "en"), Passage("c")], language_field="lang")
    assert found.errors == [
        "the model has no xx",
        None,
        "the record has no language in field 'lang', and no --language is given",
    ]
    np.testing.assert_array_equal(found.values[[0, 2]], 0)


def test_a_row_that_fails_is_found_among_languages():
    """The engine is tried with a language that it has: that of the row."""
    engine = Polyglot()
    rows = [Passage("a", "fr"), Passage("!raise", "fr"), Passage("c", "en"), Passage("d", "xx")]
    options = EncodeOptions(language_field="lang")
    runner = Runner(lambda some: encode_by_language(engine, some, options, lambda _: None), ENCODE.row_of, 4)
    found = run_bisecting(runner, rows)
    assert [error is None for error in found.errors] == [True, False, True, False]
    assert [language for language, texts in engine.calls if texts[0].startswith("probe")] == ["fr"]


def test_an_engine_that_fails_on_everything_is_told_from_bad_rows():
    """A probe in a language that the model lacks would not even reach it."""
    engine = Polyglot()
    engine.is_broken = True
    options = EncodeOptions(language_field="lang")
    runner = Runner(lambda some: encode_by_language(engine, some, options, lambda _: None), ENCODE.row_of, 4)
    with pytest.raises(EngineBroken):
        run_bisecting(runner, [Passage("a", "sw")])


def test_rows_of_very_many_languages_are_gone_through_once():
    """A field that holds something else may have as many values as there are rows."""

    class Counted(str):
        """A name that counts how often it is compared."""

        __slots__ = ()
        __hash__ = str.__hash__
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    rows = [Passage("a", Counted(f"x{i}")) for i in range(300)]
    found = encode(Polyglot(), rows, language_field="lang")
    assert found.errors == [f"the model has no x{i}" for i in range(300)]
    assert Counted.compared < 3 * 300


def test_the_other_languages_of_a_chunk_survive_a_failing_call():
    """Halves are cut through languages, and each row keeps its own vector."""
    engine = Polyglot()
    rows = [Passage(text, language) for text, language in zip("abcdefgh", ["en", "fr"] * 4, strict=True)]
    rows[5] = Passage("!raise", "fr")
    options = EncodeOptions(language_field="lang")
    runner = Runner(lambda some: encode_by_language(engine, some, options, lambda _: None), ENCODE.row_of, 4)
    found = run_bisecting(runner, rows)
    assert [error is None for error in found.errors] == [True] * 5 + [False] + [True] * 2
    for row, vector in zip(rows, found.values, strict=True):
        if row.text != "!raise":
            np.testing.assert_array_equal(vector, vector_of(row.text, row.language))


def test_a_null_among_the_languages_of_a_chunk_is_no_language(tmp_path):
    """Another client may write one instead of an empty name."""
    path = keys.input_path("encode-1", 0)
    table = tables.input_table(0, ["a", "b"], ["one", "two"], languages=["en", None])
    stored = tables.read_input(tables.input_bytes(table, path), path)
    rows = ENCODE.read("encode-1", stored, BlockCache(tmp_path, 2**20, lambda _: b"")).rows
    assert rows == [Passage("one", "en"), Passage("two", "")]
    assert encode(Polyglot(), rows, language_field="lang", language="sw").errors == [None, None]


def test_languages_go_from_records_to_the_engine_and_no_further(tmp_path):
    """A chunk input has their column, what goes to the result has not."""
    records = [{"id": "a", "text": "one", "lang": "en"}, {"id": "b", "text": "two"}]
    opened = read_corpus(records, **FIELDS, language_field="lang")
    (chunk,) = opened.parts(Settings())
    table = chunk.table()
    assert table.column_names == ["row", "id", "text", "language"]
    path = keys.input_path("encode-1", 0)
    stored = tables.read_input(tables.input_bytes(table, path), path)
    rows = ENCODE.read("encode-1", stored, BlockCache(tmp_path, 2**20, lambda _: b""))
    assert rows.rows == [Passage("one", "en"), Passage("two", "")]
    assert rows.heads.column_names == ["row", "id"]
    assert opened.warnings == []


def test_a_corpus_without_languages_has_no_column_for_them():
    """What it sends is as it was."""
    (chunk,) = read_corpus(["one"], **FIELDS, language_field=None).parts(Settings())
    assert chunk.table().column_names == ["row", "id", "text"]


def test_a_field_that_no_record_has_is_told():
    """It may be misspelled: without --language, every row would be an error row."""
    opened = read_corpus([{"text": "one", "lang": "en"}, {"text": "two"}], **FIELDS, language_field="lnag")
    assert len(list(opened.parts(Settings()))) == 1
    (warning,) = opened.warnings
    assert warning == (
        'No record has a language in field "lnag": correct --language-field (language_field), unless --language '
        "(language) is meant for all."
    )


def job_of(options: EncodeOptions | ScoreOptions) -> str:
    """Return the key of a job on one corpus."""
    settings = Settings(chunk_rows=100, chunk_bytes=1000)
    model = ModelSpec.parse("fake", options.operation)
    return job_key("c" * 32, settings, model, options, on_error="keep", store="s")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (EncodeOptions(), "66f1ac126f66967015354651538b079e"),
        (
            EncodeOptions(normalize=True, max_tokens=7, prompt="query: "),
            "fb04b1c41a8fba24c0d0e8b83906b84a",
        ),
        (ScoreOptions(), "feb913cfd5780c3876bd171ebb818941"),
    ],
)
def test_a_job_without_languages_has_the_key_that_it_had_before_there_were_any(options, key):
    """The same command goes on with a job that was begun then."""
    assert job_of(options) == key


def test_a_language_is_of_a_job_s_key():
    """Other vectors come of it."""
    kinds = [{}, {"language": "en"}, {"language": "fr"}, {"language_field": "lang"}]
    assert len({job_of(EncodeOptions(**kind)) for kind in kinds}) == 4


def test_files_without_languages_have_the_key_that_they_had_before(tmp_path):
    """It is that of their names and of the fields that are read."""
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one"}\n')
    (source,) = expand([str(file)])
    assert read_corpus(file, **FIELDS, language_field=None).key == submission_key([source.identity()], **FIELDS)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"language": ""}, "Options: language: give letters, digits, - and _, at most 32, such as eng_Latn."),
        ({"language": "a sentence"}, "Options: language: give letters, digits, - and _, at most 32, such as eng_Latn."),
        ({"language_field": ""}, "Options: language_field: name a field, or leave it out."),
    ],
)
def test_what_is_no_language_is_said_in_words(given, line):
    """Not as a pattern."""
    with pytest.raises(UsageError) as caught:
        EncodeOptions.of(**given)
    assert str(caught.value) == line


def test_files_have_another_key_with_another_field(tmp_path):
    """Chunk inputs differ, so an interrupted submission must not go on with them."""
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one", "a": "en", "b": "fr"}\n')
    opened = [read_corpus(file, **FIELDS, language_field=name) for name in (None, "a", "b", "a")]
    assert len({one.key for one in opened}) == 3
    assert opened[1].key == opened[3].key
