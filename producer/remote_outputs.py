"""What --out names in object storage. Files are made on this machine, then uploaded in parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from producer.columns import ResultInfo
from producer.outputs import LocalFile, errors_beside, exists
from producer.result_formats import format_of
from producer.shards import MANIFEST, is_shard_file, write_shards
from tasks.errors import StoreUnavailable
from tasks.store import first_line, object_store

#: Bytes of one part of an upload, and parts under way at a time: together the memory that an upload takes.
PART_BYTES = 8 * 2**20
PARTS_AT_A_TIME = 4

#: S3 takes no more parts of one object, so that parts grow with files beyond 78 GiB.
MAX_PARTS = 10_000


@dataclass(frozen=True)
class RemoteFile:
    """One object in the format of its extension; beside a .npy with error rows, their list.

    Attributes:
        out: URL of the object.
    """

    out: str

    def check(self, *, overwrite: bool) -> None:
        """Look at the extension and at what is there.

        Raises:
            UsageError: an unknown extension.
            OutputExists: the object is there, and not to be replaced.
            StoreUnavailable: the store cannot be asked.
        """
        folder, name = self._split()
        format_of(name)
        with reaching(self.out):
            if has_object(object_store(folder), name) and not overwrite:
                raise exists(self.out)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Write a temporary file, then upload it. An object appears when the last part has arrived."""
        folder, name = self._split()
        client = object_store(folder)
        with TemporaryDirectory(prefix="penstock-") as drafts:
            path = Path(drafts) / name
            paths = [Path(written) for written in LocalFile(str(path), path).write(tables, info)]
            with reaching(self.out):
                for written in paths:
                    upload(client, written)
                if errors_beside(path) not in paths and name.endswith(".npy"):
                    remove(client, [errors_beside(path).name])
        return [f"{folder}/{written.name}" for written in paths]

    def _split(self) -> tuple[str, str]:
        folder, _, name = self.out.rpartition("/")
        return folder, name


@dataclass(frozen=True)
class RemoteFolder:
    """Shards under one prefix.

    Attributes:
        out: URL of the prefix, with a slash at its end.
    """

    out: str

    def check(self, *, overwrite: bool) -> None:
        """Look at what is there.

        Raises:
            OutputExists: there are objects under the prefix, and they are not to be replaced.
            StoreUnavailable: the store cannot be asked.
        """
        with reaching(self.out):
            if any(obstore.list(object_store(self.out.rstrip("/")))) and not overwrite:
                raise exists(self.out)

    def write(self, tables: Iterable[pa.Table], info: ResultInfo) -> list[str]:
        """Upload each shard as soon as it is whole, so that the local disk holds one at a time.

        The manifest of older results goes before their first shard is replaced, their other shards go last:
        at any time, what has a manifest is whole. Shards of a write that fails are removed.
        """
        client = object_store(self.out.rstrip("/"))
        names: list[str] = []

        def ship(path: Path) -> None:
            with reaching(self.out):
                if not names:
                    remove(client, [MANIFEST])
                names.append(path.name)
                upload(client, path)
            path.unlink()

        try:
            with TemporaryDirectory(prefix="penstock-") as drafts:
                write_shards(tables, info, Path(drafts), ship)
        except BaseException:
            with suppress(BaseError, OSError):
                remove(client, names)
            raise
        with reaching(self.out):
            remove(client, [name for name in _shard_files(client) if name not in set(names)])
        return [f"{self.out}{name}" for name in names]


def _shard_files(client: ObjectStore) -> list[str]:
    paths = [meta["path"] for page in obstore.list(client) for meta in page]
    return [path for path in paths if is_shard_file(path)]


def upload(client: ObjectStore, path: Path) -> None:
    """Upload a file under its own name, holding a few parts of it in memory."""
    part_bytes = max(PART_BYTES, math.ceil(path.stat().st_size / MAX_PARTS))
    obstore.put(client, path.name, path, chunk_size=part_bytes, max_concurrency=PARTS_AT_A_TIME)


def has_object(client: ObjectStore, name: str) -> bool:
    """Tell whether there is an object of that name."""
    try:
        obstore.head(client, name)
    except FileNotFoundError:
        return False
    return True


def remove(client: ObjectStore, names: list[str]) -> None:
    """Remove objects; nothing happens to those that are not there."""
    if names:
        with suppress(FileNotFoundError):
            obstore.delete(client, names)


@contextmanager
def reaching(out: str) -> Iterator[None]:
    """Turn what a store answers into an error of ours.

    Raises:
        StoreUnavailable: the store does not answer, or refuses.
    """
    try:
        yield
    except (BaseError, OSError) as exc:
        raise StoreUnavailable(f"--out {out}: the store failed: {first_line(exc)}", out=out) from exc
