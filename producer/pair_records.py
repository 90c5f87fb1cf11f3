"""Pairs as they are handed over: a query and a document in each record."""

from __future__ import annotations

import itertools
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.chunking import Pair, PairChunk, cut_pairs, utf8_bytes
from producer.corpus import Opened, files_in, read_ahead, submission_key
from producer.demands import Demands
from producer.readers import read_source
from producer.rows import Fields, Flaw, Row, count_of, encodable, kind_of, quote
from producer.scratch import in_scratch, open_scratch
from producer.sources import Source, expand
from producer.text_blocks import BlockPacker, TextBlock
from tasks.errors import BadInput
from tasks.settings import Settings

#: What `Client.score` takes for pairs: a path, glob or URL, several of them as ``Path`` in a list; or mappings, or
#: (query, document) pairs.
RecordsLike = str | Path | Sequence[Path] | Iterable[Mapping[str, Any] | tuple[str, str]]

#: Chunks whose texts go into blocks together: with chunks of 256 KiB, such a block is full.
_CHUNKS = 4

_TABLES = """
CREATE TABLE queries(id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pairs(query TEXT, document TEXT, PRIMARY KEY(query, document)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFields(Fields):
    """Which fields of a record are used: those of the document, and in ``asked`` those of the query.

    Attributes:
        takes_empty: whether an empty id is none, as in csv, which has no null.
    """

    asked: Fields
    takes_empty: bool = False

    @property
    def used(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([self.text, self.id, *self.asked.used]))

    def row_of(self, record: Mapping[str, Any]) -> Row:
        """Pick the document out of a record; what is kept of it are the query's id and text.

        Raises:
            Flaw: one of the texts is missing, or an id is empty.
        """
        asked, row = self.asked.row_of(record), Fields.row_of(self, record)
        query_id = self._id(asked.id, self.asked.id)
        return Row(self._id(row.id, self.id), row.text, (query_id, asked.text))

    def _id(self, id_: str | None, name: str) -> str | None:
        if id_ == "" and not self.takes_empty:
            raise Flaw(f"field {quote(name)} is empty; leave it out, or give the record an id")
        return id_ or None


class OpenedRecords(Opened):
    """Pairs that are scored in their order.

    Documents without ids have the numbers of their pairs, from 0. Queries without ids have the number of queries before
    them, where pairs that follow each other with the same query have it in common. Either all queries have ids or none,
    and so it is with the documents: a number may be another one's id.

    Attributes:
        n_pairs: how many there are, where that is known.
        demands: what their output asks for.
    """

    def __init__(self, rows: Iterable[Row], key: str | None, n_pairs: int | None = None) -> None:
        super().__init__(key or secrets.token_hex(16), is_repeatable=key is not None)
        self.n_pairs = n_pairs
        self.demands = Demands()
        self._rows = rows

    def parts(self, settings: Settings) -> Iterator[TextBlock | PairChunk]:
        """Yield text blocks and the chunks that refer to them.

        Raises:
            BadInput: some pairs have ids and others not, or they are not what their output asks for.
        """
        placing = _Placing(self.demands)
        pairs = map(placing.place, itertools.count(), self._rows)
        chunks = cut_pairs(pairs, chunk_rows=settings.chunk_rows, chunk_bytes=settings.chunk_bytes)
        while some := list(itertools.islice(chunks, _CHUNKS)):
            yield from placing.packer.take_all()
            yield from some
        self.warnings += placing.finish()


class _Placing:
    """Puts the texts of pairs into blocks, those of a pair that the one before has too only once."""

    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self.packer = BlockPacker()
        self._scratch = open_scratch(_TABLES)
        weakref.finalize(self, self._scratch.close)
        self._have_ids: list[bool] | None = None
        self._query: tuple[str | None, str] | None = None
        self._query_id = ""
        self._query_place = (0, 0)
        self._n_queries = self._n_returns = 0
        self._document: tuple[str, str] | None = None
        self._document_place = (0, 0, 0)
        self._n_doubles = 0

    def place(self, number: int, row: Row) -> Pair:
        """Return where the texts of a pair lie."""
        id_, text = row.kept or (None, "")
        self._check_ids(number, id_, row.id)
        if self._query != (id_, text):
            self._begin_query(number, id_, text)
        if row.id is not None:  # else its id is its own
            self._n_doubles += not self._is_new("INSERT OR IGNORE INTO pairs VALUES (?, ?)", self._query_id, row.id)
        document = (str(number) if row.id is None else row.id, row.text)
        if self._document != document:
            self._document = document
            self._document_place = (*self.packer.add(*document), utf8_bytes(row.text))
        return (*self._query_place, *self._document_place)

    def _check_ids(self, number: int, *ids: str | None) -> None:
        """Refuse ids that a pair has and others lack, or that cannot be written."""
        if self._have_ids is None:
            self._have_ids = [id_ is not None for id_ in ids]
        for kind, id_, have in zip(("query", "document"), ids, self._have_ids, strict=True):
            if (id_ is not None) != have:
                flaw = f"lacks the {kind} id that those before it have" if have else f"alone has a {kind} id"
                raise BadInput(f"{_place(number)}, {flaw}: give all pairs one, or none.", pair=number)
            if id_ is not None:
                self._demands.check_id(_place(number), kind, id_)

    def _begin_query(self, number: int, id_: str | None, text: str) -> None:
        self._query = id_, text
        last_id, self._query_id = self._query_id, id_ or str(self._n_queries)
        self._n_queries += 1
        self._query_place = self.packer.add(self._query_id, text)
        if self._query_id == last_id or self._is_new("INSERT OR IGNORE INTO queries VALUES (?)", self._query_id):
            return
        self._n_returns += 1
        self._demands.check_return(_place(number), self._query_id)

    def _is_new(self, sql: str, *ids: str) -> bool:
        with in_scratch():
            return self._scratch.execute(sql, ids).rowcount == 1

    def finish(self) -> Iterator[str]:
        """Give the disk back, and yield what people should know."""
        self._scratch.close()
        if self._n_returns:
            yield (
                f"{count_of(self._n_returns, 'time')} a query comes back after another one: these results can be "
                "collected in the order of the pairs, but not ranked. Sort the pairs by query for that."
            )
        if self._n_doubles:
            yield f"{count_of(self._n_doubles, 'pair')} with the ids of an earlier one: each is scored."


def _place(number: int) -> str:
    return f"Pair {number}, counted from 0"


def read_records(
    given: RecordsLike,
    *,
    query_field: str = "query",
    doc_field: str = "document",
    query_id_field: str = "query_id",
    doc_id_field: str = "doc_id",
) -> OpenedRecords:
    """Open pairs, whatever a Python caller has.

    Args:
        given: a path, glob or URL, several of them as ``Path`` in a list; or mappings, or (query, document) pairs.
        query_field: the field with the query's text.
        doc_field: the one with the document's.
        query_id_field: the one with the query's id, which a record may lack.
        doc_id_field: the one with the document's.

    Raises:
        BadInput: a file is not there or cannot be read.
        UsageError: a list of strings names files.
    """
    names = files_in(given)
    if names is not None:
        return open_records(
            names,
            query_field=query_field,
            doc_field=doc_field,
            query_id_field=query_id_field,
            doc_id_field=doc_id_field,
        )
    asked = Fields(query_field, query_id_field, (), "query_field")
    rows = _rows_of_items(given, PairFields(doc_field, doc_id_field, (), "doc_field", asked=asked))
    return OpenedRecords(rows, None, len(given) if isinstance(given, Sequence) else None)


def open_records(
    inputs: Sequence[str],
    *,
    stdin_format: str | None = None,
    query_field: str = "query",
    doc_field: str = "document",
    query_id_field: str = "query_id",
    doc_id_field: str = "doc_id",
) -> OpenedRecords:
    """Do the same for files, globs, URLs and ``-``."""
    sources = expand(inputs, stdin_format=stdin_format)
    for source in sources:
        if source.format == "txt":
            raise source.flaw("lines of text have no fields; a pair needs two: use jsonl, csv or parquet")
    names = (query_field, doc_field, query_id_field, doc_id_field)
    identities = [source.identity() for source in sources]
    key = None if None in identities else submission_key(identities, fields=names)
    asked = Fields(query_field, query_id_field, (), "--query-field")
    return OpenedRecords(read_ahead(_rows_of(sources, doc_field, doc_id_field, asked)), key)


def _rows_of(sources: Sequence[Source], doc_field: str, doc_id_field: str, asked: Fields) -> Iterator[Row]:
    for source in sources:
        takes_empty = source.format in {"csv", "tsv"}
        fields = PairFields(doc_field, doc_id_field, (), "--doc-field", asked=asked, takes_empty=takes_empty)
        yield from read_source(source, fields)


def _rows_of_items(items: Any, fields: PairFields) -> Iterator[Row]:
    number = -1
    for number, item in enumerate(items):
        try:
            yield _row_of_item(item, fields)
        except Flaw as exc:
            raise BadInput(f"pairs, item {number}: {exc}", item=number) from exc
    if number < 0:
        raise BadInput("There are no pairs.")


def _row_of_item(item: Any, fields: PairFields) -> Row:
    match item:
        case Mapping():
            return fields.row_of(item)
        case (str() as query, str() as document):
            return Row(None, encodable(document, "document"), (None, encodable(query, "query")))
    raise Flaw(f"{kind_of(item)}, not a dict or a (query, document) pair of strings")
