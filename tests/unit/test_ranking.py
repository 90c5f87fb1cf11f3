"""Pairs become rankings, one query at a time."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer import ranking
from producer.ranking import best_rows, rank
from tasks.errors import UsageError
from tests.scores import Scored, chunk, chunks

#: Few documents and scores, so that there are ties and doubles; among them what floats have of the strange.
DOCS = st.sampled_from(["", "a", "b", "B", "é", "日本", "a b", "\U0001f989", "10", "9"])
SCORES = st.none() | st.sampled_from([0.0, -0.0, 0.5, 1e-45, -3.4e38, 0.1]) | st.floats(-1, 1, width=32)


@st.composite
def jobs(draw) -> tuple[list[Scored], list[pa.Table]]:
    """Draw pairs of a few queries, and the chunks that they were cut into anywhere."""
    names = draw(st.lists(st.sampled_from(["", "q1", "q 2", "Ω", "x"]), unique=True))
    pairs = [
        Scored(query, doc, score)
        for query in names
        for doc, score in draw(st.lists(st.tuples(DOCS, SCORES), min_size=1, max_size=12))
    ]
    return pairs, chunks(pairs, draw(st.lists(st.integers(0, 60), max_size=8)))


def plainly(pairs: list[Scored]) -> dict[str, list[tuple[str, float]]]:
    """Rank as one would on paper."""
    found: dict[str, list[tuple[str, float]]] = {}
    for query, group in itertools.groupby(pairs, lambda pair: pair.query):
        firsts: dict[str, float | None] = {}
        for pair in group:
            if firsts.get(pair.doc) is None:
                firsts[pair.doc] = pair.score
        scored = [(doc, float(np.float32(score))) for doc, score in firsts.items() if score is not None]
        found[query] = sorted(scored, key=lambda item: (-item[1], item[0].encode()))
    return found


def ranked(tables: list[pa.Table], top_k: int | None = None) -> dict[str, list[tuple[str, float]]]:
    """Return what ``rank`` makes of tables."""
    return {
        one.query_id: list(zip(one.best["doc_id"].to_pylist(), one.best["score"].to_pylist(), strict=True))
        for one in rank(tables, top_k)
    }


@given(drawn=jobs())
def test_any_pairs_in_any_chunks_are_ranked_as_by_a_plain_sort(drawn):
    """Ties are in the order of the ids, whatever borders the chunks have, and the queries keep their order."""
    pairs, tables = drawn
    found = ranked(tables)
    assert found == plainly(pairs)
    assert list(found) == list(dict.fromkeys(pair.query for pair in pairs))


@given(drawn=jobs(), top_k=st.integers(1, 15))
def test_a_cut_ranking_is_the_head_of_the_whole_one(drawn, top_k):
    """The cut changes nothing above it."""
    _, tables = drawn
    assert ranked(tables, top_k) == {query: docs[:top_k] for query, docs in ranked(tables).items()}


@given(drawn=jobs())
def test_every_distinct_pair_is_ranked_or_failed(drawn):
    """None is lost, none is in both, and no rank is without a number."""
    pairs, tables = drawn
    for one in rank(tables, None):
        best, failed = one.best["doc_id"].to_pylist(), one.failed["doc_id"].to_pylist()
        assert sorted(best + failed) == sorted({pair.doc for pair in pairs if pair.query == one.query_id})
        assert np.isfinite(one.best["score"].to_numpy()).all()
        assert one.failed["error"].null_count == 0


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_in_no_ranking(strange):
    """Nothing can be said to be better or worse than it."""
    (one,) = rank([chunk(0, [Scored("q", "a", strange), Scored("q", "b", 1.0)])], None)
    assert one.best["doc_id"].to_pylist() == ["b"]
    assert one.failed["doc_id"].to_pylist() == ["a"]


def test_of_equal_pairs_the_first_counts_and_their_number_is_said(caplog):
    """Whatever the others score, and whichever chunk they are in."""
    pairs = [Scored("q", "a", 0.1), Scored("q", "b", 0.5), Scored("q", "a", 0.9), Scored("q", "a", 0.8)]
    with caplog.at_level(logging.WARNING):
        assert ranked(chunks(pairs, [1, 3])) == {"q": [("b", 0.5), ("a", pytest.approx(0.1))]}
    assert [record.getMessage() for record in caplog.records] == [
        "2 pairs came more than once; the first with a score is ranked"
    ]


def test_of_equal_pairs_one_with_an_error_does_not_count():
    """What another one was given is its score; if all have errors, it failed once."""
    pairs = [Scored("q", "a", None), Scored("q", "b", None), Scored("q", "a", 0.5), Scored("q", "b", None)]
    (one,) = rank(chunks([*pairs, Scored("q", "a", 0.75)], [2]), None)
    assert (one.best["row"].to_pylist(), one.failed["row"].to_pylist()) == ([2], [1])


def test_equal_documents_of_different_queries_are_no_doubles(caplog):
    """Every query has the same few."""
    ranked(chunks([Scored(query, doc, 0.5) for query in "qrs" for doc in "ab"], [3]))
    assert not caplog.records


def test_a_query_that_comes_back_is_refused_with_its_rows():
    """And with what to do."""
    pairs = [Scored("q", "a", 0.1), Scored("q", "b", 0.2), Scored("r", "a", 0.3), Scored("q", "c", 0.4)]
    with pytest.raises(UsageError, match=r"'q' begins at row 0, and comes back at row 3 .* Sort the pairs") as caught:
        ranked(chunks(pairs, [2]))
    assert caught.value.data == {"query": "q", "rows": [0, 3]}


def test_rows_are_passed_on_untouched_without_a_cut():
    """In the order of the job, a query that comes back and all."""
    tables = chunks([Scored(query, "a", 0.5) for query in "qrq"], [1])
    assert list(best_rows(tables, None)) == tables


def test_the_best_rows_have_all_columns_and_failed_pairs_are_counted(caplog):
    """A user sees which pair of the job each one is, and that some are not there."""
    pairs = [Scored("q", "a", None), Scored("q", "b", 0.1), Scored("q", "c", 0.2), Scored("r", "a", None)]
    with caplog.at_level(logging.WARNING):
        (best,) = best_rows(chunks(pairs), 1)
    assert best.to_pylist() == [
        {
            "row": 2,
            "query_id": "q",
            "doc_id": "c",
            "score": np.float32(0.2),
            "n_tokens": 7,
            "truncated": False,
            "error": None,
        }
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "2 pairs have an error and are in no ranking; `penstock status` names them"
    ]


def test_the_best_rows_of_many_queries_are_tables_of_some_size(monkeypatch):
    """A file of a record batch for each query would be mostly their heads."""
    monkeypatch.setattr(ranking, "TABLE_ROWS", 3)
    tables = chunks([Scored(f"q{i}", doc, 0.5) for i in range(4) for doc in "abc"], [5])
    assert [table["row"].to_pylist() for table in best_rows(tables, 2)] == [[0, 1, 3, 4], [6, 7, 9, 10]]


def test_one_query_is_in_memory_at_a_time():
    """When a query is ranked, the chunks of those before are gone."""
    seen: list[weakref.ref[pa.Table]] = []

    def tables() -> Iterator[pa.Table]:
        for number in range(20):
            table = chunk(number, [Scored(f"q{number}", "a", 0.5)])
            seen.append(weakref.ref(table))
            yield table

    most_alive = 0
    for _ in rank(tables(), None):
        most_alive = max(most_alive, sum(ref() is not None for ref in seen))
    assert most_alive <= 2


def test_a_job_without_pairs_has_no_rankings():
    """Nor do empty chunks make one."""
    assert ranked([]) == {}
    assert ranked([chunk(0, [])]) == {}
