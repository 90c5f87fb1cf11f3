"""A corpus as it is handed over: files, globs and URLs, or the records themselves; and the key it is known by."""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from producer.chunking import Chunk, KeptTypes, PairChunk, cut_chunks
from producer.readers import read_items, read_rows
from producer.rows import Row, quote
from producer.sources import expand
from producer.text_blocks import TextBlock
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions, ScoreOptions
from tasks.settings import Settings

#: What `Client.encode` takes: paths, globs and URLs, or the records themselves.
Corpus = str | Path | Sequence[str | Path] | Iterable[str | Mapping[str, Any] | tuple[Any, str]]


#: Rows and characters that are read before a job is submitted.
AHEAD_ROWS = 2000
AHEAD_CHARS = 1_000_000

#: Options that came later than the others. Unused, they do not enter keys, so that jobs from before them are found.
LATER = ("language", "language_field")


class FieldNames(TypedDict):
    """Which fields of a record are its text, its id and its language, and which are carried to the results."""

    text_field: str
    id_field: str | None
    keep_fields: tuple[str, ...]
    language_field: str | None


class Opened(ABC):
    """The input of a job that is ready to be read.

    Attributes:
        key: the same for the same files and fields; random for what exists only now.
        is_repeatable: whether the same command can read it again.
        warnings: what people should know of it, a line each; complete once all parts were taken.
    """

    def __init__(self, key: str, *, is_repeatable: bool) -> None:
        self.key = key
        self.is_repeatable = is_repeatable
        self.warnings: list[str] = []

    @abstractmethod
    def parts(self, settings: Settings) -> Iterator[Chunk | PairChunk | TextBlock]:
        """Yield what is sent, once; a text block comes before the chunks that refer to it.

        Raises:
            BadInput: a record cannot be read.
        """

    def kept_types(self) -> dict[str, str]:
        """Return the column types of kept fields, once all parts were taken."""
        return {}


class OpenedRows(Opened):
    """A corpus that is encoded.

    Attributes:
        rows: its rows, in order.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        key: str,
        *,
        is_repeatable: bool,
        keep_fields: Sequence[str] = (),
        language_field: str | None = None,
    ) -> None:
        super().__init__(key, is_repeatable=is_repeatable)
        self.rows = rows if language_field is None else self._watch_languages(rows, language_field)
        self._kept = KeptTypes(keep_fields)
        self._keeps = bool(keep_fields)
        self._has_languages = language_field is not None

    def parts(self, settings: Settings) -> Iterator[Chunk]:
        """Cut the rows into chunks."""
        return cut_chunks(
            self._kept.watch(self.rows),
            chunk_rows=settings.chunk_rows,
            chunk_bytes=settings.chunk_bytes,
            keeps=self._keeps,
            has_languages=self._has_languages,
        )

    def _watch_languages(self, rows: Iterable[Row], field: str) -> Iterator[Row]:
        """Pass rows through, and warn at their end if none of them names a language: the field may be misspelled."""
        names_any = False
        for row in rows:
            names_any = names_any or bool(row.language)
            yield row
        if not names_any:
            remedy = "correct --language-field (language_field), unless --language (language) is meant for all"
            self.warnings.append(f"No record has a language in field {quote(field)}: {remedy}.")

    def kept_types(self) -> dict[str, str]:
        """Return what the rows have shown."""
        return self._kept.resolve()


def submission_key(identities: Iterable[Any], **options: Any) -> str:
    """Return 32 hex digits that are the same for the same inputs and options."""
    canonical = json.dumps([list(identities), options], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _used(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without the later ones that are not used."""
    return {name: value for name, value in options.items() if name not in LATER or value is not None}


def job_key(
    corpus: str,
    settings: Settings,
    model: ModelSpec,
    options: EncodeOptions | ScoreOptions,
    *,
    on_error: str,
    store: str,
) -> str:
    """Return the key of a job.

    The same for the same corpus, cut in the same way, with the same model and options, in the same store.
    """
    return submission_key(
        [corpus],
        model=model.digest,
        options=_used(options.model_dump()),
        on_error=on_error,
        chunks=[settings.chunk_rows, settings.chunk_bytes],
        store=store,
    )


def read_corpus(corpus: Corpus, **fields: Unpack[FieldNames]) -> OpenedRows:
    """Open whatever `Client.encode` takes.

    Raises:
        BadInput: a file is not there or cannot be read.
        UsageError: a list of strings names files.
    """
    names = files_in(corpus)
    if names is not None:
        return read_files(names, **fields)
    rows = read_items(corpus, **fields)  # type: ignore[arg-type]
    return _open(rows, secrets.token_hex(16), is_repeatable=False, fields=fields)


def files_in(given: Any) -> list[str] | None:
    """Return the paths, globs and URLs that a caller handed over, or None if these are records.

    Raises:
        UsageError: a list of strings names files.
    """
    if isinstance(given, (str, Path)):
        return [str(given)]
    if not isinstance(given, Sequence) or not given:
        return None
    if isinstance(given[0], Path):
        return [str(path) for path in given]
    if isinstance(given[0], str) and _is_file(given[0]):
        raise UsageError(
            "A list of strings is a list of texts, and the first one names a file: give Path objects for files."
        )
    return None


def read_files(inputs: Sequence[str], *, stdin_format: str | None = None, **fields: Unpack[FieldNames]) -> OpenedRows:
    """Do the same for files, globs, URLs and ``-``."""
    sources = expand(inputs, stdin_format=stdin_format)
    identities = [source.identity() for source in sources]
    is_repeatable = None not in identities
    key = submission_key(identities, **_used(fields)) if is_repeatable else secrets.token_hex(16)
    rows = read_ahead(read_rows(sources, **fields))
    return _open(rows, key, is_repeatable=is_repeatable, fields=fields)


def _open(rows: Iterable[Row], key: str, *, is_repeatable: bool, fields: FieldNames) -> OpenedRows:
    return OpenedRows(
        rows,
        key,
        is_repeatable=is_repeatable,
        keep_fields=fields["keep_fields"],
        language_field=fields["language_field"],
    )


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
