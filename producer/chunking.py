"""Cutting a stream of rows, or of pairs, into chunks, and the types of what rows keep.

The same rows with the same limits give the same chunks, so a command run again finds those of the first.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from producer.rows import Row
from tasks import keys, tables

#: Ints that fit into int64.
_INT64 = range(-(2**63), 2**63)

#: The kinds of a column that is not null everywhere -> its type; whatever is not here is json.
_TYPES: dict[frozenset[str], str] = {
    frozenset(): "string",
    frozenset({"str"}): "string",
    frozenset({"bool"}): "bool",
    frozenset({"int"}): "int64",
    frozenset({"float"}): "float64",
    frozenset({"int", "float"}): "float64",
}

#: One encoder for all rows; ``json.dumps`` builds one a call.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


#: How many chunks at the end of a corpus are cut anew, each piece this share of what is left but no smaller than this
#: many bytes: some half a second of a CPU's work with a small model.
TAPERED_CHUNKS, TAPER, LEAST_BYTES = 2, 1 / 16, 8192

#: Where the texts of a pair lie, and the document's size: ``query_block``, ``query_place``, ``document_block``,
#: ``document_place``, ``n_bytes`` (tasks/tables.py).
Pair = tuple[int, int, int, int, int]

T = TypeVar("T")
_Sized = tuple[T, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of rows that follow each other in the corpus.

    Attributes:
        number: of the chunk in the job, from 0.
        first_row: number of its first row in the corpus, from 0.
        ids: (n_rows,) the records' own ids, or their row numbers.
        texts: (n_rows,)
        kept: (n_rows,) a JSON array of the kept values per row, None without kept fields.
        languages: (n_rows,) empty for records that name none; None if no field holds languages.
        n_bytes: UTF-8 bytes of the texts.
        n_unnamed: rows whose record had no id.
    """

    number: int
    first_row: int
    ids: list[str] = field(repr=False)
    texts: list[str] = field(repr=False)
    kept: list[str] | None = field(repr=False)
    languages: list[str] | None = field(repr=False)
    n_bytes: int
    n_unnamed: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.texts)

    def path(self, job: str) -> str:
        """Return where its input is stored."""
        return keys.input_path(job, self.number)

    def table(self) -> pa.Table:
        """Return its input."""
        return tables.input_table(self.first_row, self.ids, self.texts, self.kept, self.languages)


@dataclass(frozen=True, slots=True)
class PairChunk:
    """A run of pairs that follow each other in the job.

    Attributes:
        number: of the chunk in the job, from 0.
        first_row: number of its first pair in the job, from 0.
        pairs: (n_rows,)
        n_bytes: UTF-8 bytes of the documents, of one once for each query.
    """

    number: int
    first_row: int
    pairs: list[Pair] = field(repr=False)
    n_bytes: int

    @property
    def n_rows(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def path(self, job: str) -> str:
        """Return where its input is stored."""
        return keys.input_path(job, self.number)

    def table(self) -> pa.Table:
        """Return its input."""
        return tables.pair_table(self.first_row, self.pairs)


def cut_chunks(
    rows: Iterable[Row], *, chunk_rows: int, chunk_bytes: int, keeps: bool, has_languages: bool = False
) -> Iterator[Chunk]:
    """Cut rows into chunks; the last ones are smaller and smaller, so that all slots end at about the same time.

    At most four chunks are in memory.

    Args:
        rows: the corpus, in order.
        chunk_rows: at most so many rows in a chunk, from 1.
        chunk_bytes: at most so many UTF-8 bytes of text in a chunk; a longer row is a chunk of its own.
        keeps: whether the rows carry kept values.
        has_languages: whether they carry languages.
    """
    first_row = 0
    for number, held in enumerate(_cut_and_taper(_sized(rows), chunk_rows, chunk_bytes)):
        chunk = [row for row, _ in held]
        yield Chunk(
            number=number,
            first_row=first_row,
            ids=[str(i) if row.id is None else row.id for i, row in enumerate(chunk, first_row)],
            texts=[row.text for row in chunk],
            kept=[_to_json(row.kept or ()) for row in chunk] if keeps else None,
            languages=[row.language for row in chunk] if has_languages else None,
            n_bytes=sum(size for _, size in held),
            n_unnamed=sum(row.id is None for row in chunk),
        )
        first_row += len(held)


def cut_pairs(pairs: Iterable[Pair], *, chunk_rows: int, chunk_bytes: int) -> Iterator[PairChunk]:
    """Do the same with pairs; their bytes are those of the documents."""
    first_row = 0
    sized = ((pair, pair[-1]) for pair in pairs)
    for number, held in enumerate(_cut_and_taper(sized, chunk_rows, chunk_bytes)):
        yield PairChunk(number, first_row, [pair for pair, _ in held], sum(size for _, size in held))
        first_row += len(held)


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _sized(rows: Iterable[Row]) -> Iterator[_Sized[Row]]:
    """Yield rows with the UTF-8 bytes of their texts."""
    for row in rows:
        yield row, utf8_bytes(row.text)


def _cut_and_taper(rows: Iterable[_Sized[T]], most_rows: int, most_bytes: int) -> Iterator[list[_Sized[T]]]:
    whole = _cut(rows, most_rows, lambda _: most_bytes)
    return _taper(whole, most_rows) if most_bytes > LEAST_BYTES else whole


def _cut(rows: Iterable[_Sized[T]], most_rows: int, most_bytes: Callable[[int], int]) -> Iterator[list[_Sized[T]]]:
    """Yield runs of rows within both limits; the one in bytes is asked for with the bytes of the runs before."""
    held: list[_Sized[T]] = []
    n_bytes = passed = 0
    for row in rows:
        if held and (len(held) == most_rows or n_bytes + row[1] > most_bytes(passed)):
            yield held
            passed += n_bytes
            held, n_bytes = [], 0
        held.append(row)
        n_bytes += row[1]
    if held:
        yield held


def _taper(runs: Iterable[list[_Sized[T]]], most_rows: int) -> Iterator[list[_Sized[T]]]:
    """Pass runs on, and cut the last ones anew: each piece is a share of what is left then."""
    waiting: deque[list[_Sized[T]]] = deque()
    for run in runs:
        waiting.append(run)
        if len(waiting) > TAPERED_CHUNKS:
            yield waiting.popleft()
    rest = [row for run in waiting for row in run]
    total = sum(size for _, size in rest)
    yield from _cut(rest, most_rows, lambda passed: max(LEAST_BYTES, int((total - passed) * TAPER)))


class KeptTypes:
    """The column type of every kept field, as far as the rows have shown it.

    Holds a set of kinds per field and no values.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = tuple(fields)
        self._kinds: list[set[str]] = [set() for _ in fields]

    def add(self, kept: Sequence[Any]) -> None:
        """Note the values of one row, in the order of the fields."""
        for kinds, value in zip(self._kinds, kept, strict=True):
            if value is not None:
                kinds.add(_kind_of(value))

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows through and note what they keep."""
        for row in rows:
            self.add(row.kept or ())
            yield row

    def resolve(self) -> dict[str, str]:
        """Return int64, float64, bool, string or json for every field.

        It is json where values are mixed, nested, or ints beyond int64, and string where all are null.
        """
        types = [_TYPES.get(frozenset(kinds), "json") for kinds in self._kinds]
        return dict(zip(self._fields, types, strict=True))


def _kind_of(value: Any) -> str:
    if type(value) is int and value not in _INT64:
        return "int beyond int64"
    return type(value).__name__
