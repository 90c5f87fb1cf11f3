"""The pairs of a bench, in a folder as ``penstock score`` reads it: queries, documents, and which of them meet.

``queries.jsonl`` and ``docs.jsonl`` have an ``id`` and a ``text`` a line, ``candidates.jsonl`` a ``query_id`` and its
``doc_ids``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tasks.ports import Pair
from workers.bench import corpus

#: What the made-up documents are ranked by.
QUERY = "How do people search the catalogue of a library for documents on a subject?"

QUERIES, DOCS, CANDIDATES = "queries.jsonl", "docs.jsonl", "candidates.jsonl"


class Pairs(NamedTuple):
    """n pairs in the order of their scores.

    Attributes:
        query_ids: of each pair.
        doc_ids: of each pair.
        pairs: their texts.
    """

    query_ids: list[str]
    doc_ids: list[str]
    pairs: list[Pair]


def make_up(folder: Path, n_pairs: int) -> None:
    """Write one query and documents of made-up English, the same ones every time."""
    texts = corpus.make_up(n_pairs)
    ids = [str(number) for number in range(1, n_pairs + 1)]
    _write(folder / QUERIES, [{"id": "1", "text": QUERY}])
    _write(folder / DOCS, ({"id": id_, "text": text} for id_, text in zip(ids, texts, strict=True)))
    _write(folder / CANDIDATES, [{"query_id": "1", "doc_ids": ids}])


def read(folder: Path) -> Pairs:
    """Read the pairs of a folder, queries in the order of their candidates."""
    queries, docs = (_texts(folder / name) for name in (QUERIES, DOCS))
    found = [(line["query_id"], doc) for line in _lines(folder / CANDIDATES) for doc in line["doc_ids"]]
    query_ids, doc_ids = ([ids[side] for ids in found] for side in (0, 1))
    return Pairs(query_ids, doc_ids, [Pair(queries[query], docs[doc]) for query, doc in found])


def _texts(path: Path) -> dict[str, str]:
    return {line["id"]: line["text"] for line in _lines(path)}


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
