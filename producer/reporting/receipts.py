"""The receipts of a job, read from its results without their vectors or scores.

A result is an Arrow file: the schema with the receipt stands at its end, the column of token counts right before it.
So a receipt costs one short range of the object, and the lengths of its rows one more.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from producer.columns import LAYOUTS
from producer.submission import PATIENCE_S
from tasks import keys
from tasks.errors import DamagedObject
from tasks.ledger import Ledger
from tasks.messages import JobSpec, Receipt
from tasks.records import JobStatus, Recorded
from tasks.retrying import retry_transient
from tasks.store import Store

#: Chunks whose records are asked of the ledger at a time.
PAGE_CHUNKS = 1024
#: Results that are read at a time, because a bucket answers after some 20 ms.
AHEAD = 16
#: Chunks from whose rows the lengths of texts are taken: of more chunks every second, third, ... one.
LENGTH_CHUNKS = 10_000
#: Bytes at the end of a result that are read at once: its schema with the receipt has some 1 kB beside the options, ...
TAIL_BYTES = 4096
#: ... and beside its value a row has a number, a bit and, of an error, a sentence.
ROW_BYTES = 9
#: The columns of a result that tell of the texts and of failures.
NOTES = ("n_tokens", "truncated", "error")


@dataclass(frozen=True)
class Lengths:
    """The rows of a chunk that have a vector or score.

    Attributes:
        tokens: (n_rows,) tokens that were fed.
        truncated: (n_rows,) bool: the text had more.
    """

    tokens: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True)
class Told:
    """What the result of a chunk tells.

    Attributes:
        record: the ledger's note on it.
        receipt: None if it cannot be read; then ``problem`` says why.
        lengths: None where they were not asked for.
    """

    record: Recorded
    receipt: Receipt | None
    lengths: Lengths | None = None
    problem: str = ""


def read_receipts(ledger: Ledger, store: Store, status: JobStatus) -> Iterator[Told]:
    """Yield what the result of each recorded chunk tells, in the order of the chunks. The memory is flat."""
    spec, every = status.spec, length_stride(status.chunks)
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="report") as pool:
        waiting: deque[Future[Told]] = deque()
        for first in range(0, status.chunks, PAGE_CHUNKS):
            count = min(PAGE_CHUNKS, status.chunks - first)
            for record in retry_transient(_page_reader(ledger, spec.job, first, count), for_s=PATIENCE_S):
                has_lengths = record.chunk % every == 0
                waiting.append(pool.submit(_read, store, spec, record, has_lengths=has_lengths))
                if len(waiting) > 2 * AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def length_stride(chunks: int) -> int:
    """Return every how many chunks the lengths of the rows are read."""
    return max(1, -(-chunks // LENGTH_CHUNKS))


def _page_reader(ledger: Ledger, job: str, first: int, count: int) -> Callable[[], list[Recorded]]:
    return lambda: ledger.recorded(job, first, count)


def _read(store: Store, spec: JobSpec, record: Recorded, *, has_lengths: bool) -> Told:
    path = keys.result_path(spec.job, record.chunk, record.token)
    columns = LAYOUTS[spec.operation].columns
    notes = [columns.index(name) for name in NOTES]
    tail_bytes = TAIL_BYTES + len(spec.options.model_dump_json()) + ROW_BYTES * record.rows * has_lengths

    def read() -> Told:
        part = _Part(store, path, record.size_bytes, tail_bytes)
        options = pa.ipc.IpcReadOptions(included_fields=notes, use_threads=False)
        with pa.ipc.open_file(pa.PythonFile(part, mode="r"), options=options) as file:
            receipt = _receipt_of(file.schema, spec.job, record)
            return Told(record, receipt, _lengths(file.read_all()) if has_lengths else None)

    try:
        return retry_transient(read, for_s=PATIENCE_S)
    except DamagedObject as exc:
        return Told(record, None, problem=str(exc))
    except (pa.ArrowException, OSError, LookupError, ValueError):  # pydantic's and json's errors are ValueErrors
        return Told(record, None, problem=f"{path} is damaged, or was written by another release.")


def _receipt_of(schema: pa.Schema, job: str, record: Recorded) -> Receipt:
    metadata = schema.metadata or {}
    named = tuple(metadata[f"penstock.{name}".encode()].decode() for name in ("job", "chunk", "token"))
    receipt = Receipt.model_validate(json.loads(metadata[b"penstock.receipt"]))
    if named != (job, str(record.chunk), str(record.token)) or receipt.rows != record.rows:
        raise ValueError("another result than its name says")
    return receipt


def _lengths(notes: pa.Table) -> Lengths:
    notes.validate(full=True)
    notes = notes.filter(notes["error"].is_null())
    tokens = notes["n_tokens"].to_numpy()
    if tokens.min(initial=0) < 0:
        raise ValueError("a row with fewer than no tokens")
    return Lengths(tokens, notes["truncated"].to_numpy())


class _Part(io.RawIOBase):
    """An object of the store as a file of which the end is there, and the rest is fetched when it is read."""

    def __init__(self, store: Store, path: str, size_bytes: int, tail_bytes: int) -> None:
        super().__init__()
        self._store, self._path, self._size = store, path, size_bytes
        self._at = 0
        self._tail_at = max(0, size_bytes - tail_bytes)
        self._tail = store.get_range(path, self._tail_at, size_bytes)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        start, stop = self._at, self._size if size < 0 else min(self._size, self._at + size)
        self._at = stop
        if start >= self._tail_at:
            return self._tail[start - self._tail_at : stop - self._tail_at]
        return self._store.get_range(self._path, start, stop)
