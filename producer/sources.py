"""Opening input: what INPUT names, as a list of sources that are there and can be read.

An INPUT is a local file, a glob, ``-`` for stdin, or the URL of one object. All are checked before any is
read, so a typo in the last name does not surface after an hour. The extension tells format and compression.
"""

from __future__ import annotations

import functools
import glob
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from producer import remote
from producer.addresses import SCHEMES, Address
from producer.globs import files_matching
from producer.stdin import Stdin
from tasks.errors import BadInput

_TEXT_FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}

#: Extension -> format, and compression by the name that Arrow gives it.
KINDS: dict[str, tuple[str, str | None]] = {
    text + packed: (_TEXT_FORMATS[text], _COMPRESSIONS[packed])
    for text, packed in itertools.product(_TEXT_FORMATS, _COMPRESSIONS)
} | {".parquet": ("parquet", None)}

#: What a person is told about extensions.
KNOWN_EXTENSIONS = ".txt, .jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst) and .parquet"

#: Bytes between a source and its decompression or its lines; one remote request fetches this much.
BLOCK_BYTES = 8 * 2**20

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


#: (absolute path, size in bytes, mtime in ns) of a file, (URL, size, ETag or None) of an object.
State = tuple[str, int, str | int | None]


@dataclass(frozen=True, slots=True)
class Source:
    """One input that is there: a file, an object or stdin.

    Attributes:
        name: what a person calls it, a URL without its query and password.
        format: txt, jsonl, csv, tsv or parquet.
        compression: gzip, zstd or None.
        opener: opens the bytes as they are stored.
        state: what changes when the content does; None where nothing tells.
        look: finds the state out again.
    """

    name: str
    format: str
    compression: str | None
    opener: Callable[[], io.RawIOBase] = field(repr=False, compare=False)
    state: State | None = None
    look: Callable[[], State | None] = field(default=lambda: None, repr=False, compare=False)

    def open(self) -> BinaryIO:
        """Open the content for reading forward: decompressed and buffered."""
        stored = io.BufferedReader(self.opener(), BLOCK_BYTES)
        if self.compression is None:
            return cast("BinaryIO", stored)
        import pyarrow as pa

        # Arrow, as python-zstandard takes a truncated frame for the end of the file
        return cast("BinaryIO", io.BufferedReader(pa.CompressedInputStream(stored, self.compression), 2**18))

    def identity(self) -> State | None:
        """Return what tells whether the content is still the same; None for stdin and pipes."""
        return self.state

    def check_same(self) -> None:
        """Fail if the content is no longer what it was when it was found.

        Raises:
            BadInput: it was changed, replaced or removed.
        """
        if self.state is not None and self.look() != self.state:
            raise self.flaw("it changed while it was read; start again when it stays as it is")

    def flaw(self, reason: object, place: str = "") -> BadInput:
        """Say what is wrong with this source, or with one place in it such as ``line 7``."""
        where = f"{self.name}, {place}" if place else self.name
        return BadInput(f"{where}: {reason}", source=self.name, place=place)

    def fault(self, exc: Exception) -> BadInput:
        """Say why the bytes cannot be read, after an exception of the system or of a decoder."""
        if isinstance(exc, OSError) and exc.strerror:
            return self.flaw(f"cannot be read ({exc.strerror})")
        reason = "".join(filter(str.isprintable, str(exc).partition("\n")[0])).rstrip(".")
        return self.flaw(f"broken {self.compression or self.format} data ({reason}); copy or write it again")


def expand(inputs: Sequence[str], *, stdin_format: str | None = None, other: str | None = None) -> list[Source]:
    """Turn the INPUT arguments into sources, in their order and the matches of a glob sorted.

    Args:
        inputs: local files, globs (``*``, ``**``), ``-``, or URLs of s3://, gs://, az://, https:// and http://.
            A file may be named twice, stdin only once.
        stdin_format: an extension without its first dot, such as ``csv`` or ``jsonl.gz``. Without it stdin is
            jsonl if its first byte that is not blank is ``{``, else txt.
        other: the format of files with other extensions than the known ones, or none.

    Raises:
        BadInput: something named is not there, cannot be read, is empty, or is of an unknown kind.
        StoreUnavailable: the server of a URL does not answer.
    """
    if list(inputs).count("-") > 1:
        raise BadInput("-: stdin can be read only once; name it once")
    return [source for name in inputs for source in _sources_of(name, stdin_format, other)]


def _sources_of(name: str, stdin_format: str | None, other: str | None) -> Iterator[Source]:
    if name == "-":
        yield _stdin(stdin_format)
    elif not _is_name(name):
        raise BadInput(f"{name!r}: no file has such a name", source=name)
    elif scheme := _SCHEME.match(name):
        yield _remote(name, scheme[1].lower(), other)
    elif glob.has_magic(name) and not os.path.lexists(name):
        yield from (_local(match, other) for match in files_matching(name))
    else:
        yield _local(name, other)


def _is_name(text: str) -> bool:
    """Tell whether a file can have this name; all can but those with a NUL, or half a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _kind_of(name: str, path: str, other: str | None = None) -> tuple[str, str | None]:
    """Return format and compression by the extension of ``path``."""
    *_, outer, inner = ["", "", *Path(path.lower()).suffixes]
    for extension in (outer + inner, inner):
        if extension in KINDS:
            return KINDS[extension]
    if other is not None:
        return other, _COMPRESSIONS.get(inner)
    extension = outer + inner if inner in _COMPRESSIONS else inner
    what = f"unknown extension {extension}" if extension else "no extension"
    raise BadInput(f"{name}: {what}; penstock reads {KNOWN_EXTENSIONS}", source=name)


def _local(name: str, other: str | None) -> Source:
    path = Path(name)
    try:
        info = path.stat()
    except OSError as exc:
        reason = "no such file" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc.strerror})"
        raise BadInput(f"{name}: {reason}", source=name) from exc
    if stat.S_ISDIR(info.st_mode):
        remedy = f"name files or a glob such as {path / '*.jsonl'}"
        raise BadInput(f"{name} is a directory; {remedy}", source=name)
    kind = _kind_of(name, name, other)
    if not os.access(path, os.R_OK):
        raise BadInput(f"{name}: no permission to read it; chmod or chown it", source=name)
    is_file = stat.S_ISREG(info.st_mode)  # a pipe has neither a size nor a state
    if is_file and not info.st_size:
        raise _empty(name)
    if not is_file:
        return Source(name, *kind, functools.partial(io.FileIO, name))
    look = functools.partial(_state_of, path.resolve())
    return Source(name, *kind, functools.partial(io.FileIO, name), look(), look)


def _state_of(path: Path) -> State | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return str(path), info.st_size, info.st_mtime_ns


def _remote(url: str, scheme: str, other: str | None) -> Source:
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise BadInput(f"{url}: unknown scheme; penstock reads local files and {known}", source=url)
    address = Address.of(url)
    kind = _kind_of(address.name, address.key, other)
    found = remote.find(address)
    if not found.size:
        raise _empty(found.name)
    state = (found.name, found.size, found.etag)
    return Source(found.name, *kind, found.open, state, lambda: state)  # each request compares the ETag


def _empty(name: str) -> BadInput:
    return BadInput(f"{name} is empty (0 bytes); leave it out", source=name)


def _stdin(format_: str | None) -> Source:
    stdin = Stdin()
    kind = _kind_of("stdin", f"stdin.{format_ or stdin.guess_format()}")
    if kind[0] == "parquet":
        remedy = "save it to a file and name that"
        raise BadInput(f"stdin: parquet cannot be read from a pipe; {remedy}", source="stdin")
    return Source("stdin", *kind, lambda: stdin)
