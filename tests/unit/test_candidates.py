"""Reading candidates, and the line that says what is wrong with one."""

from __future__ import annotations

import gzip
import sys
from functools import partial

import numpy as np
import pytest

from producer.candidates import read_candidates
from tasks.errors import BadInput

RUN = "q1 Q0 d1 1 9.5 bm25\nq1\tQ0\td2\t2\t8\tbm25\n\nq2 Q0 d1 1 3 bm25\n"
LINES = '{"query_id": "q1", "doc_ids": ["d1", "d2"]}\n\n{"query_id": "q2", "doc_id": "d1"}\n'
PAIRS = [("q1", "d1"), ("q1", "d2"), ("q2", "d1")]


def pairs_of(given) -> list[tuple[str, str]]:
    """Return what candidates say."""
    return [(found.query, found.document) for found in read_candidates(given).read()]


@pytest.mark.parametrize("name", ["run.trec", "run.run", "run.txt", "run", "bm25.v1.2", "run.jsonl"])
def test_runs_and_json_lines_say_the_same(tmp_path, name):
    """A run may have any name; what a line is, it shows."""
    for text in (RUN, LINES):
        (tmp_path / name).write_text(text)
        assert pairs_of(tmp_path / name) == PAIRS


@pytest.mark.parametrize("name", ["run.trec.gz", "run.jsonl.gz", "run.gz"])
def test_packed_candidates_are_unpacked(tmp_path, name):
    """Runs of whole collections are large."""
    (tmp_path / name).write_bytes(gzip.compress(RUN.encode()))
    assert pairs_of(str(tmp_path / name)) == PAIRS


@pytest.mark.parametrize(
    "given",
    [
        {"q1": ["d1", "d2"], "q2": ("d1",)},
        [("q1", ["d1", "d2"]), ("q2", "d1")],
        (pair for pair in PAIRS),
        {"q1": np.array(["d1", "d2"]), "q2": iter(["d1"])},
    ],
)
def test_python_callers_give_mappings_or_pairs(given):
    """Document ids one by one, or all of a query."""
    assert pairs_of(given) == PAIRS


def test_ids_may_be_numbers():
    """They are strings everywhere else."""
    assert pairs_of({1: [2, np.int64(3)]}) == [("1", "2"), ("1", "3")]


def test_several_files_are_one_run(tmp_path):
    """A glob names the shards of a run; each knows its lines."""
    for name in ("a.run", "b.run"):
        (tmp_path / name).write_text(RUN)
    candidates = read_candidates(str(tmp_path / "*.run"))
    found = list(candidates.read())
    assert [(candidate.query, candidate.document) for candidate in found] == PAIRS * 2
    assert candidates.place(found[-1].source, found[-1].line) == f"{tmp_path}/b.run, line 4"


def test_the_same_file_has_the_same_key(tmp_path):
    """So that the same command continues its job; what a Python caller has is never the same."""
    (tmp_path / "a").write_text(RUN)
    (tmp_path / "b").write_text(RUN)
    keys = {name: read_candidates(tmp_path / name).key for name in ("a", "b")}
    assert keys["a"] == read_candidates(tmp_path / "a").key != keys["b"]
    assert read_candidates({"q": ["d"]}).key is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("q1 Q0 d1 1 9.5 bm25\nq1 d2\n", "run, line 2: 2 columns; a line of a TREC run has six"),
        ("q1 Q0 d1 1 9.5 my tag\n", "run, line 1: 7 columns"),
        ('{"query_id": "q1"}\n', 'run, line 1: "doc_id" is missing or empty'),
        ('{"doc_id": "d1"}\n', 'run, line 1: "query_id" is missing or empty'),
        ('{"query_id": "q1", "doc_ids": ["d1", ""]}\n', 'run, line 1: "doc_ids" is missing or empty'),
        ('{"query_id": "q1", "doc_ids": [["d1"]]}\n', "run, line 1: .*a list"),
        ('{"query_id": {}, "doc_id": "d1"}\n', "run, line 1: .*an object"),
        ('{"query_id": "q1", "doc_id": {"a": 1}}\n', "run, line 1: .*an object"),
        ('{"query_id": "q1"', r"run, line 1: not valid JSON"),
        ("\n \n", "run: it holds no candidates"),
        ("", "run is empty"),
    ],
)
def test_a_line_that_is_no_candidate_is_named(tmp_path, text, line):
    """With the file and what is expected."""
    (tmp_path / "run").write_text(text)
    with pytest.raises(BadInput, match=line):
        pairs_of(tmp_path / "run")


def test_an_id_that_is_nested_too_deeply_is_named(tmp_path, request):
    """Python walks it by recursion, whose limit torch's compiler raises for the whole process."""
    request.addfinalizer(partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(1000)
    (tmp_path / "run").write_text('{"query_id": ' + "[" * 700 + "]" * 700 + ', "doc_id": "d"}\n')
    with pytest.raises(BadInput, match=r"run, line 1: .*nested too deeply"):
        pairs_of(tmp_path / "run")


@pytest.mark.parametrize("name", ["run.csv", "run.tsv.gz", "run.parquet"])
def test_other_formats_are_refused(tmp_path, name):
    """They have no agreed columns."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadInput, match="candidates are a TREC run or JSON lines, not"):
        read_candidates(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["q1"], "candidates, item 0: a string, not a"),
        ([("q1", "d1"), ("q1",)], "candidates, item 1: a list|candidates, item 1: a value of type tuple"),
        ({"q1": [None]}, 'candidates, item 0: "doc_ids" is missing'),
        ({"q1": None}, 'candidates, item 0: "doc_id" is missing'),
    ],
)
def test_an_item_that_is_no_candidate_is_named(given, line):
    """By its number."""
    with pytest.raises(BadInput, match=line):
        pairs_of(given)


def test_broken_data_is_one_line(tmp_path):
    """As for every other input."""
    (tmp_path / "run.gz").write_bytes(gzip.compress(RUN.encode() * 1000)[:60])
    with pytest.raises(BadInput, match=r"run\.gz: broken gzip data"):
        pairs_of(tmp_path / "run.gz")
