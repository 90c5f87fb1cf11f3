"""Objects behind a URL as files: one request tells what is there, each block is one more.

Blocks, and not one long response, so that a pause of the reader costs no connection and parquet can seek. A
web server without ranges is read as one response, forward only. Credentials come from the environment.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from producer.addresses import Address
from tasks.errors import BadInput, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Bytes of one piece of a response that comes without ranges.
_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object that is there: its size in bytes, its ETag, and whether it can be read from the middle."""

    name: str
    store: ObjectStore
    key: str
    size: int
    etag: str | None
    has_ranges: bool

    def open(self) -> io.RawIOBase:
        """Open the object; without ranges it cannot seek."""
        return _Ranges(self) if self.has_ranges else _Response(self)

    def read(self, start: int, end: int) -> memoryview:
        """Return the bytes from ``start`` to before ``end``.

        Raises:
            BadInput: the object is gone, or is no longer what it was when it was found.
            StoreUnavailable: the server does not answer.
        """
        with _faults(self.name):
            answer = self.store.get(self.key, options={"range": (start, end)})
            etag = answer.meta["e_tag"]
            if self.etag and etag and etag != self.etag:
                raise BadInput(f"{self.name} changed while it was read; start again", source=self.name)
            return memoryview(answer.bytes())

    def pieces(self) -> Iterator[bytes]:
        """Yield the whole object as one response brings it."""
        with _faults(self.name):
            yield from self.store.get(self.key).stream(min_chunk_size=_PIECE_BYTES)


def find(address: Address) -> RemoteObject:
    """Ask for the object at an address.

    Raises:
        BadInput: there is none, or these credentials may not read it.
        StoreUnavailable: the server does not answer.
    """
    with _faults(address.name):
        store = address.connect()
        # GET, not HEAD, which presigned addresses refuse; the body is dropped unread
        meta = store.get(address.key).meta
        has_ranges = not (address.is_web and meta["size"]) or _has_ranges(store, address.key)
    return RemoteObject(address.name, store, address.key, meta["size"], meta["e_tag"], has_ranges)


def _has_ranges(store: ObjectStore, key: str) -> bool:
    from obstore.exceptions import NotSupportedError

    try:
        store.get(key, options={"range": (0, 1)})
    except NotSupportedError:
        return False
    return True


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Say in one line of penstock's own what an obstore exception means."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as exc:
        remedy = "; a glob works on local files only" if glob.has_magic(name) else ""
        raise BadInput(f"{name}: no such object{remedy}", source=name) from exc
    except (PermissionDeniedError, UnauthenticatedError) as exc:
        remedy = "check the credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)"
        raise BadInput(f"{name}: no permission to read it; {remedy}", source=name) from exc
    except ValueError as exc:
        raise BadInput(f"{name}: not a valid address", source=name) from exc
    except BaseError as exc:
        # the first part of the text is the URL with its query, which may hold a signature
        line = str(exc).partition("\n")[0]
        reason = line.partition(" - ")[2] or line
        message = f"{name} does not answer ({reason}); check the address, the network and the credentials"
        raise StoreUnavailable(message, source=name) from exc


class _Ranges(io.RawIOBase):
    """A file whose every read is one range request."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote = remote
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._remote.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._remote.size)
        n_bytes = max(0, end - self._position)
        if n_bytes:
            buffer[:n_bytes] = self._remote.read(self._position, end)
            self._position = end
        return n_bytes


class _Response(io.RawIOBase):
    """A file that is one response, read forward."""

    def __init__(self, remote: RemoteObject) -> None:
        self._pieces = remote.pieces()
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        n_bytes = min(len(buffer), len(self._rest))
        buffer[:n_bytes] = self._rest[:n_bytes]
        self._rest = self._rest[n_bytes:]
        return n_bytes
