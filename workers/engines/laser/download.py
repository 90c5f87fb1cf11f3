"""Fetching LASER's published files into a folder: whole, checked, once for all processes of a machine.

A file that was broken off goes on where it stopped, if the server says by a strong ETag that it has the same one.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from tasks import object_store
from tasks.errors import ModelNotFound, StoreUnavailable, UsageError
from tasks.redaction import redact
from workers.engines.laser.formats import flaw_of

log = logging.getLogger(__name__)

#: Bytes that are written at a time.
PIECE_BYTES = 2**20
#: Seconds between two lines that tell how far a download is.
TELL_S = 10.0
#: Seconds after which a download that failed is tried again.
AGAIN_S = 60.0
#: An ETag that is the content's MD5: what S3 gives for an object that was put in one part. Those of several parts, and
#: most web servers' own, have another form.
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass
class Downloads:
    """Files of one server in one folder.

    Attributes:
        url: of the files, without their names.
        folder: where they are put.
        running: the threads that fetch a group of files, and how each ended, by the group.
    """

    url: str
    folder: Path
    running: dict[tuple[str, ...], _Fetching] = field(default_factory=dict)

    def has(self, names: Sequence[str]) -> bool:
        """Whether files are there."""
        return all((self.folder / name).is_file() for name in names)

    def fetch(self, names: Sequence[str]) -> None:
        """Get those files that are not there; another process that does so is waited for.

        Raises:
            ModelNotFound: the server has no such file, or gave something else.
            StoreUnavailable: the server does not answer.
        """
        if self.has(names):
            return
        try:
            with _turn(self.folder):
                store = object_store.connect(self.url, object_store.STREAMS)
                for name in names:
                    if not self.has([name]):
                        _fetch(store, name, self.folder)
        except (StoreUnavailable, UsageError, OSError) as exc:
            kind = StoreUnavailable if isinstance(exc, StoreUnavailable) else ModelNotFound
            raise kind(
                f"LASER's files are not here and cannot be downloaded from {redact(self.url)} ({exc}). Put "
                f"{', '.join(names)} into {self.folder}, or name a folder that has them: --model laser:./FOLDER."
            ) from exc

    def wait(self, names: Sequence[str], for_s: float) -> None:
        """Get files in a thread that outlives this call, and wait for them only so long.

        A download that failed is told at once to all who ask within ``AGAIN_S``.

        Raises:
            ModelNotFound: they cannot be had now: the server has no such file, gave something else, does not answer, or
                broke off twice at the same place.
            StoreUnavailable: they are still on their way.
        """
        if self.has(names):
            return
        fetching = self.running.get(tuple(names))
        if fetching is None or fetching.is_over():
            fetching = self.running[tuple(names)] = _Fetching(self, names).start()
        fetching.thread.join(for_s)
        if fetching.thread.is_alive():
            raise StoreUnavailable(f"{names[0]} is being downloaded from {redact(self.url)}")
        if fetching.error is None:
            del self.running[tuple(names)]
            return
        fetching.told_at = fetching.told_at or time.monotonic()
        raise ModelNotFound(str(fetching.error)) from fetching.error

    def size_bytes(self, names: Sequence[str]) -> int:
        """Return how much of files is here, in parts or whole."""
        size = 0
        for place in (place for name in names for place in (self.folder / name, *self.folder.glob(f".{name}.*.part"))):
            with suppress(OSError):  # not there, or renamed by another process at this moment
                size += place.stat().st_size
        return size


class _Fetching:
    """A thread that fetches."""

    def __init__(self, downloads: Downloads, names: Sequence[str]) -> None:
        self.error: Exception | None = None
        #: When somebody heard of the error first.
        self.told_at: float | None = None
        self._downloads, self._names = downloads, names
        self.thread = threading.Thread(target=self._run, name="download", daemon=True)

    def start(self) -> _Fetching:
        self.thread.start()
        return self

    def is_over(self) -> bool:
        """Whether it failed so long ago that another try is due; not before somebody heard of it."""
        return self.told_at is not None and time.monotonic() - self.told_at >= AGAIN_S

    def _run(self) -> None:
        most = -1
        try:
            # A transfer that breaks off now and then comes to its end, as long as each try brings it further.
            while most < (have := self._downloads.size_bytes(self._names)):
                most, self.error = have, None
                try:
                    return self._downloads.fetch(self._names)
                except StoreUnavailable as exc:
                    self.error = exc
        except Exception as exc:  # noqa: BLE001 - a thread's boundary; whoever waits for it raises it
            self.error = exc


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into a folder. The lock of one that dies is free at once."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch(store: Any, name: str, folder: Path) -> None:
    """Fetch one file: into a part that keeps what came, then under its name."""
    with _faults(name):
        meta = store.head(name)
    size, etag = meta["size"], meta["e_tag"] or ""
    mark = hashlib.blake2b(f"{etag} {size} {meta['last_modified']}".encode(), digest_size=4).hexdigest()
    part = folder / f".{name}.{mark}.part"
    for other in folder.glob(f".{name}.*.part"):
        if other != part:  # of a file that the server has no more
            other.unlink()
    log.info("Downloading %s", name, extra={"action": "download", "bytes": size})
    _receive(store, name, part, size, etag)
    _check(part, name, size, etag)
    with part.open("rb") as file:  # on the disk before it has its name: after a crash it would be zeros
        os.fsync(file.fileno())
    part.replace(folder / name)
    log.info("Downloaded %s", name, extra={"action": "download", "bytes": size})


def _receive(store: Any, name: str, part: Path, size: int, etag: str) -> None:
    """Append to a part what it lacks."""
    told = time.monotonic()
    is_strong = bool(etag) and not etag.startswith("W/")
    if not is_strong:  # what came may be of another version
        part.unlink(missing_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if have >= size > 0:
        return
    options: dict[str, Any] = {"if_match": etag} if is_strong else {}
    if have:
        options["range"] = {"offset": have}
    with _faults(name), part.open("ab") as file:
        try:
            answer = store.get(name, options=options)
        except (NotSupportedError, PreconditionError):  # no ranges, or another file by now: from the beginning
            file.truncate(0)
            have, answer = 0, store.get(name)
        for piece in answer.stream(min_chunk_size=PIECE_BYTES):
            file.write(piece)
            have += len(piece)
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                log.info("Downloading %s: %.0f of %.0f MB", name, have / 1e6, size / 1e6, extra={"action": "download"})


def _check(part: Path, name: str, size: int, etag: str) -> None:
    """Compare a part with what the server said of the file.

    Raises:
        StoreUnavailable: it is not whole.
        ModelNotFound: its content is another; the part is removed.
    """
    have = part.stat().st_size
    if have < size:
        raise StoreUnavailable(f"{name} was broken off after {have} of {size} bytes; the next try goes on there")
    published = _MD5.fullmatch(etag)
    if have > size:
        flaw: str | None = f"{have} bytes came, and not {size}"
    elif published is not None and _md5(part) != published[1]:
        flaw = "its MD5 is not the server's ETag"
    else:
        flaw = flaw_of(part, Path(name).suffix)
    if flaw:
        part.unlink()
        raise ModelNotFound(f"{name} is damaged, or the server sent something else: {flaw}")


def _md5(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Say in one line what an exception of obstore's means."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{name}: the server has no such file") from exc
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        raise ModelNotFound(f"{name}: the server refuses it") from exc
    except BaseError as exc:
        line = object_store.first_line(exc)
        raise StoreUnavailable(f"{name}: {redact(line.partition(' - ')[2] or line)}") from exc
