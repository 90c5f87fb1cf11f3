"""Bytes by key: where chunk inputs and results live.

``file://``, ``s3://``, ``gs://`` and ``az://`` go through obstore; ``redis://`` keeps small jobs in the broker. Every
store has a random id in an object of its own, so that a client and a worker that use different ones notice.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import obstore
import redis
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from tasks import broker, keys, object_store
from tasks.errors import DamagedObject, StoreFull, StoreUnavailable, UsageError
from tasks.object_store import first_line

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

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""


def open_store(url: str, *, redis_limit_bytes: int = 2**63) -> Store:
    """Open the store that a URL names.

    Raises:
        UsageError: an unknown scheme or a URL without a bucket or path.
    """
    scheme = url.partition("://")[0]
    if scheme in REDIS_SCHEMES:
        return RedisStore(broker.connect(url, decode=False), broker.redact(url), redis_limit_bytes)
    if scheme not in object_store.SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in (*object_store.SCHEMES, "redis"))
        raise UsageError(f"--store {broker.redact(url)}: not one of {known}.")
    return ObjectStoreAdapter(object_store.connect(url), url)


def store_id(store: Store) -> str:
    """Return the store's id, making one if it has none yet."""
    try:
        return store.get(keys.STORE_ID).decode()
    except DamagedObject:
        mine = secrets.token_hex(8)
        return mine if store.create(keys.STORE_ID, mine.encode()) else store.get(keys.STORE_ID).decode()


def checked(store: Store, key: str, size_bytes: int, crc32: int) -> bytes:
    """Read an object and compare it with its recorded length and checksum.

    Raises:
        DamagedObject: it is missing or not what was recorded.
    """
    data = store.get(key)
    if len(data) != size_bytes or zlib.crc32(data) != crc32:
        raise DamagedObject(
            f"{key} in {store.url} is damaged: {len(data)} bytes with checksum {zlib.crc32(data):08x}, recorded "
            f"were {size_bytes} bytes with {crc32:08x}.",
            key=key,
        )
    return data


class ObjectStoreAdapter:
    """A store in a local folder or a bucket, through obstore."""

    def __init__(self, client: ObjectStore, url: str) -> None:
        self._client = client
        self.url = broker.redact(url)

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole."""
        with self._writing(key):
            obstore.put(self._client, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken."""
        with self._writing(key):
            try:
                obstore.put(self._client, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        """Read an object."""
        with self._reaching(key):
            return bytes(obstore.get(self._client, key).bytes())

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._reaching(key):
            try:
                obstore.delete(self._client, key)
            except FileNotFoundError:
                return

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        with self._reaching(key):
            try:
                yield
            except FileNotFoundError as exc:
                raise UsageError(f"The store {self.url} is not there: make its bucket or container first.") from exc

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise DamagedObject(f"{key} is missing in {self.url}.", key=key) from exc
        except (BaseError, OSError) as exc:
            raise StoreUnavailable(f"The store {self.url} failed on {key}: {first_line(exc)}", key=key) from exc


#: KEYS folder size, ARGV key data limit: writes an object if the folder stays below the limit. Returns 1, or 0 if not.
_PUT = """
local grown = #ARGV[2] - redis.call('HSTRLEN', KEYS[1], ARGV[1])
local held = tonumber(redis.call('GET', KEYS[2]) or '0') + grown
if grown > 0 and held > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', held))
return 1
"""


class RedisStore:
    """A store in Redis, for jobs that are small next to its memory: a hash per folder, a field per object."""

    def __init__(self, client: redis.Redis, url: str, limit_bytes: int) -> None:
        self._redis = client
        self.url = url
        self._limit_bytes = limit_bytes
        self._put = client.register_script(_PUT)

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, as long as its folder stays below the limit.

        Raises:
            StoreFull: the objects beside it and this one are more than a redis:// store takes.
        """
        folder = keys.redis_folder(key)
        with self._reaching():
            is_put = self._put(keys=[folder, keys.redis_folder_bytes(key)], args=[key, data, self._limit_bytes])
        if not is_put:
            raise StoreFull(
                f"A redis:// store takes {self._limit_bytes / 2**20:.0f} MiB of inputs or results a job; this "
                "one needs more. Name object storage or a shared folder with --store (s3://..., file://...).",
                limit_bytes=self._limit_bytes,
            )

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken."""
        with self._reaching():
            is_new = bool(self._redis.hsetnx(keys.redis_folder(key), key, cast("str", data)))
            if is_new:
                self._redis.incrby(keys.redis_folder_bytes(key), len(data))
        return is_new

    def get(self, key: str) -> bytes:
        """Read an object."""
        with self._reaching():
            data = self._redis.hget(keys.redis_folder(key), key)
        if data is None:
            raise DamagedObject(f"{key} is missing in {self.url}.", key=key)
        return cast("bytes", data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        folder = keys.redis_folder(key)
        with self._reaching():
            size = self._redis.hstrlen(folder, key)
            if self._redis.hdel(folder, key):
                self._redis.decrby(keys.redis_folder_bytes(key), size)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as exc:
            raise StoreUnavailable(f"The store {self.url} failed: {first_line(exc)}") from exc
