"""Text blocks on a host: each is fetched once and memory-mapped by all slots there, so they share its memory.

The folder is bounded: what was not used for longest goes first, and comes again if it is needed. A slot that has such
a block open keeps it. Without a folder that can be written, blocks are read into the slot's own memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from tasks import keys, tables
from tasks.errors import DamagedObject

log = logging.getLogger(__name__)

#: Blocks that a slot keeps open: a GiB of mapped files. The candidates of one chunk may lie in hundreds of blocks, and
#: to open one takes a millisecond, for its content is compared with its hash.
OPEN_BLOCKS = 1024
#: Locks by which slots take turns at fetching; each block has one of them.
LOCKS = 16
#: Seconds to wait for another slot that fetches the same block; then it is fetched once more.
TURN_S = 60.0
#: Seconds after which a draft is what a slot left that was killed.
DRAFT_S = 3600.0


class BlockCache:
    """The text blocks of one store on this host.

    Args:
        folder: where they are kept, beside those of other stores.
        limit_bytes: how many bytes in all, but for the latest block, which may be larger by itself.
        fetch: gets the object of a key from the store.
        store_id: of the store.
    """

    def __init__(self, folder: Path, limit_bytes: int, fetch: Callable[[str], bytes], store_id: str = "") -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._fetch = fetch
        self._store_id = store_id
        self._open: OrderedDict[str, pa.Table] = OrderedDict()
        self._has_warned = False

    def get(self, job: str, block: int) -> pa.Table:
        """Return a text block: ``id`` and ``text``.

        Raises:
            DamagedObject: the store has it not, or not whole.
        """
        key = keys.texts_path(job, block)
        table = self._open.pop(key, None)
        if table is None:
            table = self._load(key)
        self._open[key] = table
        if len(self._open) > OPEN_BLOCKS:
            self._open.popitem(last=False)
        return table

    def clear(self) -> None:
        """Delete the blocks of this store. A slot that has one open keeps it."""
        self._open.clear()
        for file in self._folder.glob(f"{self._store_id}-*"):
            file.unlink(missing_ok=True)

    def _load(self, key: str) -> pa.Table:
        file = self._folder / f"{self._store_id}-{key.replace('/', '-')}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            table = _map(file, key)
            if table is None:
                with self._turn(file):
                    table = _map(file, key) or self._keep(file, key)  # a block has a row at least
        except OSError as exc:
            if not self._has_warned:
                log.warning("Text blocks are not kept on disk: %s", exc, extra={"action": "blocks"})
            self._has_warned = True
            return tables.read_block(self._fetch(key), key)
        return table

    def _keep(self, file: Path, key: str) -> pa.Table:
        """Fetch a block, write it and map it."""
        data = self._fetch(key)
        table = tables.read_block(data, key)
        _write(file, data)
        self._prune(file)
        return _map(file, key) or table  # a slot with a smaller limit may have deleted it

    @contextmanager
    def _turn(self, file: Path) -> Iterator[None]:
        """Wait until no other slot fetches the same block."""
        lock = self._folder / f"lock-{sum(file.name.encode()) % LOCKS}"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + TURN_S
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def _prune(self, latest: Path) -> None:
        """Delete what was not used for longest, as far as there is too much, and drafts that nobody finishes."""
        files = []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another slot prunes too
                status = file.stat()
                if file.suffix == ".draft" and status.st_mtime < time.time() - DRAFT_S:
                    file.unlink()
                elif file.suffix == ".arrow":
                    files.append((status.st_mtime_ns, status.st_size, file))
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, file in sorted(files):
            if excess <= 0:
                return
            if file != latest:
                file.unlink(missing_ok=True)
                excess -= size


def _map(file: Path, key: str) -> pa.Table | None:
    """Map a block into memory, and note that it was used. None if it is not there, or not whole.

    Its content is compared with its hash: a disk may lose what it had taken, and with wrong offsets a text would end
    the process.
    """
    try:
        os.utime(file)
        with pa.memory_map(str(file)) as mapped:
            return tables.read_block(mapped.read_buffer(), key)
    except FileNotFoundError:
        return None
    except DamagedObject as exc:
        log.warning("Text block fetched again: %s", exc, extra={"action": "blocks", "key": key})
        return None


def _write(file: Path, data: bytes) -> None:
    draft = file.with_suffix(f".{os.getpid()}.draft")
    try:
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            out.write(data)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
