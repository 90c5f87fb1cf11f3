"""Reading a corpus: sources or a Python iterable, as a stream of rows.

Nothing holds the corpus: memory is flat in its size, whatever the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from producer.formats import read_csv, read_jsonl, read_txt
from producer.rows import Fields, Flaw, Row, encodable, id_of, json_value, kind_of
from producer.sources import Source
from tasks.errors import BadInput

__all__ = ["Row", "read_items", "read_rows", "read_source"]

#: One record for Python callers: a text, a mapping with fields, or (id, text).
Item = str | Mapping[str, Any] | tuple[Any, str]


def read_rows(
    sources: Sequence[Source],
    *,
    text_field: str = "text",
    id_field: str | None = None,
    keep_fields: Sequence[str] = (),
    language_field: str | None = None,
) -> Iterator[Row]:
    """Stream the rows of sources, one source after the other.

    Args:
        sources: from ``expand``.
        text_field: the field with the text, a string in every record. Lines of txt have no fields.
        id_field: the field with the id; a row without it has None. Without this argument: ``id``.
        keep_fields: fields whose values travel along, null where a record lacks them.
        language_field: the field with the language of the text, which a record may lack.

    Raises:
        BadInput: at once for kept fields or languages of txt; in the stream for what cannot be read, with file and
            line or (numbered from 0) parquet row, and for a source without records.
        StoreUnavailable: a server stopped answering.
    """
    fields = Fields(text_field, id_field or "id", tuple(keep_fields), language=language_field)
    for source in sources:
        if source.format == "txt" and (surplus := fields.surplus()):
            raise source.flaw(f"lines of text have no fields; {surplus}, or use jsonl, csv or parquet")
    return (row for source in sources for row in read_source(source, fields))


def read_items(
    items: Iterable[Item],
    *,
    text_field: str = "text",
    id_field: str | None = None,
    keep_fields: Sequence[str] = (),
    language_field: str | None = None,
) -> Iterator[Row]:
    """Stream the rows of a Python iterable of texts, mappings or (id, text) pairs.

    Args:
        items: consumed as rows are asked for.
        text_field: as in ``read_rows``, for mappings.
        id_field: as in ``read_rows``, for mappings.
        keep_fields: as in ``read_rows``; every item must be a mapping then.
        language_field: likewise.

    Raises:
        BadInput: at once for one string instead of several; in the stream for an item that is no record
            (numbered from 0), and at its end if there was none.
    """
    if isinstance(items, str | bytes):
        raise BadInput("one string is not a corpus; pass a list of strings")
    fields = Fields(text_field, id_field or "id", tuple(keep_fields), "text_field", language=language_field)
    return _rows_of_items(items, fields)


def read_source(source: Source, fields: Fields) -> Iterator[Row]:
    """Stream the rows of one source."""
    try:
        is_empty = True
        for row in _reader_of(source.format)(source, fields):
            is_empty = False
            yield row
    except OSError as exc:
        raise source.fault(exc) from exc
    source.check_same()
    if is_empty:
        raise BadInput(f"{source.name} holds no records", source=source.name)


def _reader_of(format_: str) -> Callable[[Source, Fields], Iterator[Row]]:
    if format_ == "parquet":
        from producer.parquet import (
            read_parquet,
        )  # with pyarrow, which text needs only where it is compressed

        return read_parquet
    return {"txt": read_txt, "jsonl": read_jsonl, "csv": read_csv, "tsv": read_csv}[format_]


def _rows_of_items(items: Iterable[Item], fields: Fields) -> Iterator[Row]:
    number = -1
    for number, item in enumerate(items):
        try:
            row = _row_of_item(item, fields)
        except Flaw as exc:
            raise BadInput(f"item {number}: {exc}", item=number) from exc
        yield row
    if number < 0:
        raise BadInput("the iterable holds no records")


def _row_of_item(item: Item, fields: Fields) -> Row:
    if isinstance(item, Mapping):
        return fields.row_of(item)
    if surplus := fields.surplus():
        raise Flaw(f"{kind_of(item)} has no fields; {surplus}, or pass dicts")
    match item:
        case str():
            return Row(None, encodable(item, "text"), None)
        case (id_, str() as text) if isinstance(item, tuple):
            return Row(id_of(json_value(id_, "id"), "id"), encodable(text, "text"), None)
    raise Flaw(f"{kind_of(item)}, not a string, a dict or an (id, text) pair")
