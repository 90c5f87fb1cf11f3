"""Queries and documents as they are handed over: files, globs and URLs, or the texts themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from producer.corpus import files_in, submission_key
from producer.readers import read_items, read_source
from producer.rows import Fields, Row
from producer.sources import Source, expand
from tasks.errors import BadInput

Kind = Literal["query", "document"]

#: What `Client.score` takes for queries and for documents: what `Client.encode` takes, or texts by their ids.
TextsLike = str | Path | Mapping[str, str] | Sequence[str | Path] | Iterable[str | Mapping[str, Any] | tuple[Any, str]]

#: The option that names the field with the text.
_OPTIONS: dict[Kind, str] = {"query": "--query-field", "document": "--doc-field"}
_PLURALS: dict[Kind, str] = {"query": "queries", "document": "documents"}


class Texts(ABC):
    """Queries or documents, ready to be read.

    Attributes:
        kind: which of both.
        key: the same for the same files and fields; None for what exists only now.
        is_rereadable: whether ``rows`` can be called twice.
    """

    def __init__(self, kind: Kind, *, key: str | None, is_rereadable: bool) -> None:
        self.kind = kind
        self.key = key
        self.is_rereadable = is_rereadable

    @property
    def plural(self) -> str:
        """What they are called."""
        return _PLURALS[self.kind]

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Read them.

        Raises:
            BadInput: a record cannot be read, or there is none.
        """

    @abstractmethod
    def place(self, number: int) -> str:
        """Say where the text of this number, from 0, stands, once it was read."""


class FileTexts(Texts):
    """Those of files and URLs. Records are counted from 1 in each of them."""

    def __init__(self, kind: Kind, sources: Sequence[Source], text_field: str, id_field: str | None) -> None:
        identities = [source.identity() for source in sources]
        is_rereadable = None not in identities
        key = submission_key(identities, text_field=text_field, id_field=id_field) if is_rereadable else None
        super().__init__(kind, key=key, is_rereadable=is_rereadable)
        self._sources = sources
        self._fields = Fields(text_field, id_field or "id", (), _OPTIONS[kind])
        self._firsts: list[int] = []

    def rows(self) -> Iterator[Row]:
        """Read one source after the other."""
        number, self._firsts = 0, []
        for source in self._sources:
            self._firsts.append(number)
            for row in read_source(source, self._fields):
                yield row
                number += 1

    def place(self, number: int) -> str:
        """Name the source, and the record in it."""
        at = sum(first <= number for first in self._firsts) - 1
        return f"{self._sources[at].name}, record {number - self._firsts[at] + 1}"


class GivenTexts(Texts):
    """Those that a Python caller has. Items are counted from 0."""

    def __init__(self, kind: Kind, items: Iterable[Any], text_field: str, id_field: str | None) -> None:
        super().__init__(kind, key=None, is_rereadable=not isinstance(items, Iterator))
        self._items = items
        self._text_field, self._id_field = text_field, id_field

    def rows(self) -> Iterator[Row]:
        """Read texts, mappings or (id, text) pairs."""
        try:
            yield from read_items(self._items, text_field=self._text_field, id_field=self._id_field)
        except BadInput as exc:
            raise BadInput(f"{self.plural}, {exc}", **exc.data) from exc

    def place(self, number: int) -> str:
        """Name the item."""
        return f"{self.plural}, item {number}"


def read_texts(kind: Kind, given: TextsLike, *, text_field: str = "text", id_field: str | None = None) -> Texts:
    """Open queries or documents, whatever a Python caller has.

    Args:
        kind: which of both.
        given: a path, glob or URL, several of them as ``Path`` in a list; or texts, mappings or (id, text) pairs; or a
            mapping of ids to texts. A list of strings is a list of texts, a single string a path.
        text_field: the field with the text.
        id_field: the field with the id, by default ``id``; a text without one has its number, from 0.

    Raises:
        BadInput: a file is not there or cannot be read.
        UsageError: a list of strings names files.
    """
    names = files_in(given)
    if names is not None:
        return open_texts(kind, names, text_field=text_field, id_field=id_field)
    items: Any = given.items() if isinstance(given, Mapping) else given
    return GivenTexts(kind, items, text_field, id_field)


def open_texts(
    kind: Kind,
    inputs: Sequence[str],
    *,
    stdin_format: str | None = None,
    text_field: str = "text",
    id_field: str | None = None,
) -> Texts:
    """Do the same for files, globs, URLs and ``-``."""
    return FileTexts(kind, expand(inputs, stdin_format=stdin_format), text_field, id_field)
