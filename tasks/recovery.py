"""Bringing jobs back that a ledger lost, from what lies in the store.

A job comes back behind a shut gate, so that nobody works on it meanwhile; its inputs and results are made known again;
then the gate opens. Each step may run twice, at the same time as another process runs it, and whoever dies in between
leaves a shut gate, by which the next one sees that there is something to go on with.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from celery import Celery
from pydantic import ValidationError

from tasks import delivery, keys, manifest, tables
from tasks.errors import DamagedObject, UnreadableJob
from tasks.ledger import Ledger
from tasks.messages import JobSpec, Receipt
from tasks.store import Store

A = TypeVar("A")
B = TypeVar("B")

log = logging.getLogger(__name__)

#: Objects that are read ahead of the one that is looked at, and as many threads: a chunk each in memory.
AHEAD = 8
#: Chunks whose records are asked of the ledger at a time.
PAGE_CHUNKS = 256


@dataclass(frozen=True)
class Office:
    """What a job is done with: its ledger, its store, and the application that carries its tickets."""

    ledger: Ledger
    store: Store
    app: Celery


@dataclass(frozen=True)
class Rebuilt:
    """What became of a job.

    Attributes:
        chunks: all of them if it is sealed, or what was announced.
        results: chunks that have a result now.
        damaged: chunks whose result objects are all torn, altered, or another job's; they are done again.
    """

    job: str
    state: str
    chunks: int
    results: int
    damaged: int


@dataclass(frozen=True)
class Found:
    """A whole result in the store."""

    chunk: int
    token: int
    receipt: Receipt


def rebuild(office: Office, job: str, on_chunk: Callable[[], None] = lambda: None) -> Rebuilt:
    """Bring a job back, or what the ledger lost of it.

    Args:
        office: where.
        job: its id.
        on_chunk: called after each chunk input or result that was read.

    Raises:
        UnknownJob: the store has no manifest of this job.
        DamagedObject: its manifest makes no sense.
        UnreadableJob: this side has a signing key, and the job is not signed with it.
        BrokerUnavailable, StoreUnavailable: call again.
    """
    found = manifest.read(office.store, job)
    spec, sealed, ended = found.made.spec, found.sealed, found.ended
    if not office.ledger.signer.takes_spec(spec.model_dump_json(), found.made.signature):
        raise UnreadableJob(
            f"Job {job} in {office.store.url} is not signed with this side's key: it was made without one, with "
            "another, or by a forger.",
            job=job,
        )
    totals = (sealed.chunks, sealed.rows, sealed.input_bytes, sealed.kept_types) if sealed else None
    ledger = office.ledger
    ledger.restore(spec, ticket_s=found.made.ticket_s, created_ms=found.made.created_ms, totals=totals)
    damaged = 0
    if not (ended and ended.state == "cancelled"):
        _announce(office, spec, on_chunk)
        damaged = _adopt(office, spec, on_chunk)
    if ended:
        ledger.end(spec, ended.state, ended.reason)
    elif spec.on_error == "fail" and (failed := ledger.failed_chunks(job)):
        ledger.end(spec, "failed", f"rows of chunk {failed[0]} failed")
    delivery.publish_or_leave(office.app, spec, ledger.open_gate(spec, found.made.gate))
    status = ledger.status(job)
    log.info("Job %s rebuilt: %d results", job, status.recorded, extra={"action": "recover", "job": job})
    return Rebuilt(job, status.state, status.chunks, status.recorded, damaged)


def _announce(office: Office, spec: JobSpec, on_chunk: Callable[[], None]) -> None:
    """Announce the chunk inputs of a job that is not sealed, up to the first that is missing or torn."""
    ledger = office.ledger
    if ledger.is_sealed(spec.job):
        return

    def measure(chunk: int) -> tuple[int, int, int] | None:
        path = keys.input_path(spec.job, chunk)
        try:
            table = tables.read_input(office.store.get(path), path, spec.operation)
        except DamagedObject:
            return None
        return chunk, table.num_rows, tables.input_size(table)

    for measured in _ahead(measure, itertools.count(ledger.announced(spec.job))):
        if measured is None:
            return
        _, tickets = ledger.announce(spec, *measured)
        delivery.publish_or_leave(office.app, spec, tickets)
        on_chunk()


def _adopt(office: Office, spec: JobSpec, on_chunk: Callable[[], None]) -> int:
    """Record results that the store has and the ledger has not. Returns for how many chunks all are damaged."""
    damaged = 0

    def read(candidate: tuple[int, list[int]]) -> Found | None:
        chunk, tokens = candidate
        return next(filter(None, (_read_result(office.store, spec, chunk, token) for token in tokens)), None)

    for found in _ahead(read, _unrecorded(office, spec)):
        if found is None:
            damaged += 1
        else:
            office.ledger.adopt(spec, found.chunk, found.token, found.receipt)
        on_chunk()
    return damaged


def _unrecorded(office: Office, spec: JobSpec) -> Iterator[tuple[int, list[int]]]:
    """Yield chunks without a record, each with the tokens of its results, the latest first."""
    chunks, tokens = array("q"), array("q")  # 16 bytes a result
    for key in office.store.list_keys(keys.results(spec.job)):
        name = _chunk_and_token(key)
        if name:  # people put notes beside results, and sync tools their files
            chunks.append(name[0])
            tokens.append(name[1])
    order = np.lexsort((-np.asarray(tokens), np.asarray(chunks)))
    known: range | tuple[()] = ()
    recorded: set[int] = set()
    for chunk, same in itertools.groupby(order, key=lambda i: chunks[i]):
        if chunk not in known:
            known = range(chunk, chunk + PAGE_CHUNKS)
            recorded = {note.chunk for note in office.ledger.recorded(spec.job, chunk, PAGE_CHUNKS)}
        if chunk not in recorded:
            yield int(chunk), [tokens[i] for i in same]


def _chunk_and_token(path: str) -> tuple[int, int] | None:
    """Return chunk and token of a chunk result, or None if the path is not one's."""
    found = re.fullmatch(r".*/(\d{8,10})-(\d{13,16})\.arrow", path, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def _read_result(store: Store, spec: JobSpec, chunk: int, token: int) -> Found | None:
    """Read a result; None if it is not what its name says."""
    path = keys.result_path(spec.job, chunk, token)
    try:
        data = store.get(path)
        table = tables.read_whole(data, path)
        receipt = _receipt(table, spec, chunk, token)
    except DamagedObject as exc:
        log.warning("Result not used: %s", exc, extra={"action": "recover", "job": spec.job, "chunk": chunk})
        return None
    return Found(chunk, token, receipt.model_copy(update={"size_bytes": len(data), "crc32": zlib.crc32(data)}))


def _receipt(table: pa.Table, spec: JobSpec, chunk: int, token: int) -> Receipt:
    metadata = tables.metadata_of(table)
    path = keys.result_path(spec.job, chunk, token)
    named = tuple(metadata.get(f"penstock.{name}") for name in ("job", "chunk", "token"))
    try:
        receipt = Receipt.model_validate(json.loads(metadata.get("penstock.receipt", "{}")))
    except (ValidationError, ValueError) as exc:
        raise DamagedObject(f"{path} has no receipt that can be read.", key=path) from exc
    if named != (spec.job, str(chunk), str(token)) or receipt.rows != table.num_rows:
        raise DamagedObject(f"{path} is another object than its name says.", key=path)
    return receipt


def _ahead(call: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield what each call returns, in order, while the next ones are under way."""
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="recover") as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
