"""Sending a corpus: chunk inputs to the store, their numbers to the ledger, the first tickets to the broker."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from celery import Celery

from producer.chunking import Chunk, KeptTypes, cut_chunks
from producer.rows import Row
from tasks import delivery, keys, tables
from tasks.errors import BadInput, DamagedObject, JobFailed, StoreFull, UsageError
from tasks.ledger import Ledger
from tasks.messages import JobSpec
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.store import Store

log = logging.getLogger(__name__)

#: Seconds that broker or store may be away before a client gives up submitting, or following a job that goes on.
PATIENCE_S = 60.0
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
    office: tuple[Ledger, Store, Celery],
    settings: Settings,
    on_chunk: Callable[[Chunk], None],
) -> None:
    """Send all chunks and seal the job. What an interrupted submission sent before is compared, and not sent again.

    Two clients may do this for the same job at the same time: they send the same.

    Args:
        spec: the job; it is made in the ledger once the first chunk could be read.
        rows: the corpus, in order.
        office: ledger, store and Celery application of the cluster.
        settings: for the chunks and the gate.
        on_chunk: called after each chunk.

    Raises:
        BadInput: a record cannot be read. If chunks were sent already, the job is marked as failed.
        UsageError: the input is not what it was when the submission began.
        JobFailed: the job was cancelled or failed meanwhile.
    """
    ledger = office[0]
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
    announced = retry_transient(lambda: ledger.announced(spec.job), for_s=PATIENCE_S)
    number = -1
    try:
        for chunk in itertools.chain([first], remaining):
            number = chunk.number
            _send(spec, chunk, office, is_announced=number < announced)
            on_chunk(chunk)
    except (BadInput, StoreFull) as exc:
        ledger.end(spec, "failed", str(exc))
        raise
    state, tickets = retry_transient(lambda: ledger.seal(spec, number + 1, kept.resolve()), for_s=PATIENCE_S)
    _go_on(spec, office, state, tickets)


def _send(spec: JobSpec, chunk: Chunk, office: tuple[Ledger, Store, Celery], *, is_announced: bool) -> None:
    ledger, store, _ = office
    path = keys.input_path(spec.job, chunk.number)
    table = tables.input_table(chunk.first_row, chunk.ids, chunk.texts, chunk.kept)
    if not (is_announced and _is_there(spec, store, path, table)):
        data = tables.to_bytes(table)
        retry_transient(lambda: store.put(path, data), for_s=PATIENCE_S)
    state, tickets = retry_transient(
        lambda: ledger.announce(spec, chunk.number, chunk.n_rows, chunk.n_bytes), for_s=PATIENCE_S
    )
    _go_on(spec, office, state, tickets)


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


def _go_on(spec: JobSpec, office: tuple[Ledger, Store, Celery], state: str, tickets: list[int]) -> None:
    """Publish tickets, unless the job ended meanwhile."""
    ledger, _, app = office
    if state == "gap":
        raise JobFailed(
            f"The broker lost a part of what it had of job {spec.job}; run the same command again.", job=spec.job
        )
    if state in {"failed", "cancelled"}:
        ledger.status(spec.job).raise_for_state()
    delivery.publish_or_leave(app, spec, tickets)
