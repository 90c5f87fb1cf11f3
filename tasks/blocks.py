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

log = logging.getLogger(__name__)

#: Blocks that a slot keeps open.
OPEN_BLOCKS = 64
#: Locks by which slots take turns at fetching; each block has one of them.
LOCKS = 16
#: Seconds to wait for another slot that fetches the same block; then it is fetched once more.
TURN_S = 60.0


class BlockCache:
    """The text blocks of one store on this host.

    Args:
        folder: where they are kept.
        limit_bytes: how many bytes, but for one block that is larger by itself.
        fetch: gets the object of a key from the store.
    """

    def __init__(self, folder: Path, limit_bytes: int, fetch: Callable[[str], bytes]) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._fetch = fetch
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

    def _load(self, key: str) -> pa.Table:
        file = self._folder / key.replace("/", "-")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._turn(file):
                found = _map(file, key)
                if found is not None:
                    return found
                data = self._fetch(key)
                tables.read_block(data, key)  # once, and never again on this host
                _write(file, data)
            self._prune()
            return _map(file, key) or tables.read_block(data, key)  # pruned again at once, if it is the largest
        except OSError as exc:
            if not self._has_warned:
                log.warning("Text blocks are not kept on disk: %s", exc, extra={"action": "blocks"})
            self._has_warned = True
            return tables.read_block(self._fetch(key), key)

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

    def _prune(self) -> None:
        """Delete what was not used for longest, as far as there is too much."""
        files = []
        for file in self._folder.glob("*.arrow*"):
            with suppress(FileNotFoundError):  # another slot prunes too
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, file in sorted(files):
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            excess -= size


def _map(file: Path, key: str) -> pa.Table | None:
    """Map a block into memory, and note that it was used. None if it is not there."""
    try:
        os.utime(file)
        with pa.memory_map(str(file)) as mapped:
            return pa.ipc.open_file(mapped).read_all()
    except FileNotFoundError:
        return None
    except pa.ArrowException as exc:  # a disk that lost what it had taken
        log.warning("Text block fetched again: %s", exc, extra={"action": "blocks", "key": key})
        return None


def _write(file: Path, data: bytes) -> None:
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            out.write(data)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
