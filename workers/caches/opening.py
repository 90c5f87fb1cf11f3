"""Which cache an address names."""

from __future__ import annotations

from pathlib import Path

from tasks import broker
from tasks.errors import UsageError
from tasks.redaction import redact
from tasks.store import REDIS_SCHEMES
from workers.caches import Cache
from workers.caches.folder import FolderCache
from workers.caches.redis import RedisCache


def open_cache(url: str | None) -> Cache | None:
    """Open the cache that a folder or URL names. A server that is away is no error: it may come.

    Raises:
        UsageError: it names neither, or the folder cannot be used.
    """
    if url is None:
        return None
    scheme, mark, _ = url.partition("://")
    if mark and scheme in REDIS_SCHEMES:
        try:
            return RedisCache(broker.connect(url, decode=False), redact(url))
        except UsageError as exc:
            raise UsageError(str(exc).replace("--broker", "--cache", 1)) from exc
    if mark or not url:
        raise UsageError(f"--cache {redact(url)!r}: neither a folder nor a redis:// URL.")
    try:
        return FolderCache(Path(url).expanduser())
    except RuntimeError as exc:
        raise UsageError(f"--cache {url}: lies in a home that this machine does not know.") from exc
