"""A store in Redis, for jobs that are small next to its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import redis

from tasks import keys
from tasks.errors import BrokerFull, DamagedObject, StoreFull, StoreUnavailable
from tasks.object_store import first_line

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
    """Objects of a folder as the fields of a hash, with a count of their bytes beside it."""

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

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes of an object; all of it comes over the line, as Redis has no ranges of a field."""
        if data := self.get(key)[start:stop]:
            return data
        raise DamagedObject(f"{key} in {self.url} ends before byte {start}.", key=key)

    def delete(self, key: str) -> None:
        """Remove an object."""
        folder = keys.redis_folder(key)
        with self._reaching():
            size = self._redis.hstrlen(folder, key)
            if self._redis.hdel(folder, key):
                self._redis.decrby(keys.redis_folder_bytes(key), size)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder, in no order; the keys of one hash are in memory at a time."""
        for folder in self._folders(prefix):
            with self._reaching():
                fields = cast("list[bytes]", self._redis.hkeys(keys.redis_folder(folder)))
            yield from (field.decode() for field in fields)

    def measure_folder(self, prefix: str) -> tuple[int, int]:
        """Return how many objects are below a folder, and their bytes."""
        count = size_bytes = 0
        for folder in self._folders(prefix):
            with self._reaching():
                count += self._redis.hlen(keys.redis_folder(folder))
                size_bytes += int(cast("bytes", self._redis.get(keys.redis_folder_bytes(folder)) or b"0"))
        return count, size_bytes

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder, and the counts of their bytes."""
        for folder in self._folders(prefix):
            with self._reaching():
                self._redis.unlink(keys.redis_folder(folder), keys.redis_folder_bytes(folder))

    def _folders(self, prefix: str) -> list[str]:
        """Return the folders at and below this one, each as a path that ends with a slash."""
        start = keys.redis_folder("")
        with self._reaching():
            found = {key.decode().removeprefix(start) + "/" for key in self._redis.scan_iter(f"{start}*", count=1000)}
        return sorted(folder for folder in found if folder.startswith(prefix))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except redis.OutOfMemoryError as exc:
            raise BrokerFull(
                f"The store {self.url} is full. Raise its maxmemory, or make room: `penstock remove --ended-before "
                "7d`. Work goes on when there is room."
            ) from exc
        except redis.RedisError as exc:
            raise StoreUnavailable(f"The store {self.url} failed: {first_line(exc)}") from exc
