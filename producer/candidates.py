"""Candidates: which documents each query meets, from a TREC run, JSON lines, or a Python caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from producer.corpus import files_in, submission_key
from producer.formats import lines_of, object_of
from producer.rows import Flaw, id_of, json_value, kind_of
from producer.sources import Source, expand
from tasks.errors import BadInput

#: What `Client.score` takes: a path, glob or URL, several of them as ``Path`` in a list; a mapping of query ids to
#: document ids; or (query id, document ids) pairs.
CandidatesLike = str | Path | Sequence[Path] | Mapping[str, Iterable[str]] | Iterable[tuple[str, str | Iterable[str]]]

#: The columns of a TREC run.
_COLUMNS = "query Q0 document rank score tag"
_FORMATS = "a TREC run or JSON lines"


class Candidate(NamedTuple):
    """A document that a query meets.

    Attributes:
        query: its id.
        document: its id.
        source: which source names it, from 0.
        line: the line there, from 1, or the item, from 0.
    """

    query: str
    document: str
    source: int
    line: int


class Candidates(ABC):
    """Candidates, ready to be read once.

    Attributes:
        key: the same for the same files; None for what exists only now.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key

    @abstractmethod
    def read(self) -> Iterator[Candidate]:
        """Read them in their order.

        Raises:
            BadInput: a line is no candidate, or there is none.
        """

    @abstractmethod
    def place(self, source: int, line: int) -> str:
        """Say where one stands."""


class FileCandidates(Candidates):
    """Those of files and URLs."""

    def __init__(self, sources: Sequence[Source]) -> None:
        for source in sources:
            if source.format not in {"txt", "jsonl"}:
                raise source.flaw(f"candidates are {_FORMATS}, not {source.format}")
        identities = [source.identity() for source in sources]
        super().__init__(None if None in identities else submission_key(identities))
        self._sources = sources

    def read(self) -> Iterator[Candidate]:
        """Read one source after the other."""
        for number, source in enumerate(self._sources):
            try:
                yield from _read_source(source, number)
            except OSError as exc:
                raise source.fault(exc) from exc
            source.check_same()

    def place(self, source: int, line: int) -> str:
        """Name the file and the line."""
        return f"{self._sources[source].name}, line {line}"


class GivenCandidates(Candidates):
    """Those that a Python caller has."""

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__(None)
        self._items = items

    def read(self) -> Iterator[Candidate]:
        """Read (query id, document ids) pairs."""
        for number, item in enumerate(self._items):
            try:
                for query, document in _pairs_of_item(item):
                    yield Candidate(query, document, 0, number)
            except Flaw as exc:
                raise BadInput(f"{self.place(0, number)}: {exc}", item=number) from exc

    def place(self, source: int, line: int) -> str:  # noqa: ARG002 - there is one
        """Name the item."""
        return f"candidates, item {line}"


def read_candidates(given: CandidatesLike) -> Candidates:
    """Open candidates, whatever a Python caller has.

    Raises:
        BadInput: a file is not there or cannot be read.
    """
    names = files_in(given)
    if names is not None:
        return open_candidates(names)
    return GivenCandidates(given.items() if isinstance(given, Mapping) else given)  # type: ignore[arg-type]


def open_candidates(inputs: Sequence[str], *, stdin_format: str | None = None) -> Candidates:
    """Do the same for files, globs, URLs and ``-``. A TREC run may have any extension, also before .gz and .zst."""
    return FileCandidates(expand(inputs, stdin_format=stdin_format, other="txt"))


def _read_source(source: Source, number: int) -> Iterator[Candidate]:
    is_empty = True
    for n, line in enumerate(lines_of(source), 1):
        if not line.strip():
            continue
        is_empty = False
        try:
            for query, document in _pairs_of_line(line):
                yield Candidate(query, document, number, n)
        except Flaw as exc:
            raise source.flaw(exc, f"line {n}") from exc
    if is_empty:
        raise source.flaw("it holds no candidates")


def _pairs_of_line(line: str) -> Iterator[tuple[str, str]]:
    """Yield the ids of a line: one pair of a TREC run, or as many as a JSON object has."""
    if line.lstrip().startswith("{"):
        record = object_of(line)
        yield from _pairs(record.get("query_id"), record.get("doc_ids", record.get("doc_id")))
        return
    columns = line.split()
    if len(columns) != len(_COLUMNS.split()):
        raise Flaw(f"{len(columns)} columns; a line of a TREC run has six ({_COLUMNS}), one of JSON an object")
    yield columns[0], columns[2]


def _pairs_of_item(item: Any) -> Iterator[tuple[str, str]]:
    match item:
        case (query, documents) if isinstance(item, tuple | list):
            yield from _pairs(query, documents)
        case _:
            raise Flaw(f"{kind_of(item)}, not a (query id, document ids) pair")


def _pairs(query: Any, documents: Any) -> Iterator[tuple[str, str]]:
    query_id = _id(query, "query_id")
    is_list = isinstance(documents, Iterable) and not isinstance(documents, str | bytes | Mapping)
    for document in documents if is_list else [documents]:
        yield query_id, _id(document, "doc_ids" if is_list else "doc_id")


def _id(value: Any, name: str) -> str:
    found = id_of(json_value(value, name), name)
    if not found:
        raise Flaw(f'"{name}" is missing or empty; a candidate names a query and a document')
    return found
