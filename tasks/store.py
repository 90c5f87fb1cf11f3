"""Bytes by key: where chunk inputs and results live.

``file://`` is a folder, ``s3://``, ``gs://`` and ``az://`` are buckets, ``redis://`` keeps small jobs in the broker.
Every store has a random id in an object of its own, so that a client and a worker that use different ones notice.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterator
from typing import Protocol

from tasks import broker, keys, object_store
from tasks.bucket_store import BucketStore
from tasks.errors import DamagedObject, UsageError
from tasks.file_store import FileStore
from tasks.redaction import redact
from tasks.redis_store import RedisStore

#: Schemes of Redis.
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket")


class Store(Protocol):
    """Bytes by key, written once."""

    url: str

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole; over an older one of the same key."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken. Of several writers one gets True."""

    def get(self, key: str) -> bytes:
        """Read an object. Raises DamagedObject if there is none."""

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes of an object, from ``start`` up to ``stop`` or its end. Raises DamagedObject if there are none."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all objects below a folder, such as ``jobs/J/``, in no order. The memory is flat."""

    def measure_folder(self, prefix: str) -> tuple[int, int]:
        """Return how many objects are below a folder, and their bytes."""

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder, such as ``jobs/J/``. The memory is flat; a second call goes on."""


def open_store(url: str, *, redis_limit_bytes: int = 2**63) -> Store:
    """Open the store that a URL names.

    Raises:
        UsageError: an unknown scheme or a URL without a bucket or path.
    """
    scheme = url.partition("://")[0]
    if scheme in REDIS_SCHEMES:
        client = broker.connect(url, decode=False, timeout_s=broker.STORE_TIMEOUT_S)
        return RedisStore(client, redact(url), redis_limit_bytes)
    if scheme not in object_store.SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in (*object_store.SCHEMES, "redis"))
        raise UsageError(f"--store {redact(url)}: not one of {known}.")
    if scheme == "file":
        return FileStore(url)
    return BucketStore(object_store.connect(url, object_store.CHUNKS), redact(url))


def store_id(store: Store) -> str:
    """Return the store's id, making one if it has none yet."""
    try:
        return store.get(keys.STORE_ID).decode()
    except DamagedObject:
        mine = secrets.token_hex(8)
        return mine if store.create(keys.STORE_ID, mine.encode()) else store.get(keys.STORE_ID).decode()


def checked(store: Store, key: str, size_bytes: int, crc32: int) -> bytes:
    """Read an object and compare it with its recorded length and checksum.

    What is wrong is read once more: a shared folder may show a new file late, and not every fault on the way is
    noticed there.

    Raises:
        DamagedObject: it is missing or not what was recorded.
    """
    try:
        return _checked(store, key, size_bytes, crc32)
    except DamagedObject:
        return _checked(store, key, size_bytes, crc32)


def _checked(store: Store, key: str, size_bytes: int, crc32: int) -> bytes:
    data = store.get(key)
    if len(data) != size_bytes or zlib.crc32(data) != crc32:
        raise DamagedObject(
            f"{key} in {store.url} is damaged: {len(data)} bytes with checksum {zlib.crc32(data):08x}, recorded "
            f"were {size_bytes} bytes with {crc32:08x}.",
            key=key,
        )
    return data
