"""What is sent of a scoring job: each text once, and all pairs in order."""

from __future__ import annotations

import itertools
import json
import logging
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer import pairs, scratch, text_blocks
from producer.chunking import PairChunk
from producer.corpus import Opened
from producer.demands import Demands
from producer.pairs import read_pairs
from producer.text_blocks import TextBlock
from tasks import tables
from tasks.blocks import BlockCache
from tasks.errors import BadInput, UsageError
from tasks.operations import OPERATIONS
from tasks.settings import Settings

JOB = "score-1"
#: (query id, query, document id, document)
Told = tuple[str, str, str, str]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
BY_ID = st.dictionaries(IDS, TEXTS, min_size=1, max_size=8)


def sent(opened: Opened, **changes: int) -> list[TextBlock | PairChunk]:
    """Return all that is sent of an input."""
    return list(opened.parts(Settings(**changes)))


def read_back(parts: Iterable[TextBlock | PairChunk]) -> list[Told]:
    """Return the pairs as a slot reads them, part by part: no chunk may come before the texts that it refers to."""
    objects: dict[str, bytes] = {}
    told: list[Told] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = BlockCache(Path(folder), 2**30, objects.__getitem__)
        for part in parts:
            path = part.path(JOB)
            data = tables.input_bytes(part.table(), path)
            if isinstance(part, TextBlock):
                objects[path] = data
                continue
            inputs = tables.read_input(data, path, "score")
            assert (len(inputs), tables.input_size(inputs)) == (part.n_rows, part.n_bytes)
            rows = OPERATIONS["score"].read(JOB, inputs, cache)
            assert rows.heads["row"].to_pylist() == list(range(len(told), len(told) + part.n_rows))
            heads = zip(rows.heads["query_id"].to_pylist(), rows.heads["doc_id"].to_pylist(), strict=True)
            told += [
                (query, pair.query, doc, pair.document) for (query, doc), pair in zip(heads, rows.rows, strict=True)
            ]
    return told


def texts_of(parts: Iterable[TextBlock | PairChunk]) -> list[tuple[str, str]]:
    """Return the texts that are sent."""
    blocks = [part for part in parts if isinstance(part, TextBlock)]
    return [entry for block in blocks for entry in zip(block.ids, block.texts, strict=True)]


@pytest.fixture(autouse=True)
def small_blocks():
    """Let blocks be full soon."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_blocks, "BLOCK_BYTES", 40)
        patched.setattr(pairs, "_PAGE", 3)
        yield


# -- queries, documents, candidates ------------------------------------------------------------------------------------


@given(
    queries=BY_ID,
    docs=BY_ID,
    choice=st.data(),
    chunk_rows=st.integers(1, 5),
    chunk_bytes=st.sampled_from([1, 30, 10_000]),
)
def test_what_slots_read_are_the_candidates(queries, docs, choice, chunk_rows, chunk_bytes):
    """Query by query in the order of the queries, each pair once, in the order of the candidates."""
    named = choice.draw(st.lists(st.tuples(st.sampled_from([*queries, "?"]), st.sampled_from([*docs])), max_size=30))
    wanted = [(query, doc) for query in queries for doc in dict.fromkeys(d for q, d in named if q == query)]
    opened = read_pairs(queries, docs, named, None)
    if not wanted:
        with pytest.raises(BadInput, match="No query has a candidate"):
            sent(opened)
        return
    assert opened.n_pairs == len(wanted)
    parts = sent(opened, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    assert read_back(parts) == [(query, queries[query], doc, docs[doc]) for query, doc in wanted]
    expected = [(query, text) for query, text in queries.items() if query in dict(wanted)]
    expected += [(doc, text) for doc, text in docs.items() if doc in {doc for _, doc in wanted}]
    assert texts_of(parts) == expected
    numbers = [part.number for part in parts if isinstance(part, PairChunk)]
    assert numbers == list(range(len(numbers)))


@given(queries=BY_ID, docs=BY_ID)
def test_without_candidates_every_query_meets_every_document(queries, docs):
    """Query by query, in the order of the documents."""
    opened = read_pairs(queries, docs, None, None)
    assert opened.n_pairs == len(queries) * len(docs)
    parts = sent(opened, chunk_rows=7)
    assert read_back(parts) == [
        (query, text, doc, document) for query, text in queries.items() for doc, document in docs.items()
    ]
    assert texts_of(parts) == [*queries.items(), *docs.items()]
    assert opened.warnings == []


def test_the_same_input_gives_the_same_parts():
    """A submission that goes on finds what the first one sent."""
    queries, docs = {"q1": "a", "q2": "b"}, {f"d{i}": "x" * i for i in range(40)}
    first, second = (
        sent(read_pairs(queries, docs, {"q2": ["d3", "d1"], "q1": ["d30"]}, None), chunk_rows=2) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("form", [dict, list, iter, lambda items: (item for item in items)])
def test_texts_that_can_be_read_once_are_kept_meanwhile(form):
    """A generator serves as well as a list."""
    queries, docs = [("q1", "a"), ("q2", "b")], [("d1", "x"), ("d2", "y"), ("d3", "z")]
    opened = read_pairs(form(queries), form(docs), {"q1": ["d3"], "q2": ["d1", "d3"]}, None)
    assert read_back(sent(opened)) == [("q1", "a", "d3", "z"), ("q2", "b", "d1", "x"), ("q2", "b", "d3", "z")]


def test_texts_without_ids_have_their_numbers():
    """As the rows of an encode job do."""
    opened = read_pairs(["a", "b"], ["x", "y"], {"1": ["0", "1"]}, None)
    assert read_back(sent(opened)) == [("1", "b", "0", "x"), ("1", "b", "1", "y")]


@pytest.fixture
def files(tmp_path):
    """Queries, documents and a run as files; returns a function that opens them."""
    (tmp_path / "Q.tsv").write_text("qid\ttext\nq1\tred fox\nq2\tblue sea\nq3\tnothing\n")
    for name, first in (("a", 0), ("b", 2)):
        lines = [json.dumps({"doc": f"d{i}", "body": f"text {i}"}) for i in (first, first + 1)]
        (tmp_path / f"D-{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.trec").write_text("q2 Q0 d3 1 2.0 x\nq1 Q0 d0 1 2.0 x\nq2 Q0 d0 2 1.0 x\nq1 Q0 d0 2 1.0 x\n")
    fields = {"query_id_field": "qid", "doc_field": "body", "doc_id_field": "doc"}
    return lambda: read_pairs(tmp_path / "Q.tsv", str(tmp_path / "D-*.jsonl"), tmp_path / "run.trec", None, **fields)


def test_files_of_any_format_are_read(files):
    """With the fields that are named, and warnings for what is left out."""
    opened = files()
    assert opened.n_pairs == 3
    assert opened.warnings == [
        "1 candidate named before for the same query: each counts once.",
        '1 query without candidates, so without results: "q3".',
    ]
    assert read_back(sent(opened)) == [
        ("q1", "red fox", "d0", "text 0"),
        ("q2", "blue sea", "d3", "text 3"),
        ("q2", "blue sea", "d0", "text 0"),
    ]


def test_the_key_covers_every_input(files, tmp_path):
    """The same command continues its job, a changed file makes another; Python objects are never the same."""
    key = files().key
    assert files().is_repeatable
    assert files().key == key
    for name in ("Q.tsv", "D-a.jsonl", "run.trec"):
        content = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content + "\n")
        assert files().key != key
        key = files().key
    given = [read_pairs(["a"], tmp_path / "Q.tsv", None, None) for _ in range(2)]
    assert given[0].key != given[1].key
    assert not given[0].is_repeatable


def test_documents_that_change_between_the_readings_are_noticed(files, tmp_path):
    """Otherwise pairs would be lost, or have other texts."""
    opened = files()
    assert opened.n_pairs == 3
    with (tmp_path / "D-b.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(BadInput, match="changed while it was read"):
        sent(opened)
    items = [("d1", "x"), ("d2", "y")]
    opened = read_pairs(["a"], items, {"0": ["d2"]}, None)
    assert opened.n_pairs == 1
    items.pop()
    with pytest.raises(BadInput, match="The documents changed while they were read: documents, item 1 is gone"):
        sent(opened)


def test_what_the_candidates_leave_out_is_counted():
    """Unknown queries, doubles, queries without candidates: one line each, with the first ids."""
    queries = {f"q{i}": "a" for i in range(6)}
    named = [("q0", ["d", "d", "d"]), ("?", ["d", "not there"]), ("??", "d")]
    opened = read_pairs(queries, {"d": "x"}, named, None)
    assert opened.n_pairs == 1
    assert opened.warnings == [
        "3 candidates of 2 query ids that no query has: left out.",
        "2 candidates named before for the same query: each counts once.",
        '5 queries without candidates, so without results: "q1", "q2", "q3", ....',
    ]


@pytest.mark.parametrize(
    ("queries", "docs", "candidates", "line"),
    [
        (["a"], ["x"], {"0": ["0", "7", "8", "7"]}, 'candidates, item 0: no document has the id "7" .*2 ids of 3 cand'),
        (["a"], ["x"], {"9": ["0"]}, "No query has a candidate; .*--query-id-field"),
        (["a"], ["x"], {}, "No query has a candidate"),
        ([("q", "a"), ("r", "b"), ("q", "c")], ["x"], None, 'queries, item 2: query id "q" stands at queries, item 0'),
        (["a"], [("d", "x"), ("d", "y"), ("d", "z"), ("e", "1"), ("e", "2")], None, "documents, item 1: .*1 more id;"),
        (["a", {"id": "0", "text": "b"}], ["x"], None, 'item 1: query id "0" stands at queries, item 0 already'),
        (["a"], [("", "x")], None, "documents, item 0: its id is empty"),
        (["a"], [("d", None)], None, "documents, item 0: "),
        ([], ["x"], None, "queries, the iterable holds no records"),
        (["a"], [], {"0": ["0"]}, "documents, the iterable holds no records"),
    ],
)
def test_what_cannot_be_is_one_line(queries, docs, candidates, line):
    """Before anything is sent, and without a text in it."""
    opened = read_pairs(queries, docs, candidates, None)
    with pytest.raises(BadInput, match=line):
        next(opened.parts(Settings()))


def test_lines_name_files_and_records(files, tmp_path):
    """Where several files are one corpus, the right one."""
    (tmp_path / "run.trec").write_text("q2 Q0 d3 1 2.0 x\n\nq1 Q0 d9 1 2.0 x\n")
    with pytest.raises(BadInput, match=r'run\.trec, line 3: no document has the id "d9"'):
        sent(files())
    (tmp_path / "D-b.jsonl").write_text('{"doc": "d7", "body": ""}\n\n{"doc": "d1", "body": ""}\n')
    with pytest.raises(BadInput, match=r'D-b\.jsonl, record 2: document id "d1" stands at .*D-a\.jsonl, record 2'):
        sent(files())


def test_a_full_disk_is_one_line(monkeypatch):
    """The ids of a large collection need some room."""
    monkeypatch.setattr(scratch, "CACHE_KIB", 1)
    opened = read_pairs(["a"], [f"text {i}" for i in range(10_000)], None, None)
    open_scratch = scratch.open_scratch

    def open_small(tables_: str):
        database = open_scratch(tables_)
        database.execute("PRAGMA max_page_count = 20")
        return database

    monkeypatch.setattr("producer.matching.open_scratch", open_small)
    with pytest.raises(UsageError, match=r"temporary files \(database or disk is full\): make room"):
        sent(opened)


@pytest.mark.parametrize("candidates", [None, {"0": ["1", "0"]}])
def test_a_disk_that_is_full_at_a_reading_is_one_line(monkeypatch, candidates):
    """SQLite sorts on disk."""
    made = []
    open_scratch = scratch.open_scratch
    monkeypatch.setattr("producer.matching.open_scratch", lambda tables_: made.append(open_scratch(tables_)) or made[0])
    opened = read_pairs(["a"], iter(["x", "y"]), candidates, None)
    parts = opened.parts(Settings())
    assert isinstance(next(parts), TextBlock)
    made[0].set_progress_handler(lambda: True, 1)  # it is interrupted at its next step, an OperationalError too
    with pytest.raises(UsageError, match=r"temporary files \(interrupted\): make room"):
        list(parts)
    with pytest.raises(UsageError, match="make room"):
        _ = opened.n_pairs


def test_a_text_that_is_too_long_for_the_scratch_is_one_line(monkeypatch):
    """SQLite takes a gigabyte."""
    open_scratch = scratch.open_scratch

    def open_narrow(tables_: str):
        database = open_scratch(tables_)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2000)
        return database

    monkeypatch.setattr("producer.matching.open_scratch", open_narrow)
    with pytest.raises(BadInput, match=r"more than a gigabyte .* cut it"):
        sent(read_pairs(["a"], iter(["x" * 3000]), None, None))


@pytest.mark.parametrize(
    ("queries", "docs", "candidates", "line"),
    [
        ({"q 1": "a"}, {"d": "x"}, None, 'queries, item 0: the query id "q 1" holds white space, which a TREC run'),
        ({"q": "a"}, {"d": "x", "\u3000": "y"}, None, "documents, item 1: the document id"),
        ({"q": "a"}, {"d": "x", "e\n": "y"}, {"q": ["d", "e\n"]}, "documents, item 1: the document id"),
    ],
)
def test_ids_that_an_output_cannot_say_are_refused_before_anything_is_sent(queries, docs, candidates, line):
    """Not only when all is scored; every other output takes them."""
    assert sent(read_pairs(queries, docs, candidates, None))
    opened = read_pairs(queries, docs, candidates, None)
    opened.demands = Demands(has_plain_ids=True)
    with pytest.raises(BadInput, match=line):
        next(opened.parts(Settings()))


def test_ids_that_are_in_no_pair_may_be_any():
    """They are not written."""
    opened = read_pairs({"q": "a", "q 1": "b"}, {"d": "x", "e f": "y"}, {"q": ["d"]}, None)
    opened.demands = Demands(is_ranked=True, has_plain_ids=True)
    assert len(read_back(sent(opened))) == 1


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"queries": ["a"]}, "give queries and docs, or pairs"),
        ({"documents": ["a"], "candidates": {}}, "give queries and docs, or pairs"),
        ({}, "give queries and docs, or pairs"),
        ({"pairs": [("a", "b")], "candidates": {}}, "Pairs have queries and documents already"),
        ({"pairs": [("a", "b")], "queries": ["a"]}, "Pairs have queries and documents already"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(given, line):
    """There are two forms."""
    inputs = {"queries": None, "documents": None, "candidates": None, "pairs": None, **given}
    with pytest.raises(UsageError, match=line):
        read_pairs(**inputs)


# -- pairs as records --------------------------------------------------------------------------------------------------


def runs_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield for each text how many other ones came before it in a row."""
    for number, (_, same) in enumerate(itertools.groupby(texts)):
        yield from (str(number) for _ in same)


@given(
    told=st.lists(st.tuples(st.sampled_from(["", "a", "b b"]), TEXTS), min_size=1, max_size=40),
    chunk_rows=st.integers(1, 5),
    chunk_bytes=st.sampled_from([1, 30, 10_000]),
)
def test_pairs_are_sent_as_they_are(told, chunk_rows, chunk_bytes):
    """In their order; a query that several pairs in a row have is sent once, and ids are numbers."""
    opened = read_pairs(None, None, None, told)
    assert opened.n_pairs == len(told)
    parts = sent(opened, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    numbers = list(runs_of(query for query, _ in told))
    assert read_back(parts) == [
        (number, query, str(i), document)
        for i, (number, (query, document)) in enumerate(zip(numbers, told, strict=True))
    ]
    assert len(texts_of(parts)) == len(set(numbers)) + len(told)
    assert opened.warnings == []


def record(query: str, doc: str) -> dict[str, str]:
    """Return a record with ids that tell the texts."""
    return {"query_id": query, "query": f"text of {query}", "doc_id": doc, "document": f"text of {doc}"}


def test_pairs_with_ids_keep_them():
    """Equal texts in a row are sent once."""
    items = [record("q1", "d1"), record("q1", "d2"), record("q2", "d2"), record("q2", "d1")]
    opened = read_pairs(None, None, None, items)
    parts = sent(opened)
    assert read_back(parts) == [(i["query_id"], i["query"], i["doc_id"], i["document"]) for i in items]
    assert [id_ for id_, _ in texts_of(parts)] == ["q1", "d1", "d2", "q2", "d1"]
    assert opened.warnings == []


def test_queries_that_come_back_and_doubles_are_counted():
    """Rankings need the pairs of a query together."""
    items = [record("q1", "d1"), record("q2", "d1"), record("q1", "d1"), record("q1", "d2"), record("q2", "d1")]
    opened = read_pairs(None, None, None, items)
    assert len(read_back(sent(opened))) == 5
    returns, doubles = opened.warnings
    assert returns.startswith("2 times a query comes back after another one")
    assert doubles == "2 pairs with the ids of an earlier one: each is scored."


@pytest.mark.parametrize(
    ("items", "demands", "line"),
    [
        (
            ["q d", "r d", "q e"],
            Demands(is_ranked=True),
            'Pair 2, counted from 0: the query "q" comes back .* Sort the',
        ),
        (["q d", "r\td e"], Demands(has_plain_ids=True), r'Pair 1, counted from 0: the query id "r\\td" holds white'),
        (["q d", "r d\u2003e"], Demands(has_plain_ids=True), "Pair 1, counted from 0: the document id"),
    ],
)
def test_pairs_that_an_output_cannot_say_are_refused_as_they_are_sent(items, demands, line):
    """Not only when all is scored; every other output takes them."""
    items = [record(*item.split(" ")) for item in items]
    assert sent(read_pairs(None, None, None, items))
    opened = read_pairs(None, None, None, items)
    opened.demands = demands
    with pytest.raises(BadInput, match=line):
        sent(opened)


def test_a_query_id_with_several_texts_is_one_query():
    """As the views of a topic are; nothing comes back."""
    opened = read_pairs(None, None, None, [record("q1", "d1"), {**record("q1", "d2"), "query": "in other words"}])
    assert [told[:2] for told in read_back(sent(opened))] == [("q1", "text of q1"), ("q1", "in other words")]
    assert opened.warnings == []


@pytest.mark.parametrize(
    ("left_out", "line"),
    [
        ({1: ["doc_id"]}, "Pair 1, counted from 0, lacks the document id that those before it have: give all"),
        ({2: ["query_id"]}, "Pair 2, counted from 0, lacks the query id that"),
        ({0: ["query_id"], 1: ["query_id"]}, "Pair 2, counted from 0, alone has a query id: give all"),
        ({0: ["doc_id"]}, "Pair 1, counted from 0, alone has a document id"),
    ],
)
def test_ids_of_some_pairs_alone_are_refused(left_out, line):
    """The number that one gets may be another's id, and its scores would count for that one."""
    items = [record("1", "1"), record("1", "2"), record("b", "2")]
    for number, fields in left_out.items():
        for field in fields:
            del items[number][field]
    with pytest.raises(BadInput, match=line):
        sent(read_pairs(None, None, None, items))


def test_equal_pairs_without_end_are_passed_on():
    """Their texts fill no block, and yet nothing piles up."""
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield record("q", "d")

    parts = read_pairs(None, None, None, endless()).parts(Settings(chunk_rows=10))
    first = list(itertools.islice(parts, 6))
    assert [type(part) for part in first] == [TextBlock, *[PairChunk] * 4, PairChunk]
    assert asked < 200


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.jsonl", "pairs.parquet"])
def test_files_of_pairs_are_read(tmp_path, name):
    """Every format that has fields; an empty cell of csv is no id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"q": "red fox", "qid": "q1", "d": "a fox", "did": None},
        {"q": "sea", "qid": "q2", "d": "blue", "did": None},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        comma = "," if name.endswith("csv") else "\t"
        path.write_text("\n".join([comma.join(rows[0]), *(comma.join(v or "" for v in row.values()) for row in rows)]))
    fields = {"query_field": "q", "doc_field": "d", "query_id_field": "qid", "doc_id_field": "did"}
    opened = read_pairs(None, None, None, path, **fields)
    assert (opened.n_pairs, opened.is_repeatable) == (None, True)
    assert opened.key == read_pairs(None, None, None, path, **fields).key
    assert opened.key != read_pairs(None, None, None, path, **{**fields, "query_id_field": "q"}).key
    assert read_back(sent(opened)) == [("q1", "red fox", "0", "a fox"), ("q2", "sea", "1", "blue")]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("p.jsonl", '{"query": "a"}', r'p\.jsonl, line 1: no field "document".*--doc-field'),
        ("p.jsonl", '{"document": "a"}', r'p\.jsonl, line 1: no field "query".*--query-field'),
        ("p.jsonl", '{"query": 3, "document": "a"}', r'p\.jsonl, line 1: field "query" is a number'),
        ("p.jsonl", '{"query": "a", "document": "a", "query_id": ""}', r'line 1: field "query_id" is empty'),
        ("p.jsonl", '{"query": "a", "document": "a", "doc_id": ""}', r'line 1: field "doc_id" is empty'),
        ("p.jsonl", '{"query": "a", "document": "a", "doc_id": [1]}', r'line 1: field "doc_id" is a list'),
        ("p.csv", "document\na\n", r'p\.csv, line 2: no field "query"'),
        ("p.csv", "query\na\n", r'p\.csv: no field "document"|p\.csv: .*"document"'),
        ("p.txt", "a\n", r"p\.txt: lines of text have no fields; a pair needs two"),
    ],
)
def test_a_record_that_is_no_pair_is_named(tmp_path, name, text, line):
    """With file, line and option."""
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=line):
        read_pairs(None, None, None, tmp_path / name)


@pytest.mark.parametrize(
    ("items", "line"),
    [
        (["a"], "pairs, item 0: a string, not a dict or a"),
        ([("a", "b"), ("a", 3)], "pairs, item 1: "),
        ([("a", "\ud800")], "pairs, item 0: .*lone surrogate"),
        ([{"query": "a"}], "pairs, item 0: no field .document.*doc_field"),
        ([], "There are no pairs"),
    ],
)
def test_an_item_that_is_no_pair_is_named(items, line):
    """By its number."""
    with pytest.raises(BadInput, match=line):
        sent(read_pairs(None, None, None, items))


def test_a_long_text_has_a_block_of_its_own_or_ends_one():
    """Blocks are of about one size, whatever the texts are."""
    packer = text_blocks.BlockPacker()
    places = [packer.add("d", text) for text in ["x" * 30, "y" * 500, "z", "x" * 60, "w"]]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [block.number for block in packer.take()] == [0, 1]
    assert [block.number for block in packer.take_all()] == [2]
    assert list(packer.take_all()) == []


def test_no_text_is_in_a_repr_or_a_log(caplog):
    """A part may end up in a log, a record may not."""
    with caplog.at_level(logging.DEBUG):
        parts = sent(read_pairs([("q", "secret")], [("d", "secret")], None, None))
    assert "secret" not in repr(parts) + caplog.text
