"""How rows are cut into chunks, and which types kept fields get."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.chunking import LEAST_BYTES, KeptTypes, cut_chunks, cut_pairs
from producer.rows import Row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROWS = st.lists(st.builds(Row, st.none() | TEXTS, TEXTS, st.tuples(TEXTS, st.integers())))
LIMITS = {"chunk_rows": st.integers(1, 8), "chunk_bytes": st.integers(1, 60)}


def rows_of(*texts):
    """Return rows without id and kept values."""
    return [Row(None, text, None) for text in texts]


def cut(rows, *, chunk_rows=100, chunk_bytes=100, keeps=False):
    """Return the chunks of rows as a list."""
    return list(cut_chunks(rows, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes, keeps=keeps))


@given(rows=ROWS, **LIMITS)
def test_chunks_put_together_are_the_corpus(rows, chunk_rows, chunk_bytes):
    """No row is lost, doubled or moved, and every number says where it stands."""
    chunks = cut(rows, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes, keeps=True)
    assert [text for chunk in chunks for text in chunk.texts] == [row.text for row in rows]
    ids = [str(number) if row.id is None else row.id for number, row in enumerate(rows)]
    assert [id_ for chunk in chunks for id_ in chunk.ids] == ids
    assert [tuple(json.loads(kept)) for chunk in chunks for kept in chunk.kept] == [row.kept for row in rows]
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.first_row for chunk in chunks] == [
        sum(chunk.n_rows for chunk in chunks[:number]) for number in range(len(chunks))
    ]
    assert sum(chunk.n_unnamed for chunk in chunks) == sum(row.id is None for row in rows)


@given(rows=ROWS, **LIMITS)
def test_a_chunk_respects_both_limits_or_is_one_long_row(rows, chunk_rows, chunk_bytes):
    """No chunk is empty, and none could have taken the row that follows it."""
    chunks = cut(rows, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    for chunk in chunks:
        assert chunk.n_bytes == len("".join(chunk.texts).encode())
        assert 1 <= chunk.n_rows <= chunk_rows
        assert chunk.n_bytes <= chunk_bytes or chunk.n_rows == 1
    for chunk, after in itertools.pairwise(chunks):
        is_full = chunk.n_rows == chunk_rows
        assert is_full or chunk.n_bytes + len(after.texts[0].encode()) > chunk_bytes


def test_the_last_chunks_become_smaller():
    """So that no slot works long after the others; a job of one chunk's rows keeps all slots busy too."""
    sizes = [chunk.n_bytes for chunk in cut(rows_of(*["x" * 100] * 20_000), chunk_rows=10**6, chunk_bytes=200_000)]
    assert sizes[:8] == [200_000] * 8
    assert sum(sizes) == 2_000_000
    assert sizes[8:] == sorted(sizes[8:], reverse=True)
    assert sizes[8] == 25_000
    assert max(sizes[-5:]) <= LEAST_BYTES
    assert len(sizes) < 50


def test_a_small_corpus_is_shared_out_too():
    """One chunk's rows are enough work for several slots; less than that is not worth cutting."""
    sizes = [chunk.n_bytes for chunk in cut(rows_of(*["x" * 100] * 1000), chunk_rows=10**6, chunk_bytes=200_000)]
    assert (len(sizes), max(sizes)) == (13, 8100)
    assert len(cut(rows_of(*["x" * 100] * 80), chunk_rows=10**6, chunk_bytes=200_000)) == 1


@given(sizes=st.lists(st.integers(0, 30), max_size=60), **LIMITS)
def test_pairs_are_cut_as_rows_are(sizes, chunk_rows, chunk_bytes):
    """By the bytes of their documents."""
    pairs = [(0, 0, 1, place, size) for place, size in enumerate(sizes)]
    chunks = list(cut_pairs(pairs, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes))
    as_rows = cut(rows_of(*["x" * size for size in sizes]), chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    assert [pair for chunk in chunks for pair in chunk.pairs] == pairs
    assert [(chunk.number, chunk.first_row, chunk.n_rows, chunk.n_bytes) for chunk in chunks] == [
        (chunk.number, chunk.first_row, chunk.n_rows, chunk.n_bytes) for chunk in as_rows
    ]


def test_the_last_chunks_of_pairs_become_smaller_too():
    """Pairs take longer than rows."""
    sizes = [chunk.n_bytes for chunk in cut_pairs([(0, 0, 1, 0, 100)] * 1000, chunk_rows=10**6, chunk_bytes=200_000)]
    assert (len(sizes), max(sizes)) == (13, 8100)


def test_tapering_keeps_the_row_limit():
    """Rows without a byte are limited by their number alone."""
    chunks = cut(rows_of(*[""] * 1000), chunk_rows=300, chunk_bytes=200_000)
    assert [chunk.n_rows for chunk in chunks] == [300, 300, 300, 100]


@given(rows=ROWS, **LIMITS)
def test_the_same_rows_give_the_same_chunks(rows, chunk_rows, chunk_bytes):
    """A second run of a command meets the chunks of the first, from a list as from a stream."""
    limits = {"chunk_rows": chunk_rows, "chunk_bytes": chunk_bytes}
    assert cut(rows, **limits) == cut(iter(rows), **limits)


def test_a_chunk_closes_before_the_row_that_would_pass_the_byte_limit():
    """Bytes count as UTF-8 does, not as characters."""
    chunks = cut(rows_of("aaaa", "bbb", "ééé", "日"), chunk_bytes=7)
    assert [chunk.texts for chunk in chunks] == [["aaaa", "bbb"], ["ééé"], ["日"]]
    assert [chunk.n_bytes for chunk in chunks] == [7, 6, 3]


def test_a_row_longer_than_a_chunk_is_a_chunk_of_its_own():
    """It takes no row with it, not even an empty one."""
    chunks = cut(rows_of("a", "b" * 20, "", "c"), chunk_bytes=10)
    assert [chunk.texts for chunk in chunks] == [["a"], ["b" * 20], ["", "c"]]


def test_a_chunk_closes_at_its_row_limit():
    """Short rows are limited by their number."""
    chunks = cut(rows_of(*"abcde"), chunk_rows=2)
    assert [(chunk.number, chunk.first_row, chunk.n_rows) for chunk in chunks] == [
        (0, 0, 2),
        (1, 2, 2),
        (2, 4, 1),
    ]


def test_a_row_without_id_gets_its_number_in_the_corpus():
    """The number counts on across chunks; an empty id is an id."""
    rows = [Row("x", "a", None), Row(None, "b", None), Row("", "c", None), Row(None, "d", None)]
    chunks = cut(rows, chunk_rows=2)
    assert [chunk.ids for chunk in chunks] == [["x", "1"], ["", "3"]]
    assert [chunk.n_unnamed for chunk in chunks] == [1, 1]


def test_a_chunk_is_given_away_before_the_next_row_is_asked_for():
    """The stream is never read further than one row ahead."""
    asked = []

    def rows():
        for number in range(10):
            asked.append(number)
            yield Row(None, "x", None)

    next(cut_chunks(rows(), chunk_rows=3, chunk_bytes=100, keeps=False))
    assert asked == [0, 1, 2, 3]


def test_no_rows_are_no_chunks():
    """Whether that is an error is for the reader to say."""
    assert cut([]) == []


def test_kept_values_travel_as_json_arrays():
    """They are readable JSON; without kept fields there is no column."""
    rows = [Row("1", "a", ("é", None, [1.5, {"x": True}]))]
    assert cut(rows, keeps=True)[0].kept == ['["é", null, [1.5, {"x": true}]]']
    assert cut(rows, keeps=False)[0].kept is None


def test_the_repr_of_a_chunk_shows_no_text():
    """A chunk may end up in a log, a record may not."""
    assert "secret" not in repr(cut([Row("secret", "secret", ("secret",))], keeps=True)[0])


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, -(2**63), 2**63 - 1], "int64"),
        ([1, None], "int64"),
        ([1, 2**63], "json"),
        ([-(2**63) - 1], "json"),
        ([1.5, None], "float64"),
        ([1, 1.5], "float64"),
        ([2**63, 1.5], "json"),
        ([True, False, None], "bool"),
        ([True, 1], "json"),
        (["a", None], "string"),
        (["a", 1], "json"),
        ([None, None], "string"),
        ([], "string"),
        ([[1]], "json"),
        ([{"a": 1}, None], "json"),
    ],
)
def test_the_type_of_a_kept_field_follows_from_all_its_values(values, type_):
    """What one column type holds becomes that type, the rest stays JSON."""
    types = KeptTypes(["field"])
    for value in values:
        types.add((value,))
    assert types.resolve() == {"field": type_}


def test_kept_types_are_found_while_rows_pass():
    """Every field has its own type, and the rows go through unchanged."""
    rows = [Row("1", "a", (1, "x")), Row("2", "b", (2, None))]
    types = KeptTypes(["year", "lang"])
    assert list(types.watch(rows)) == rows
    assert types.resolve() == {"year": "int64", "lang": "string"}


def test_a_field_named_twice_is_kept_twice():
    """The values follow the names as they were given."""
    types = KeptTypes(["a", "a"])
    types.add((1, 1))
    assert types.resolve() == {"a": "int64"}
