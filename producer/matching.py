"""Matching the ids of candidates with those of queries and documents.

All ids live in a scratch database, so memory is flat in the number of queries, documents and candidates. They become
numbers there: of the texts, in the order in which they were read.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from producer.candidates import Candidates
from producer.chunking import Pair
from producer.rows import count_of, quote
from producer.scratch import in_scratch, open_scratch
from producer.texts import Kind, Texts
from tasks.errors import BadInput

#: Ids that a message names.
_NAMED = 3

#: ``texts`` has a text only if it cannot be read again. ``found`` has the candidates as numbers of texts, null where no
#: text has the id; ``pairs`` those that count, each once; ``places`` where texts lie once they are in a block.
_TABLES = """
CREATE TABLE texts(kind TEXT, number INTEGER, id TEXT, text TEXT, PRIMARY KEY(kind, number)) WITHOUT ROWID;
CREATE TABLE candidates(number INTEGER PRIMARY KEY, query TEXT, document TEXT, source INTEGER, line INTEGER);
CREATE TABLE found(number INTEGER PRIMARY KEY, query INTEGER, document INTEGER);
CREATE TABLE pairs(query INTEGER, number INTEGER, document INTEGER, PRIMARY KEY(query, number)) WITHOUT ROWID;
CREATE TABLE places(
  kind TEXT, number INTEGER, block INTEGER, place INTEGER, n_bytes INTEGER, PRIMARY KEY(kind, number)
) WITHOUT ROWID;
"""
_DOUBLES = "SELECT min(number), id FROM texts WHERE kind = ? GROUP BY id HAVING count(*) > 1 ORDER BY 1"
_SECOND = "SELECT min(number) FROM texts WHERE kind = ? AND id = ? AND number > ?"
_FIND = """
INSERT INTO found SELECT c.number, q.number, d.number FROM candidates c
LEFT JOIN texts q ON q.kind = 'query' AND q.id = c.query
LEFT JOIN texts d ON d.kind = 'document' AND d.id = c.document
"""
_UNKNOWN_DOCUMENTS = """
SELECT count(*), count(DISTINCT c.document), min(c.number) FROM found f JOIN candidates c USING (number)
WHERE f.query IS NOT NULL AND f.document IS NULL
"""
_UNKNOWN_QUERIES = """
SELECT count(*), count(DISTINCT c.query) FROM found f JOIN candidates c USING (number) WHERE f.query IS NULL
"""
#: By query, then in the order in which the candidates came.
_PAIR = """
INSERT INTO pairs SELECT query, min(number), document FROM found WHERE query IS NOT NULL
GROUP BY query, document ORDER BY query, min(number)
"""
_QUERIES_WITHOUT = """
SELECT id FROM texts WHERE kind = 'query' AND number NOT IN (SELECT query FROM pairs) ORDER BY number
"""
_WANTED: dict[Kind, str] = {
    "query": "SELECT DISTINCT query FROM pairs ORDER BY query",
    "document": "SELECT DISTINCT document FROM pairs ORDER BY document",
}
#: CROSS JOIN keeps SQLite from reading the tables in another order, which it would have to sort.
_PAIRS = """
SELECT q.block, q.place, d.block, d.place, d.n_bytes FROM pairs p
CROSS JOIN places q ON q.kind = 'query' AND q.number = p.query
CROSS JOIN places d ON d.kind = 'document' AND d.number = p.document
ORDER BY p.query, p.number
"""
_IDS: dict[Kind, str] = {
    "query": "SELECT number, id FROM texts WHERE kind = 'query' AND (NOT ? OR number IN (SELECT query FROM pairs))",
    "document": (
        "SELECT number, id FROM texts WHERE kind = 'document' AND (NOT ? OR number IN (SELECT document FROM pairs))"
    ),
}
_PLACES: dict[Kind, str] = {
    "query": "SELECT block, place FROM places WHERE kind = 'query' ORDER BY number",
    "document": "SELECT block, place, n_bytes FROM places WHERE kind = 'document' ORDER BY number",
}


class Matching:
    """Queries, documents, and which of them meet: all, until candidates are added."""

    def __init__(self) -> None:
        self._db = open_scratch(_TABLES)
        weakref.finalize(self, self._db.close)
        self._has_candidates = False

    def close(self) -> None:
        """Give the disk back."""
        self._db.close()

    # -- what is there ---------------------------------------------------------------------------------------------

    def add_texts(self, *kinds: Texts) -> None:
        """Read queries and documents.

        Raises:
            BadInput: a record cannot be read, or its id is empty or that of another.
        """
        with in_scratch():
            for texts in kinds:
                self._db.executemany("INSERT INTO texts VALUES (?, ?, ?, ?)", _records(texts))
            self._db.execute("CREATE INDEX ids ON texts(kind, id)")  # by one sort: ids come in any order
            for texts in kinds:
                self._check_ids(texts)

    def _check_ids(self, texts: Texts) -> None:
        """Refuse ids that several texts have; name the first."""
        doubles = self._db.execute(_DOUBLES, (texts.kind,))
        double = next(doubles, None)
        if double is None:
            return
        first, id_ = double
        second = self._row(_SECOND, texts.kind, id_, first)[0]
        n_more = sum(1 for _ in doubles)
        more = f", and so it is with {count_of(n_more, 'more id')}" if n_more else ""
        raise BadInput(
            f"{texts.place(second)}: {texts.kind} id {quote(id_)} stands at {texts.place(first)} already{more}; each "
            f"{texts.kind} needs an id of its own",
            id=id_,
        )

    def add_candidates(self, candidates: Candidates) -> list[str]:
        """Read which documents each query meets, once both are there. Returns what people should know of it.

        Raises:
            BadInput: a line cannot be read, there is no such document, or no query has any.
        """
        self._has_candidates = True
        with in_scratch():
            self._db.executemany("INSERT INTO candidates VALUES (NULL, ?, ?, ?, ?)", candidates.read())
            self._db.execute(_FIND)
            self._check_documents(candidates)
            self._db.execute(_PAIR)
            if not self.n_pairs:
                raise BadInput("No query has a candidate; name the field with the ids of queries with --query-id-field")
            warnings = [*self._strangers(), *self._duplicates(), *self._queries_without()]
            self._db.execute("DROP TABLE found")
            self._db.execute("DROP TABLE candidates")
        return warnings

    def _check_documents(self, candidates: Candidates) -> None:
        count, n_ids, first = self._row(_UNKNOWN_DOCUMENTS)
        if not count:
            return
        id_, source, line = self._row("SELECT document, source, line FROM candidates WHERE number = ?", first)
        raise BadInput(
            f"{candidates.place(source, line)}: no document has the id {quote(id_)} (so it is with "
            f"{count_of(n_ids, 'id')} of {count_of(count, 'candidate')}); name all documents, and the field with their "
            "ids with --doc-id-field",
            id=id_,
        )

    def _strangers(self) -> Iterator[str]:
        count, n_ids = self._row(_UNKNOWN_QUERIES)
        if count:
            yield f"{count_of(count, 'candidate')} of {count_of(n_ids, 'query id')} that no query has: left out."

    def _duplicates(self) -> Iterator[str]:
        count = self._row("SELECT count(*) FROM found WHERE query IS NOT NULL")[0] - self.n_pairs
        if count:
            yield f"{count_of(count, 'candidate')} named before for the same query: each counts once."

    def _queries_without(self) -> Iterator[str]:
        without = self._db.execute(_QUERIES_WITHOUT)
        named = [quote(id_) for (id_,) in itertools.islice(without, _NAMED)]
        n_more = sum(1 for _ in without)
        if named:
            what = f"{count_of(len(named) + n_more, 'query')} without candidates, so without results"
            yield f"{what}: {', '.join(named)}{', ...' if n_more else ''}."

    # -- what meets ------------------------------------------------------------------------------------------------

    @property
    def n_pairs(self) -> int:
        """How many pairs there are."""
        if self._has_candidates:
            return int(self._row("SELECT count(*) FROM pairs")[0])
        kinds = "SELECT sum(kind = 'query') * sum(kind = 'document') FROM texts"
        return int(self._row(kinds)[0] or 0)

    def ids(self, kind: Kind) -> Iterator[tuple[int, str]]:
        """Yield number and id of those that are in pairs."""
        with in_scratch():
            yield from self._db.execute(_IDS[kind], (self._has_candidates,))

    def wanted(self, texts: Texts) -> Iterator[tuple[int, str, str]]:
        """Yield number, id and text of those that are in pairs, in their order.

        Raises:
            BadInput: some that were read before are not there any more.
        """
        rows = _read(texts) if texts.is_rereadable else self._kept(texts.kind)
        if not self._has_candidates:
            yield from rows
            return
        wanted = self._wanted(texts.kind)
        number = next(wanted, None)
        for row in rows:
            if row[0] == number:
                yield row
                number = next(wanted, None)
        if number is not None:
            raise BadInput(
                f"The {texts.plural} changed while they were read: {texts.place(number)} is gone. Start again."
            )

    def _kept(self, kind: Kind) -> Iterator[tuple[int, str, str]]:
        with in_scratch():
            yield from self._db.execute("SELECT number, id, text FROM texts WHERE kind = ? ORDER BY number", (kind,))

    def _wanted(self, kind: Kind) -> Iterator[int]:
        with in_scratch():
            for (number,) in self._db.execute(_WANTED[kind]):
                yield number

    def place(self, kind: Kind, places: Iterable[tuple[int, int, int, int]]) -> None:
        """Note where texts lie: number, block, place there, UTF-8 bytes."""
        with in_scratch():
            self._db.executemany("INSERT INTO places VALUES (?, ?, ?, ?, ?)", ((kind, *place) for place in places))

    def pairs(self) -> Iterator[Pair]:
        """Yield all pairs, once their texts have places: query by query, in the order of the candidates."""
        with in_scratch():
            if self._has_candidates:
                yield from self._db.execute(_PAIRS)
                return
            for query in self._db.execute(_PLACES["query"]):
                for document in self._db.execute(_PLACES["document"]):
                    yield (*query, *document)

    def _row(self, sql: str, *values: Any) -> Any:
        with in_scratch():
            return self._db.execute(sql, values).fetchone()


def _read(texts: Texts) -> Iterator[tuple[int, str, str]]:
    for number, row in enumerate(texts.rows()):
        yield number, str(number) if row.id is None else row.id, row.text


def _records(texts: Texts) -> Iterator[tuple[Kind, int, str, str | None]]:
    """Yield the rows of table ``texts``."""
    for number, id_, text in _read(texts):
        if not id_:
            raise BadInput(f"{texts.place(number)}: its id is empty; leave it out, or give it one")
        yield texts.kind, number, id_, None if texts.is_rereadable else text
