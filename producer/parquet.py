"""Parquet as rows: only the columns that are used, a few hundred rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from producer.rows import Fields, Flaw, Row, list_names, quote
from producer.sources import Source

#: Rows decoded at a time: enough to make Python's share small, few enough for texts of 100 kB.
_BATCH_ROWS = 256

#: Bytes of a column read ahead. Without a buffer Arrow holds a row group's whole column: up to the file.
_COLUMN_BUFFER_BYTES = 2 * 2**20


def read_parquet(source: Source, fields: Fields) -> Iterator[Row]:
    """Yield the rows of a parquet file; rows are numbered from 0 in messages.

    Raises:
        BadInput: no parquet, no text column, a text that is null, or a value that cannot be stored.
    """
    first = 0
    try:
        with source.opener() as stored:
            if not stored.seekable():
                remedy = "download or save it and name the file"
                raise source.flaw(f"parquet is read from its end, and this comes from the start only; {remedy}")
            file = pq.ParquetFile(stored, buffer_size=_COLUMN_BUFFER_BYTES, pre_buffer=False)
            names = _used_columns(source, fields, file.schema_arrow)
            for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                yield from _rows_of(source, fields, batch, first)
                first += batch.num_rows
    except pa.ArrowException as exc:
        raise source.fault(exc) from exc


def _used_columns(source: Source, fields: Fields, schema: pa.Schema) -> list[str]:
    if fields.text not in schema.names:
        raise source.flaw(fields.missing("the file", schema.names))
    for name in fields.used:
        if schema.names.count(name) > 1:
            raise source.flaw(f"the file has column {quote(name)} twice; rename one")
    type_ = schema.field(fields.text).type
    if not _is_text(type_):
        texts = list_names(column.name for column in schema if _is_text(column.type)) or "none"
        reason = f"column {quote(fields.text)} is of type {type_}, not string"
        raise source.flaw(f"{reason}; string columns: {texts}; name one with {fields.option}")
    return [name for name in fields.used if name in schema.names]


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return type_ in {pa.string(), pa.large_string(), pa.string_view()}


def _rows_of(source: Source, fields: Fields, batch: pa.RecordBatch, first: int) -> Iterator[Row]:
    """Yield the rows of a batch whose first row has the number ``first``."""
    names = batch.schema.names
    columns = [_values(source, name, batch.column(name), first) for name in names]
    for number, values in enumerate(zip(*columns, strict=True), first):
        try:
            row = fields.row_of(dict(zip(names, values, strict=True)))
        except Flaw as exc:
            raise source.flaw(exc, f"row {number}") from exc
        yield row


def _values(source: Source, name: str, column: pa.Array, first: int) -> list[Any]:
    """Return a column (n,) as Python values; times of nanoseconds, which Python lacks, as ISO 8601."""
    try:
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = pc.replace_substring(column.cast(pa.string()), " ", "T")
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as exc:
        reason = "is not UTF-8"
        cause: Exception = exc
    except (
        ValueError,
        OverflowError,
        NotImplementedError,
    ) as exc:  # of Arrow too; its text may hold the value
        reason = f"of type {column.type} holds a value that Python cannot express; cast it to string"
        cause = exc
    raise source.flaw(f"column {quote(name)} {reason}", f"rows {first} to {first + len(column) - 1}") from cause
