"""Text blocks that a slot keeps open: those used last, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pyarrow as pa

#: Bytes that a block counts at least: a mapping is more than its bytes, and a process may have some 65,000 of them.
LEAST_BYTES = 64 * 1024


class OpenBlocks:
    """The blocks used last, by their keys. Threads may share it.

    Args:
        limit_bytes: of all together, but for the latest, which may be larger by itself.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: OrderedDict[str, pa.Table] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> pa.Table | None:
        """Return a block and note that it was used; None if it is not open."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: str, block: pa.Table) -> None:
        """Keep a block, and let go of those unused for longest."""
        with self._lock:
            self._drop(key)
            self._blocks[key] = block
            self._size_bytes += _size(block)
            while self._size_bytes > self._limit_bytes and len(self._blocks) > 1:
                self._drop(next(iter(self._blocks)))

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._blocks.clear()
            self._size_bytes = 0

    def _drop(self, key: str) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._size_bytes -= _size(block)


def _size(block: pa.Table) -> int:
    return max(LEAST_BYTES, int(block.nbytes))
