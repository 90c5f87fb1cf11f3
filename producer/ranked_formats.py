"""File formats of rankings. Each turns an open file into a function that appends the ranking of a query.

============= =======================================================================================
.trec .run    a line a pair, ``qid Q0 docid rank score tag``, as trec_eval reads it; no pair with an error
.jsonl        an object a query with its ranked list, and its pairs with an error if there are any
============= =======================================================================================

Scores are the shortest decimals that are read back as the same float32. trec_eval itself orders by score alone and
breaks ties by its own rule, whatever the ranks say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from producer.columns import ResultInfo
from producer.demands import is_plain
from producer.json_lines import number_texts, to_json
from producer.ranking import Ranking
from tasks.errors import UsageError

AppendRanking = Callable[[Ranking], object]


@contextmanager
def trec_run(file: IO[bytes], info: ResultInfo) -> Iterator[AppendRanking]:
    """Write a TREC run; its tag is the job's name, if that can be one.

    Raises:
        UsageError: an id is empty or has white space; the line names the row.
    """
    tag = info.name if is_plain(info.name) else "penstock"
    yield lambda ranking: file.write(_run_lines(ranking, tag))


@contextmanager
def query_lines(file: IO[bytes], info: ResultInfo) -> Iterator[AppendRanking]:  # noqa: ARG001 - as other formats
    """Write an object a query, in lines."""
    yield lambda ranking: file.write(_query_line(ranking))


def _run_lines(ranking: Ranking, tag: str) -> bytes:
    _check_ids(ranking.best)
    docs, scores = _documents(ranking.best)
    lines = [
        f"{ranking.query_id} Q0 {doc} {rank} {score} {tag}\n"
        for rank, (doc, score) in enumerate(zip(docs, scores, strict=True), 1)
    ]
    return "".join(lines).encode()


def _check_ids(pairs: pa.Table) -> None:
    for column in ("query_id", "doc_id"):
        at = next((i for i, text in enumerate(pairs[column].to_pylist()) if not is_plain(text)), None)
        if at is None:
            continue
        row = pairs["row"][at].as_py()
        raise UsageError(
            f"Row {row} has a {column} that is empty or holds white space, which a TREC run cannot say. "
            "Collect as .jsonl or .parquet instead.",
            row=row,
            column=column,
        )


def _query_line(ranking: Ranking) -> bytes:
    docs, scores = _documents(ranking.best)
    results = (f'{{"doc_id": {to_json(doc)}, "score": {score}}}' for doc, score in zip(docs, scores, strict=True))
    failed = ranking.failed.select(["doc_id", "error"]).to_pylist()
    errors = f', "errors": {to_json(failed)}' if failed else ""
    return f'{{"query_id": {to_json(ranking.query_id)}, "results": [{", ".join(results)}]{errors}}}\n'.encode()


def _documents(pairs: pa.Table) -> tuple[list[str], list[str]]:
    """Return the ids of pairs and their scores as text."""
    scores = pairs["score"].combine_chunks().to_numpy()
    return pairs["doc_id"].to_pylist(), number_texts(scores).to_pylist()
