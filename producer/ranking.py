"""Pairs of query and document, ranked one query at a time.

A query's pairs stand together in the order of the job, so what is in memory is one query (measured: up to 600 bytes a
pair while it is written as text), and the id of every query that passed (some 150 bytes each), by which one that comes
back is noticed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import UsageError

log = logging.getLogger(__name__)

#: The best first; equal scores by document id, byte by byte, so that the same scores give the same ranking.
_ORDER = [("score", "descending"), ("doc_id", "ascending")]


#: Ranked rows that are written at a time, at least: a table a query would be a record batch of a few rows each.
TABLE_ROWS = 10_000


class Ranking(NamedTuple):
    """The pairs of one query, with the columns of a result.

    Attributes:
        query_id: the query's.
        best: the pairs with a score, ranked.
        failed: those with an error, in the order of the job.
    """

    query_id: str
    best: pa.Table
    failed: pa.Table


def rank(tables: Iterable[pa.Table], top_k: int | None) -> Iterator[Ranking]:
    """Rank the pairs of each query, queries in the order of the job. Of equal pairs, the first with a score counts.

    Args:
        tables: results of a scoring job.
        top_k: how many of the ranked pairs are kept; all if None.

    Raises:
        UsageError: a query comes back after another one.
    """
    n_doubled = 0
    for pairs in _queries(tables):
        has_score = pc.fill_null(pc.is_finite(pairs["score"]), fill_value=False).to_numpy()
        firsts = _first_of_each(pairs["doc_id"], has_score)
        n_doubled += len(pairs) - len(firsts)
        failed = pairs.take(firsts[~has_score[firsts]])
        yield Ranking(pairs["query_id"][0].as_py(), _ranked(pairs.take(firsts[has_score[firsts]]), top_k), failed)
    if n_doubled:
        log.warning(
            "%d pairs came more than once; the first with a score is ranked",
            n_doubled,
            extra={"action": "drop doubles"},
        )


def best_rows(tables: Iterable[pa.Table], top_k: int | None) -> Iterator[pa.Table]:
    """Pass results on as they are; with top_k, the best pairs of each query, and a warning of how many failed."""
    if top_k is None:
        yield from tables
        return
    n_failed = n_held = 0
    held: list[pa.Table] = []
    for ranking in rank(tables, top_k):
        n_failed += len(ranking.failed)
        n_held += len(ranking.best)
        if len(ranking.best):
            held.append(ranking.best)
        if n_held >= TABLE_ROWS:
            yield _as_one(held)
            held, n_held = [], 0
    if held:
        yield _as_one(held)
    warn_of_failed(n_failed)


def warn_of_failed(n_failed: int) -> None:
    """Say how many pairs have no place in a ranking, if any."""
    if n_failed:
        log.warning(
            "%d pairs have an error and are in no ranking; `penstock status` names them",
            n_failed,
            extra={"action": "drop errors"},
        )


def _queries(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield all pairs of each query, which chunks may have cut apart."""
    begun: dict[str, int] = {}  # query -> its first row
    held: list[pa.Table] = []
    current = None
    for piece in _runs(tables):
        query, row = piece["query_id"][0].as_py(), piece["row"][0].as_py()
        if held and query != current:
            yield pa.concat_tables(held)
            held.clear()
        if query != current and begun.setdefault(query, row) != row:
            raise _comes_back(query, begun[query], row)
        current = query
        held.append(piece)
    if held:
        yield pa.concat_tables(held)


def _as_one(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


def _runs(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables where the query changes."""
    for table in tables:
        ids = table["query_id"].combine_chunks()
        changes = np.flatnonzero(pc.not_equal(ids[1:], ids[:-1])) + 1
        starts = [0, *changes.tolist(), len(table)]
        for start, stop in itertools.pairwise(starts):
            if stop > start:
                yield table.slice(start, stop - start)


def _comes_back(query: str, first: int, row: int) -> UsageError:
    return UsageError(
        f"Query {query[:80]!r} begins at row {first}, and comes back at row {row} after other queries: its pairs are "
        "ranked only if they stand together. Sort the pairs by query and score them again, or collect all pairs "
        "without --top-k as .parquet, .arrow or .npy.",
        query=query,
        rows=[first, row],
    )


def _first_of_each(docs: pa.ChunkedArray, has_score: np.ndarray) -> np.ndarray:
    """Return which pairs of one query count: of each document the first with a score, else the first, in order.

    Args:
        docs: (n_pairs,) ids.
        has_score: (n_pairs,)
    """
    codes = docs.combine_chunks().dictionary_encode().indices.to_numpy()
    scored_first = np.argsort(~has_score, kind="stable")
    firsts: np.ndarray = np.sort(scored_first[np.unique(codes[scored_first], return_index=True)[1]])
    return firsts


def _ranked(pairs: pa.Table, top_k: int | None) -> pa.Table:
    return pairs.take(pc.sort_indices(pairs, sort_keys=_ORDER)[:top_k])
