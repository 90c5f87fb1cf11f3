"""Sending a corpus: chunk inputs to the store, their numbers to the ledger, the first tickets to the broker."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pyarrow as pa

from producer.chunking import Chunk, KeptTypes, cut_chunks
from producer.rows import Row
from tasks import delivery, keys, manifest, tables
from tasks.errors import BadInput, BrokerDenied, DamagedObject, JobFailed, StoreFull, UnknownJob, UsageError
from tasks.manifest import Sealed
from tasks.messages import JobSpec
from tasks.recovery import Office, rebuild
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.store import Store

log = logging.getLogger(__name__)

#: Seconds that broker or store may be away before a client gives up submitting, or following a job that goes on.
PATIENCE_S = 60.0
#: How often what the broker lost is rebuilt for one step.
REBUILDS = 3
#: Tickets in the broker per live slot, and the least: enough that no slot waits for the next one.
TICKETS_PER_SLOT = 4
LEAST_TICKETS = 32


def submission_key(identities: Iterable[Any], **options: Any) -> str:
    """Return 32 hex digits that are the same for the same inputs and options."""
    canonical = json.dumps([list(identities), options], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def submit(
    spec: JobSpec,
    rows: Iterable[Row],
    *,
    office: Office,
    settings: Settings,
    on_chunk: Callable[[Chunk], None],
) -> None:
    """Send all chunks and seal the job. What an interrupted submission sent before is compared, and not sent again.

    Two clients may do this for the same job at the same time: they send the same.

    Args:
        spec: the job; it is made in the ledger once the first chunk could be read.
        rows: the corpus, in order.
        office: where the job is done.
        settings: for the chunks and the gate.
        on_chunk: called after each chunk.

    Raises:
        BadInput: a record cannot be read. If chunks were sent already, the job is marked as failed.
        UsageError: the input is not what it was when the submission began.
        JobFailed: the job was cancelled or failed meanwhile.
    """
    ledger, store = office.ledger, office.store
    kept = KeptTypes(spec.keep_fields)
    remaining = cut_chunks(
        kept.watch(rows),
        chunk_rows=settings.chunk_rows,
        chunk_bytes=settings.chunk_bytes,
        keeps=bool(spec.keep_fields),
    )
    first = next(remaining, None)
    if first is None:
        raise BadInput("The input holds no records.")
    slots = len(ledger.workforce.slots(queue=spec.queue))
    gate = settings.max_queued_chunks or max(LEAST_TICKETS, TICKETS_PER_SLOT * slots)
    retry_transient(lambda: ledger.create(spec, gate=gate, ticket_s=settings.ticket_s), for_s=PATIENCE_S)
    retry_transient(
        lambda: manifest.note_made(store, ledger, spec, gate=gate, ticket_s=settings.ticket_s), for_s=PATIENCE_S
    )
    announced = retry_transient(lambda: ledger.announced(spec.job), for_s=PATIENCE_S)
    chunks = n_rows = n_bytes = 0
    try:
        for chunk in itertools.chain([first], remaining):
            _send(spec, chunk, office, is_announced=chunk.number < announced)
            chunks, n_rows, n_bytes = chunks + 1, n_rows + chunk.n_rows, n_bytes + chunk.n_bytes
            on_chunk(chunk)
    except (BadInput, StoreFull) as exc:
        manifest.end_job(store, ledger, spec, "failed", str(exc))
        raise
    totals = Sealed(chunks=chunks, rows=n_rows, input_bytes=n_bytes, kept_types=kept.resolve())
    retry_transient(lambda: manifest.note_sealed(store, spec, totals), for_s=PATIENCE_S)
    _tell(spec, office, lambda: ledger.seal(spec, chunks, totals.kept_types))


def _send(spec: JobSpec, chunk: Chunk, office: Office, *, is_announced: bool) -> None:
    store = office.store
    path = keys.input_path(spec.job, chunk.number)
    table = tables.input_table(chunk.first_row, chunk.ids, chunk.texts, chunk.kept)
    if not (is_announced and _is_there(spec, store, path, table)):
        data = tables.input_bytes(table, path)
        retry_transient(lambda: store.put(path, data), for_s=PATIENCE_S)
    _tell(spec, office, lambda: office.ledger.announce(spec, chunk.number, chunk.n_rows, chunk.n_bytes))


def _is_there(spec: JobSpec, store: Store, path: str, table: pa.Table) -> bool:
    """Whether the store has this chunk input, whole."""
    try:
        stored = tables.read_whole(retry_transient(lambda: store.get(path), for_s=PATIENCE_S), path)
    except DamagedObject as exc:
        log.warning("Sent again: %s", exc, extra={"action": "send", "job": spec.job})
        return False
    if not stored.equals(table):
        raise UsageError(
            f"The input is not what it was when job {spec.job} was begun, though its size and time are the same. "
            f"Start a new job with --new (new=True); `penstock cancel {spec.job}` drops the old one.",
            job=spec.job,
        )
    return True


def _tell(spec: JobSpec, office: Office, step: Callable[[], tuple[str, list[int]]]) -> None:
    """Tell the ledger of the next step, and publish the tickets. What the ledger lost of the job is rebuilt.

    Raises:
        JobFailed: the job ended meanwhile, or cannot be rebuilt.
    """
    for _ in range(REBUILDS):
        state, tickets = retry_transient(step, for_s=PATIENCE_S)
        if state in {"failed", "cancelled"}:
            office.ledger.status(spec.job).raise_for_state()
        if state not in {"gap", "unknown"}:
            delivery.publish_or_leave(office.app, spec, tickets)
            return
        log.warning("The broker lost a part of job %s", spec.job, extra={"action": "recover", "job": spec.job})
        # Its store was lost with it, or it was removed; or this user may not record results, and a node goes on.
        with suppress(UnknownJob, BrokerDenied):
            retry_transient(lambda: rebuild(office, spec.job), for_s=PATIENCE_S)
    raise JobFailed(f"The broker lost what it had of job {spec.job}; run the same command again.", job=spec.job)
