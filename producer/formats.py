"""The text formats: txt, jsonl, csv and tsv, as rows.

Lines end at a line feed and nowhere else, so U+2028 or a form feed inside a text splits no record, and a byte
that is not UTF-8 is reported with the line it stands in. Only one record is in memory.
"""

from __future__ import annotations

import codecs
import csv
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any, NoReturn

from producer.rows import Fields, Flaw, Row, kind_of, quote
from producer.sources import Source
from tasks.errors import BadInput

#: Bytes of one record at most: one is in memory, several times. Past this it is no text but a line, a quote or a file
#: without an end, such as a packed one that is small only on disk.
MAX_RECORD_BYTES = 64 * 2**20

_LIMIT = f"{MAX_RECORD_BYTES // 2**20} MiB"

#: Characters and words of a cell at most that may be a field's name.
_MAX_NAME_CHARS, _MAX_NAME_WORDS = 40, 3

_DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_txt(source: Source, fields: Fields) -> Iterator[Row]:  # noqa: ARG001 - every format is called alike
    """Yield a row per line; an empty line is a row with an empty text.

    Raises:
        BadInput: a line is not UTF-8.
    """
    for line in lines_of(source):
        yield Row(None, line.removesuffix("\n").removesuffix("\r"), None)


def read_jsonl(source: Source, fields: Fields) -> Iterator[Row]:
    """Yield a row per line with one JSON object; blank lines are skipped.

    Raises:
        BadInput: a line is not UTF-8, not a JSON object, or lacks its text.
    """
    for number, line in enumerate(lines_of(source), 1):
        if not line.strip(" \t\r\n"):
            continue
        try:
            row = fields.row_of(object_of(line))
        except Flaw as exc:
            raise source.flaw(exc, f"line {number}") from exc
        yield row


def read_csv(source: Source, fields: Fields) -> Iterator[Row]:
    """Yield a row per record after the header; an empty cell in the id column is no id.

    A quote inside quotes that is not doubled is an error: what csv makes of it in silence may not be meant.

    Raises:
        BadInput: not UTF-8, not csv, a header without the text field, a record with other columns than that.
    """
    records = _records(source)
    _, header = next(records, (0, None))
    if header is None:
        return
    _check_header(source, fields, header)
    for number, cells in records:
        if len(cells) != len(header):
            reason = f"{len(cells)} columns, and the header has {len(header)}"
            raise source.flaw(reason, f"line {number}")
        try:
            row = fields.row_of(dict(zip(header, cells, strict=True)))
        except Flaw as exc:
            raise source.flaw(exc, f"line {number}") from exc
        yield row if row.id else row._replace(id=None)


def _records(source: Source) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a csv file that are not blank, each with the number of its first line."""
    csv.field_size_limit(max(MAX_RECORD_BYTES, csv.field_size_limit()))
    number, n_chars = 1, 0

    def lines() -> Iterator[str]:
        nonlocal n_chars
        for line in lines_of(source):
            n_chars += len(line)
            if n_chars > MAX_RECORD_BYTES:
                raise source.flaw(f"a record of more than {_LIMIT}; a closing quote may be missing", f"line {number}")
            yield line

    records = csv.reader(lines(), delimiter=_DELIMITERS[source.format], strict=True)
    try:
        for cells in records:
            if cells:
                yield number, cells
            number, n_chars = records.line_num + 1, 0
    except csv.Error as exc:
        reason = str(exc).partition(" - ")[0]
        remedy = "a cell with quotes or line breaks stands in quotes, and its own quotes are doubled"
        raise source.flaw(f"not valid {source.format} ({reason}); {remedy}", f"line {number}") from exc


def _check_header(source: Source, fields: Fields, header: list[str]) -> None:
    if fields.text not in header:
        if not all(map(_is_like_a_name, header)):
            reason = f"its first line, of {len(header)} columns, looks like a record; put a header above it"
            raise source.flaw(f"no field {quote(fields.text)}; {reason}")
        raise source.flaw(fields.missing("the header", header))
    for name in fields.used:
        if header.count(name) > 1:
            raise source.flaw(f"the header has {quote(name)} twice; rename one")


def _is_like_a_name(cell: str) -> bool:
    """Tell a field's name from a record's text, which no message may hold."""
    return len(cell) <= _MAX_NAME_CHARS and len(cell.split()) <= _MAX_NAME_WORDS


def lines_of(source: Source) -> Iterator[str]:
    """Yield decoded lines with their line feeds, without a byte order mark at the start."""
    with source.open() as stream:
        # beyond the limit by a byte order mark, so that the first piece of an endless line is over it without one
        read = functools.partial(stream.readline, MAX_RECORD_BYTES + len(codecs.BOM_UTF8))
        first = read().removeprefix(codecs.BOM_UTF8)
        for number, line in enumerate(itertools.chain([first] if first else [], iter(read, b"")), 1):
            if len(line) >= MAX_RECORD_BYTES and not line.endswith(b"\n"):
                raise source.flaw(f"longer than {_LIMIT}; a record takes one line", f"line {number}")
            try:
                text = line.decode()
            except UnicodeDecodeError as exc:
                raise _not_utf8(source, number, exc) from exc
            yield text


def _not_utf8(source: Source, number: int, exc: UnicodeDecodeError) -> BadInput:
    byte = f"byte 0x{exc.object[exc.start]:02x} at offset {exc.start}"
    remedy = "convert it, for example with iconv -f latin1 -t utf-8"
    return source.flaw(f"not UTF-8 ({byte}); {remedy}", f"line {number}")


def _refuse(constant: str) -> NoReturn:
    raise Flaw(f"not valid JSON ({constant} is no JSON number); each line must be one JSON object")


_parse = json.JSONDecoder(parse_constant=_refuse).decode


def object_of(line: str) -> dict[str, Any]:
    """Parse one line.

    Raises:
        Flaw: it is not one JSON object.
    """
    try:
        record = _parse(line)
    except json.JSONDecodeError as exc:
        reason = f"{exc.msg.removesuffix(' at')} at column {exc.colno}"
    except Flaw:
        raise
    except ValueError:  # an int of more than 4,300 digits
        reason = "a number is too long"
    except RecursionError:
        reason = "nested too deeply"
    else:
        if isinstance(record, dict):
            return record
        raise Flaw(f"{kind_of(record)}, not an object; each line must be one JSON object")
    raise Flaw(f"not valid JSON ({reason}); each line must be one JSON object")
