"""What --out names in object storage. Files are made on this machine, then uploaded in parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError

from producer.columns import ResultInfo
from producer.extensions import Format
from producer.outputs import LocalFile, check_name, errors_beside, exists
from producer.shards import MANIFEST, is_shard_file, write_shards
from tasks.errors import StoreUnavailable
from tasks.object_store import connect

#: Bytes of one part of an upload, and parts under way at a time: together the memory that an upload takes.
PART_BYTES = 8 * 2**20
PARTS_AT_A_TIME = 4

#: S3 takes no more parts of one object: parts grow with files beyond 78 GiB.
MAX_PARTS = 10_000


@dataclass(frozen=True)
class RemoteFile:
    """One object; beside one that cannot say which rows have an error, their list if there are any.

    Attributes:
        out: URL of the object.
        format: of the object.
        top_k: how many pairs of each query; all if None.
    """

    out: str
    format: Format[Any]
    top_k: int | None

    def check(self, *, overwrite: bool) -> None:
        """Look at the name and at what is there.

        Raises:
            UsageError: the name is too long for the file that is uploaded.
            OutputExists: the object is there, and not to be replaced.
            StoreUnavailable: the store cannot be asked.
        """
        check_name(self.out, Path(gettempdir()) / self._name)
        if Prefix(self._folder).has(self._name) and not overwrite:
            raise exists(self.out)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Write a temporary file, then upload it. An object appears when its last part has arrived."""
        prefix = Prefix(self._folder)
        with TemporaryDirectory(prefix="penstock-") as drafts:
            path = Path(drafts) / self._name
            local = LocalFile(str(path), path, self.format, self.top_k)
            names = [Path(written).name for written in local.write(tables, info)]
            for name in names:
                prefix.upload(path.with_name(name))
        old_errors = errors_beside(path).name
        if self.format.lists_errors and old_errors not in names:
            prefix.remove([old_errors])
        return [f"{self._folder}{name}" for name in names]

    @property
    def _name(self) -> str:
        return self.out.rpartition("/")[2]

    @property
    def _folder(self) -> str:
        return self.out.removesuffix(self._name)


@dataclass(frozen=True)
class RemoteFolder:
    """Shards under one prefix.

    Attributes:
        out: URL of the prefix, with a slash at its end.
        top_k: how many pairs of each query; all if None.
    """

    out: str
    top_k: int | None

    def check(self, *, overwrite: bool) -> None:
        """Look at what is there.

        Raises:
            OutputExists: there are objects under the prefix, and they are not to be replaced.
            StoreUnavailable: the store cannot be asked.
        """
        is_taken = any(Prefix(self.out).names())
        if is_taken and not overwrite:
            raise exists(self.out)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Upload each shard as soon as it is whole, so that the local disk holds one at a time.

        The manifest of older results goes before their first shard is replaced, their other shards go last:
        at any time, what has a manifest is whole. Shards of a write that fails are removed.
        """
        prefix = Prefix(self.out)
        names: list[str] = []

        def ship(path: Path) -> None:
            if not names:
                prefix.remove([MANIFEST])
            names.append(path.name)
            prefix.upload(path)
            path.unlink()

        try:
            with TemporaryDirectory(prefix="penstock-") as drafts:
                write_shards(tables, info, Path(drafts), self.top_k, ship)
        except BaseException:
            with suppress(StoreUnavailable):
                prefix.remove(names)
            raise
        prefix.remove([name for name in prefix.names() if is_shard_file(name) and name not in set(names)])
        return [f"{self.out}{name}" for name in names]


class Prefix:
    """The objects whose URLs begin alike. Credentials come from the environment and the usual chains.

    Args:
        url: with a slash at its end; what follows the bucket is taken literally, not percent-decoded.

    Raises:
        StoreUnavailable: by every method, when the store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        bucket, _, self._key = rest.partition("/")
        self._url = url
        with self._reaching():
            self._client = connect(f"{scheme}://{bucket}")

    def has(self, name: str) -> bool:
        """Tell whether there is an object of that name."""
        with self._reaching():
            try:
                obstore.head(self._client, self._key + name)
            except FileNotFoundError:
                next(self.names(), None)  # fails when the bucket is missing, of which HEAD says no more than this
                return False
            return True

    def names(self) -> Iterator[str]:
        """Yield the names of all objects, without the prefix."""
        with self._reaching():
            for page in obstore.list(self._client, self._key or None):
                for meta in page:
                    yield meta["path"].removeprefix(self._key)

    def upload(self, path: Path) -> None:
        """Upload a file under its own name, holding a few parts of it in memory."""
        part_bytes = max(PART_BYTES, math.ceil(path.stat().st_size / MAX_PARTS))
        with self._reaching():
            obstore.put(
                self._client,
                self._key + path.name,
                path,
                chunk_size=part_bytes,
                max_concurrency=PARTS_AT_A_TIME,
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; nothing happens to those that are not there."""
        keys = [self._key + name for name in names]
        if keys:
            with self._reaching(), suppress(FileNotFoundError):
                obstore.delete(self._client, keys)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as exc:
            # obstore's text begins with the request's URL, whose query may hold a signature, and ends with pages
            # of debug source
            line = str(exc).partition("\n")[0]
            reason = line.partition(" - ")[2] or line
            raise StoreUnavailable(
                f"--out {self._url}: the store failed ({reason}). Check the URL, the network and the credentials."
            ) from exc
