"""A corpus as it is handed over: files, globs and URLs, or the records themselves; and the key it is known by."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from producer.readers import read_items, read_rows
from producer.rows import Row
from producer.sources import expand
from producer.submission import submission_key
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings

#: What `Client.encode` takes: paths, globs and URLs, or the records themselves.
Corpus = str | Path | Sequence[str | Path] | Iterable[str | Mapping[str, Any] | tuple[Any, str]]


#: Rows and characters that are read before a job is submitted.
AHEAD_ROWS = 2000
AHEAD_CHARS = 1_000_000


class FieldNames(TypedDict):
    """Which fields of a record are its text and its id, and which are carried to the results."""

    text_field: str
    id_field: str | None
    keep_fields: tuple[str, ...]


class Opened(NamedTuple):
    """A corpus that is ready to be read.

    Attributes:
        rows: its rows, in order.
        key: the same for the same files and fields; random for what exists only now.
        is_repeatable: whether the same command can read it again.
    """

    rows: Iterable[Row]
    key: str
    is_repeatable: bool


def job_key(
    corpus: str, settings: Settings, model: ModelSpec, options: EncodeOptions, *, on_error: str, store: str
) -> str:
    """Return the key of a job.

    The same for the same corpus, cut in the same way, with the same model and options, in the same store.
    """
    return submission_key(
        [corpus],
        model=model.digest,
        options=options.model_dump(),
        on_error=on_error,
        chunks=[settings.chunk_rows, settings.chunk_bytes],
        store=store,
    )


def read_corpus(corpus: Corpus, *, text_field: str, id_field: str | None, keep_fields: tuple[str, ...]) -> Opened:
    """Open whatever `Client.encode` takes.

    Raises:
        BadInput: a file is not there or cannot be read.
        UsageError: a list of strings names files.
    """
    fields: FieldNames = {"text_field": text_field, "id_field": id_field, "keep_fields": keep_fields}
    if isinstance(corpus, (str, Path)):
        return read_files([str(corpus)], **fields)
    if isinstance(corpus, Sequence) and corpus and isinstance(corpus[0], Path):
        return read_files([str(path) for path in corpus], **fields)
    if isinstance(corpus, Sequence) and corpus and isinstance(corpus[0], str) and _is_file(corpus[0]):
        raise UsageError(
            "A list of strings is a list of texts, and the first one names a file: give Path objects for files."
        )
    return Opened(read_items(corpus, **fields), secrets.token_hex(16), is_repeatable=False)  # type: ignore[arg-type]


def read_files(inputs: Sequence[str], *, stdin_format: str | None = None, **fields: Unpack[FieldNames]) -> Opened:
    """Do the same for files, globs, URLs and ``-``."""
    sources = expand(inputs, stdin_format=stdin_format)
    identities = [source.identity() for source in sources]
    is_repeatable = None not in identities
    key = submission_key(identities, **fields) if is_repeatable else secrets.token_hex(16)
    return Opened(read_ahead(read_rows(sources, **fields)), key, is_repeatable)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def read_ahead(rows: Iterator[Row]) -> Iterator[Row]:
    """Read the first rows at once, so that what is wrong with them is known before anything is started."""
    first: list[Row] = []
    n_chars = 0
    while len(first) < AHEAD_ROWS and n_chars < AHEAD_CHARS:
        row = next(rows, None)
        if row is None:
            break
        first.append(row)
        n_chars += len(row.text)
    return itertools.chain(first, rows)
