"""Readers: what is valid comes back as it was written, whatever else there is gives one clear line or rows."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from producer.chunking import Chunk, cut_chunks
from producer.readers import read_items, read_rows
from producer.sources import expand
from tasks import tables
from tasks.errors import BadInput
from tests.fuzz.cases import REPORT, fuzz, share
from tests.fuzz.commands import check_line
from tests.fuzz.corpora import write_corpus
from tests.fuzz.mutations import mutate, noise


def check_chunks(chunks: list[Chunk]) -> None:
    """Fail unless chunks follow each other and can be stored."""
    row = 0
    for number, chunk in enumerate(chunks):
        assert (chunk.number, chunk.first_row) == (number, row)
        row += chunk.n_rows
        data = tables.input_bytes(tables.input_table(chunk.first_row, chunk.ids, chunk.texts, chunk.kept), "chunk")
        back = tables.read_input(data, "chunk")
        assert back["id"].to_pylist() == chunk.ids
        assert back["text"].to_pylist() == chunk.texts


def read(path, rng) -> list[Chunk]:
    """Read a file and cut it into chunks of random limits."""
    keep = rng.choice([(), ("n", "none")]) if ".txt" not in path.suffixes else ()
    rows = read_rows(expand([str(path)]), keep_fields=keep)
    return list(cut_chunks(rows, chunk_rows=rng.choice([1, 3, 1000]), chunk_bytes=10**6, keeps=bool(keep)))


def test_what_was_written_is_read(tmp_path):
    """Ids and texts of a valid corpus come back in their order, in whatever way it was written and packed."""

    def attempt(rng: random.Random) -> bool:
        corpus = write_corpus(rng)
        path = tmp_path / f"corpus{corpus.extension}"
        path.write_bytes(corpus.data)
        chunks = read(path, rng)
        check_chunks(chunks)
        assert [id_ for chunk in chunks for id_ in chunk.ids] == corpus.ids
        assert [text for chunk in chunks for text in chunk.texts] == corpus.texts
        return False

    fuzz("readers, valid", 10, attempt)


def test_what_was_damaged_is_read_or_refused_in_a_line(tmp_path):
    """Mutated files and noise give rows that can be stored, or a line that names file and place."""

    def attempt(rng: random.Random) -> bool:
        corpus = write_corpus(rng)
        path = tmp_path / f"corpus{corpus.extension}"
        path.write_bytes(noise(rng) if rng.random() < 0.1 else mutate(corpus.data, rng))
        try:
            check_chunks(read(path, rng))
        except BadInput as exc:
            check_line(exc)
            return True
        return False

    fuzz("readers, damaged", 40, attempt)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=share(5))
@given(
    items=st.lists(
        ANYTHING
        | st.text()
        | st.tuples(ANYTHING, st.text())
        | st.fixed_dictionaries({"text": st.text()}, optional={"id": ANYTHING, "n": ANYTHING}),
        max_size=5,
    ),
    keeps=st.booleans(),
)
def test_python_items_become_rows_or_a_line(items, keeps):
    """Whatever an iterable holds, lone surrogates and foreign classes among it."""
    refused = False
    try:
        rows = read_items(items, keep_fields=["n"] if keeps else [])
        check_chunks(list(cut_chunks(rows, chunk_rows=2, chunk_bytes=100, keeps=keeps)))
    except BadInput as exc:
        check_line(exc)
        refused = True
    REPORT.add("readers, Python items", refused=refused)
