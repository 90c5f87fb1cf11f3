"""Row, and how a record becomes one.

A row that comes out of here can be stored: its text is UTF-8, its kept values are JSON.
"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import json
import math
import numbers
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.options import LANGUAGE_PATTERN

#: Names of fields in a message: so many, and so many characters of each.
_MAX_NAMES = 20
_MAX_NAME_CHARS = 40

_is_language = re.compile(LANGUAGE_PATTERN).fullmatch

#: The kinds of value in words, as JSON has them.
_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Flaw(ValueError):
    """What is wrong with a record; whoever reads knows the file and the line."""


class Row(NamedTuple):
    """One record of the corpus.

    Attributes:
        id: the record's own id, None where it has none.
        text: what is encoded; never a lone surrogate.
        kept: the values of the kept fields as JSON has them, None without kept fields.
        language: the name of the text's language; empty where the record names none.
    """

    id: str | None
    text: str
    kept: tuple[Any, ...] | None
    language: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are used.

    Attributes:
        text: the field with the text.
        id: the field with the id; a record may lack it.
        kept: the fields that travel along, null where a record lacks them.
        option: what a person sets to name the text field.
        language: the field with the language, None if no record says it; a record may lack it.
    """

    text: str = "text"
    id: str = "id"
    kept: tuple[str, ...] = ()
    option: str = "--text-field"
    language: str | None = None

    @property
    def used(self) -> list[str]:
        """All of them, each once."""
        languages = [] if self.language is None else [self.language]
        return list(dict.fromkeys([self.text, self.id, *languages, *self.kept]))

    def surplus(self) -> str:
        """Say what to leave out where a record is a text and nothing else; nothing if that will do."""
        keep, language, language_field = (
            ("--keep-fields", "--language", "--language-field")
            if self.option.startswith("--")
            else ("keep_fields", "language", "language_field")
        )
        surplus = [keep] if self.kept else []
        if self.language is not None:
            surplus.append(f"{language_field} ({language} says that of all)")
        return f"leave out {' and '.join(surplus)}" if surplus else ""

    def row_of(self, record: Mapping[str, Any]) -> Row:
        """Pick the row out of a record.

        Raises:
            Flaw: no text, or a value that cannot be stored.
        """
        text = record.get(self.text)
        if not isinstance(text, str):
            raise Flaw(self._text_flaw(record))
        kept = tuple([self._value(record, name) for name in self.kept]) if self.kept else None
        language = "" if self.language is None else language_of(self._value(record, self.language), self.language)
        return Row(id_of(self._value(record, self.id), self.id), encodable(text, self.text), kept, language)

    def missing(self, holder: str, names: Iterable[str], what: str = "no field") -> Flaw:
        """Say that the text is not there, and what is."""
        others = list_names(names)
        has = f"{holder} has {others}" if others else f"{holder} has no fields"
        return Flaw(f"{what} {quote(self.text)}; {has}; name the one with the text with {self.option}")

    def _text_flaw(self, record: Mapping[str, Any]) -> Flaw:
        if self.text not in record:
            return self.missing("the record", record)
        if record[self.text] is None:
            return self.missing("the record", record, "null in field")
        return Flaw(f"field {quote(self.text)} is {kind_of(record[self.text])}, not a string")

    def _value(self, record: Mapping[str, Any], name: str) -> Any:
        return json_value(record.get(name), name)


def json_value(value: Any, name: str) -> Any:
    """Return a value as JSON has it: NaN is null, a time ISO 8601, a decimal a string.

    Args:
        value: what JSON, Arrow or a Python caller handed over.
        name: the field, for the message.

    Raises:
        Flaw: JSON has no such value (infinity, bytes, a lone surrogate, a foreign class), or it is nested too deeply.
    """
    try:
        return _json_value(value, name)
    except RecursionError:
        raise Flaw(f"field {quote(name)} is nested too deeply") from None


def _json_value(value: Any, name: str) -> Any:  # noqa: PLR0911 - one line per kind of value
    if isinstance(value, str):
        return encodable(value, name)
    if value is None or type(value) in {bool, int}:
        return value
    if isinstance(value, numbers.Integral):  # of NumPy too
        return int(value)
    if isinstance(value, numbers.Real) and not math.isinf(value):
        return None if math.isnan(value) else float(value)
    if isinstance(value, list | tuple):
        return [_json_value(item, name) for item in value]
    if isinstance(value, Mapping):
        return {encodable(str(key), name): _json_value(item, name) for key, item in value.items()}
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise Flaw(f"field {quote(name)} holds {kind_of(value)}, which JSON cannot express")


def id_of(value: Any, name: str) -> str | None:
    """Return an id as a string, None for null.

    Raises:
        Flaw: a list or an object.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        raise Flaw(f"field {quote(name)} is {kind_of(value)}; an id is a string or a number")
    return str(value) if type(value) is int else json.dumps(value)


def language_of(value: Any, name: str) -> str:
    """Return the name of a language, an empty one for null.

    Raises:
        Flaw: it is no string, or not how models name languages. The line shows nothing of it, as it may be a text.
    """
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise Flaw(f"field {quote(name)} is {kind_of(value)}; a language is a string such as eng_Latn")
    if not _is_language(value):
        rule = "letters, digits, - and _, at most 32, such as eng_Latn"
        raise Flaw(f"field {quote(name)} does not hold the name of a language: {rule}")
    return value


def encodable(text: str, name: str) -> str:
    """Return a text that UTF-8 can encode.

    Raises:
        Flaw: it holds half of a surrogate pair, as a broken escape in JSON leaves it.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        half = f"U+{ord(text[exc.start]):04X}"
        raise Flaw(f"field {quote(name)} holds a lone surrogate ({half}), which is no character; repair it") from exc
    return text


def kind_of(value: Any) -> str:
    """Name the kind of a value without showing it."""
    if isinstance(value, numbers.Real) and math.isinf(value):
        return "an infinite number"
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def list_names(names: Iterable[str]) -> str:
    """Return field names quoted for a message, the first 20."""
    rest = iter(names)
    quoted = [quote(name) for name in itertools.islice(rest, _MAX_NAMES)]
    n_more = sum(1 for _ in rest)
    return ", ".join(quoted) + (f" and {n_more} more" if n_more else "")


def count_of(number: int, noun: str) -> str:
    """Return a number of things for a message, such as ``2 queries``."""
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun}"


def quote(name: object) -> str:
    """Quote a field name for a message: one line, at most 40 characters, nothing a terminal chokes on."""
    text = str(name)
    if len(text) > _MAX_NAME_CHARS:
        text = text[:_MAX_NAME_CHARS] + "…"
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace").decode()
