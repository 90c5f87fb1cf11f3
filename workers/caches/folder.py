"""A cache in a folder, for all processes of one machine: one SQLite database.

Each batch of vectors is one transaction, so that a process that is killed leaves a whole batch or nothing. Readers and
the one writer do not wait for each other (SQLite's write-ahead log), for which all must be on the same machine.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tasks.errors import UsageError
from workers.caches import CacheFault

#: The database; its log and index stand beside it.
FILE = "vectors.sqlite"
#: Bytes of the database, beyond which vectors are forgotten.
MOST_BYTES = 10 * 2**30
#: Vectors that are forgotten for each one that is added to a full cache.
FORGOTTEN = 2
#: Seconds to wait for other writers.
WAIT_S = 5.0
#: Keys of a query; SQLite before 3.32 takes no more than 999.
QUERY_KEYS = 500
#: Bytes of a page: five vectors of 384 dimensions fill one.
PAGE_BYTES = 8192
#: Pages of the log at which they go into the database: 32 MiB. Names are scattered, so that fewer, larger steps write
#: less: with SQLite's 1,000 pages, a row of 300,000 cost 38 us instead of 12.
LOG_PAGES = 4096
#: File systems whose locks or shared memory do not reach over machines, or do so at their own pace.
_NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs", "fuse.gluster", "fuse.ceph")

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, value BLOB NOT NULL)"
_PUT = "INSERT INTO vectors (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_FORGET = "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors WHERE id >= ? ORDER BY id LIMIT ?)"


class FolderCache:
    """Values in a database of a folder, which is made if it is not there.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        try:
            _refuse_network(folder)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(folder / FILE, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            self._prepare()
        except FileExistsError as exc:
            raise UsageError(f"--cache {folder}: it is a file; name a folder.") from exc
        except OSError as exc:
            raise UsageError(f"--cache {folder}: the folder cannot be made ({exc.strerror}).") from exc
        except sqlite3.DatabaseError as exc:
            raise UsageError(
                f"--cache {folder}: {FILE} cannot be used ({exc}). Name a folder that can be written; a damaged cache "
                "can be deleted."
            ) from exc

    def get(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what is there of these keys."""
        found: dict[bytes, bytes] = {}
        with self._watching():
            for start in range(0, len(names), QUERY_KEYS):
                part = names[start : start + QUERY_KEYS]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT name, value FROM vectors WHERE name IN ({marks})", part)  # noqa: S608
                found.update(rows)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values; a full cache forgets others for them."""
        with self._watching(), self._transaction():
            self._make_room(len(values))
            self._db.executemany(_PUT, values.items())

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _prepare(self) -> None:
        """Set the database up, and see that it can be written."""
        self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        # The log is not flushed with each batch: the last ones may be lost with the machine, and are computed again.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            with self._transaction():
                self._db.execute(_TABLE)
        except sqlite3.DatabaseError as exc:
            if exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # somebody else writes there just now
                return
            self._db.close()
            raise

    def _make_room(self, n_rows: int) -> None:
        """Forget a run of vectors that were stored together, wherever, if the cache is full.

        Not the oldest: a corpus larger than the cache, encoded again, would find what it needs next always just gone.
        """
        pages, free, size = (self._number(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        if (pages - free) * size > self._most_bytes:
            last = self._number("SELECT coalesce(max(id), 0) FROM vectors")
            self._db.execute(_FORGET, (random.randint(0, last), FORGOTTEN * n_rows))  # noqa: S311 - no secret

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise CacheFault(f"The vector cache {self._folder} failed: {exc}") from exc


def _refuse_network(folder: Path) -> None:
    """Raise UsageError for a folder of a network file system."""
    path = folder.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    kind = max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
    if kind.startswith(_NETWORK):
        raise UsageError(
            f"--cache {folder}: it lies on {kind}, where the locks of SQLite cannot be relied on. Name a folder on a "
            "disk of this machine, or a redis:// URL that all machines share."
        )
