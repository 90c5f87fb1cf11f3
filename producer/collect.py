"""Reading results back: chunk by chunk, in order, each compared with the length and checksum in the ledger."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from producer.columns import Layout, ResultInfo, failures, values_of
from producer.ranking import rank, warn_of_failed
from producer.submission import PATIENCE_S
from tasks import keys, tables
from tasks.errors import DamagedObject, JobFailed
from tasks.ledger import Ledger
from tasks.options import EncodeOptions
from tasks.records import JobStatus, Recorded
from tasks.retrying import retry_transient
from tasks.store import Store, checked

log = logging.getLogger(__name__)

#: Chunks whose records are asked of the ledger at a time.
PAGE_CHUNKS = 256
#: Results that are fetched ahead of the one that is written; the memory of collecting is this many chunks.
AHEAD = 4
#: Times that one chunk is computed again before its store is taken to be at fault.
MOST_MENDS = 3


def result_tables(
    ledger: Ledger, store: Store, status: JobStatus, compute_again: Callable[[Recorded], Recorded]
) -> Iterator[pa.Table]:
    """Yield the chunk results of a finished job in the order of its rows.

    Args:
        ledger: has the job.
        store: has its results.
        status: the job's.
        compute_again: has a chunk done again whose result is missing or not what was recorded.

    Raises:
        JobFailed: it failed, or not every chunk is recorded.
        DamagedObject: a result is damaged however often it is computed.
    """
    job = status.spec.job
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="collect") as pool:
        waiting: deque[tuple[Recorded, Future[pa.Table]]] = deque()

        def take() -> pa.Table:
            record, future = waiting.popleft()
            try:
                return future.result()
            except DamagedObject as exc:
                return _mend(store, job, record, exc, compute_again)

        for record in _records(ledger, status):
            waiting.append((record, pool.submit(_fetch, store, job, record)))
            if len(waiting) > AHEAD:
                yield take()
        while waiting:
            yield take()


def _mend(
    store: Store, job: str, record: Recorded, flaw: DamagedObject, compute_again: Callable[[Recorded], Recorded]
) -> pa.Table:
    """Return the result of a chunk whose stored one is damaged."""
    for _ in range(MOST_MENDS):
        log.warning(
            "A result is damaged, chunk %d is computed again: %s",
            record.chunk,
            flaw,
            extra={"action": "mend", "job": job},
        )
        record = compute_again(record)
        try:
            return _fetch(store, job, record)
        except DamagedObject as exc:
            flaw = exc
    raise flaw


def fetch(ledger: Ledger, store: Store, job: str, chunks: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the results of single recorded chunks, but for damaged ones."""
    for chunk in chunks:
        for record in ledger.recorded(job, chunk, 1):
            try:
                yield _fetch(store, job, record)
            except DamagedObject as exc:
                log.warning("A result is damaged: %s", exc, extra={"action": "read", "job": job})


def _fetch(store: Store, job: str, record: Recorded) -> pa.Table:
    path = keys.result_path(job, record.chunk, record.token)
    data = retry_transient(lambda: checked(store, path, record.size_bytes, record.crc32), for_s=PATIENCE_S)
    return tables.from_bytes(data, path)


def _records(ledger: Ledger, status: JobStatus) -> Iterator[Recorded]:
    if status.state == "cancelled":
        status.raise_for_state()
    job, total = status.spec.job, status.chunks
    if not status.is_sealed or status.recorded < total or status.state == "failed":
        remedy = {
            "submitting": "Its corpus is not all there yet.",
            "running": f"`penstock wait {job}` waits for the rest.",
            "failed": f"It failed: {status.reason} `penstock retry {job}` runs again what failed.",
        }.get(status.state, "")
        raise JobFailed(
            f"Job {job} is {status.state}: {status.recorded} of {total} chunks have results. {remedy}",
            job=job,
        )
    for first in range(0, total, PAGE_CHUNKS):
        count = min(PAGE_CHUNKS, total - first)
        page = ledger.recorded(job, first, count)
        if len(page) != count:
            raise DamagedObject(f"The ledger of job {job} misses records of chunks {first} to {first + count - 1}.")
        yield from page


def result_info(status: JobStatus) -> ResultInfo:
    """Return what a writer must know before the first row."""
    spec = status.spec
    return ResultInfo(
        n_rows=status.rows,
        dim=status.dim,
        vector_dtype=spec.options.vector_dtype if isinstance(spec.options, EncodeOptions) else "float32",
        kept_types=status.kept_types,
        metadata={
            "version": version("penstock"),
            "job": spec.job,
            "model": spec.model.name,
            "revision": spec.model.revision or "",
            "digest": spec.model.digest,
            "weights": status.weights,
            "options": spec.options.model_dump_json(),
        },
        operation=spec.operation,
        name=spec.name,
    )


def stack_values(chunks: Iterable[pa.Table], info: ResultInfo) -> np.ndarray:
    """Return all vectors (n_rows, dim) or scores (n_rows,) as one array, NaN in rows with an error.

    The whole result is in memory.
    """
    values = np.empty((info.n_rows, *info.value_shape), info.vector_dtype)
    row = 0
    for table in chunks:
        values[row : row + table.num_rows] = values_of(table, info)
        row += table.num_rows
    return values


def rankings(chunks: Iterable[pa.Table], top_k: int | None) -> dict[str, list[tuple[str, float]]]:
    """Return the ranked documents of each query, with their scores: the whole result in memory."""
    found = {}
    n_failed = 0
    for ranking in rank(chunks, top_k):
        n_failed += len(ranking.failed)
        scores = ranking.best["score"].to_pylist()
        found[ranking.query_id] = list(zip(ranking.best["doc_id"].to_pylist(), scores, strict=True))
    warn_of_failed(n_failed)
    return found


def first_errors(chunks: Iterable[pa.Table], layout: Layout, count: int) -> list[dict[str, object]]:
    """Return row number, ids and error of the first rows that failed."""
    return list(itertools.islice((failed for table in chunks for failed in failures(table, layout)), count))
