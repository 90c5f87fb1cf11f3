"""The pairs of ``penstock bench score``: the first ones of a person's files, as all contenders read them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from producer.candidates import Candidates
from producer.texts import Texts
from tasks.errors import BadInput


def copy_pairs(queries: Texts, docs: Texts, candidates: Candidates | None, most: int, folder: Path) -> None:
    """Write the first pairs, in the order of ``penstock score``, with the texts that they need.

    Args:
        queries: those that come first, come first.
        docs: all of them are in memory, as far as they are needed.
        candidates: which documents each query meets; without them, every query meets every one.
        most: pairs that are written.
        folder: gets ``queries.jsonl``, ``docs.jsonl`` and ``candidates.jsonl``.

    Raises:
        BadInput: something cannot be read, a document is not there, or there is no pair.
    """
    asked = dict(_read(queries))
    if candidates is None:
        texts = dict(itertools.islice(_read(docs), most))
        wanted: dict[str, list[str]] = {query: list(texts) for query in asked}
    else:
        wanted = {query: [] for query in asked}
        for candidate in candidates.read():
            wanted.get(candidate.query, []).append(candidate.document)
    chosen = _first(wanted, most)
    if candidates is not None:
        needed = {doc for found in chosen.values() for doc in found}
        texts = {doc: text for doc, text in _read(docs) if doc in needed}
        _check(chosen, needed - texts.keys())
    _write(folder / "queries.jsonl", ({"id": query, "text": asked[query]} for query in chosen))
    _write(folder / "docs.jsonl", ({"id": doc, "text": text} for doc, text in texts.items()))
    _write(folder / "candidates.jsonl", ({"query_id": query, "doc_ids": found} for query, found in chosen.items()))


def _read(texts: Texts) -> Iterator[tuple[str, str]]:
    """Yield ids and texts; what has no id has its number."""
    for number, row in enumerate(texts.rows()):
        yield str(number) if row.id is None else row.id, row.text


def _first(wanted: dict[str, list[str]], most: int) -> dict[str, list[str]]:
    """Return the first pairs, each of them once, without queries that have none."""
    chosen: dict[str, list[str]] = {}
    for query, docs in wanted.items():
        found = list(itertools.islice(dict.fromkeys(docs), most))
        if found:
            chosen[query] = found
        most -= len(found)
    return chosen


def _check(chosen: dict[str, list[str]], missing: set[str]) -> None:
    if not chosen:
        raise BadInput("--candidates: no candidate is of one of the queries.")
    if missing:
        raise BadInput(f"--docs: there is no document with the id {min(missing)[:80]!r}, which --candidates names.")


def _write(path: Path, records: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
