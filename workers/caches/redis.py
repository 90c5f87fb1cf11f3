"""A cache in Redis or Valkey, for many machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks import keys
from tasks.broker import tls_fault
from tasks.object_store import first_line
from tasks.redaction import redact_text
from workers.caches import CacheFault

#: Seconds that a vector is kept: 30 days.
KEEP_S = 30 * 86_400
#: Values of one exchange: some 1.5 MB at 384 dimensions, which no line takes long for.
PART = 1000


class RedisCache:
    """Values under keys of their own, each with a time at which the server forgets it.

    What the server does not answer within 5 s is given up.

    Args:
        client: returns bytes, not text.
        url: for messages.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self._redis = client
        self._url = url
        # Once more, as an idle connection may have been cut; but not after a timeout.
        client.set_retry(Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)))

    def get(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what is there of these keys."""
        found: dict[bytes, bytes] = {}
        with self._watching():
            for part in _parts(names):
                values = cast("list[bytes | None]", self._redis.mget(map(_key, part)))
                found.update((name, value) for name, value in zip(part, values, strict=True) if value is not None)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values for 30 days."""
        with self._watching():
            for part in _parts(values):
                pipeline = self._redis.pipeline(transaction=False)
                for name in part:
                    pipeline.set(_key(name), values[name], ex=KEEP_S)
                pipeline.execute()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as exc:
            why = redact_text(tls_fault(exc) or first_line(exc))
            raise CacheFault(f"The vector cache {self._url} failed: {why}") from exc


def _key(name: bytes) -> str:
    return keys.vector(name.hex())


def _parts(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(names)
    while part := list(islice(rest, PART)):
        yield part
