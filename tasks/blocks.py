"""Text blocks on a host: each is fetched once and memory-mapped by all slots there, so they share its memory.

The folder is bounded: what was not used for longest goes first, and comes again if it is needed. A slot that has such
a block open keeps it. Without a folder that can be written, blocks are read into the slot's own memory.

To look at a full folder takes tens of milliseconds, so a slot does that once in ``1 / LOOKS`` of the limit. Between two
looks of all slots the folder may grow over the limit by that much for each of them: 16 MiB with a limit of 4 GiB.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from tasks import keys, tables
from tasks.errors import DamagedObject
from tasks.open_blocks import OpenBlocks

log = logging.getLogger(__name__)

#: Bytes of mapped blocks that a slot keeps open. The candidates of one chunk may lie in hundreds of blocks, and to open
#: one takes a millisecond, for its content is compared with its hash. The memory is that of the host's page cache.
MAPPED_BYTES = 2**30
#: Bytes of blocks in a slot's own memory, where they could not be mapped; a host may have a slot for each core.
OWN_BYTES = 64 * 2**20
#: Looks at the folder that a slot takes while it writes as many bytes as the folder may hold.
LOOKS = 256
#: The share of the limit that is left when there was too much, so that the next look finds room.
LEFT = 0.9
#: Locks by which slots take turns at fetching; each block has one of them.
LOCKS = 16
#: Seconds to wait for another slot that fetches the same block; then it is fetched once more.
TURN_S = 60.0
#: Seconds after which a draft is what a slot left that was killed.
DRAFT_S = 3600.0


class BlockCache:
    """The text blocks of one store on this host. Threads may share it.

    Args:
        folder: where they are kept, beside those of other stores.
        limit_bytes: how many bytes in all, as of the last look, but for the latest block, which may be larger by
            itself.
        fetch: gets the object of a key from the store.
        store_id: of the store.
    """

    def __init__(self, folder: Path, limit_bytes: int, fetch: Callable[[str], bytes], store_id: str = "") -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._fetch = fetch
        self._store_id = store_id
        self._mapped = OpenBlocks(MAPPED_BYTES)
        self._own = OpenBlocks(OWN_BYTES)
        self._has_warned = False
        self._lock = threading.Lock()
        self._unseen_bytes = limit_bytes  # others may have filled the folder: the first block is followed by a look

    def get(self, job: str, block: int) -> pa.Table:
        """Return a text block: ``id`` and ``text``.

        Raises:
            DamagedObject: the store has it not, or not whole.
        """
        key = keys.texts_path(job, block)
        for kept in (self._mapped, self._own):
            table = kept.get(key)
            if table is not None:
                return table
        kept, table = self._load(key)
        kept.put(key, table)
        return table

    def clear(self) -> None:
        """Delete the blocks of this store. A slot that has one open keeps it."""
        self._mapped.clear()
        self._own.clear()
        for file in self._folder.glob(f"{self._store_id}-*"):
            file.unlink(missing_ok=True)

    def _load(self, key: str) -> tuple[OpenBlocks, pa.Table]:
        """Return a block, and where it is to be kept open."""
        file = self._folder / f"{self._store_id}-{key.replace('/', '-')}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            table = _map(file, key)
            if table is None:
                with self._turn(file):
                    table = _map(file, key)
                    if table is None:
                        return self._keep(file, key)
        except OSError as exc:
            self._warn(exc)
            return self._own, tables.read_block(self._fetch(key), key)
        return self._mapped, table

    def _keep(self, file: Path, key: str) -> tuple[OpenBlocks, pa.Table]:
        """Fetch a block, write it and map it; where that fails, the bytes that were fetched serve."""
        data = self._fetch(key)
        table = tables.read_block(data, key)
        try:
            _write(file, data)
            if self._is_time_to_look(len(data)):
                self._prune(file)
            mapped = _map(file, key)  # none if a slot with a smaller limit has deleted it
        except OSError as exc:
            self._warn(exc)
            mapped = None
        return (self._own, table) if mapped is None else (self._mapped, mapped)

    def _warn(self, exc: OSError) -> None:
        if not self._has_warned:
            log.warning("Text blocks are not kept on disk: %s", exc, extra={"action": "blocks"})
        self._has_warned = True

    def _is_time_to_look(self, size_bytes: int) -> bool:
        """Count what this slot has written since it last looked at the folder."""
        with self._lock:
            self._unseen_bytes += size_bytes
            if self._unseen_bytes < self._limit_bytes // LOOKS:
                return False
            self._unseen_bytes = 0
            return True

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
        total = sum(size for _, size, _ in files)
        excess = total - LEFT * self._limit_bytes if total > self._limit_bytes else 0
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
            return tables.read_local_block(mapped.read_buffer(), key)
    except FileNotFoundError:
        return None
    except DamagedObject as exc:
        log.warning("Text block fetched again: %s", exc, extra={"action": "blocks", "key": key})
        return None


def _write(file: Path, data: bytes) -> None:
    draft = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.draft")
    try:
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            out.write(data)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
