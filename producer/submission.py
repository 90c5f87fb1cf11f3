"""Sending a corpus: chunk inputs to the store, their numbers to the ledger, the first tickets to the broker."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

from producer.chunking import Chunk
from tasks import delivery, keys, tables
from tasks.errors import BadInput, JobFailed, StoreFull
from tasks.ledger import Ledger
from tasks.messages import JobSpec
from tasks.retrying import retry_transient
from tasks.settings import Settings
from tasks.store import Store

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
    chunks: Iterable[Chunk],
    kept_types: Callable[[], dict[str, str]],
    *,
    office: tuple[Ledger, Store, Celery],
    settings: Settings,
    on_chunk: Callable[[Chunk], None],
) -> None:
    """Send all chunks and seal the job. Chunks that an interrupted submission sent before are not sent again.

    Args:
        spec: the job; it is made in the ledger once the first chunk could be read.
        chunks: the corpus, in order.
        kept_types: type of each kept field, asked for at the end.
        office: ledger, store and Celery application of the cluster.
        settings: for the gate.
        on_chunk: called after each chunk.

    Raises:
        BadInput: a record cannot be read. If chunks were sent already, the job is marked as failed.
        JobFailed: the job was cancelled or failed meanwhile.
    """
    ledger = office[0]
    remaining = iter(chunks)
    first = next(remaining, None)
    if first is None:
        raise BadInput("The input holds no records.")
    slots = len(ledger.workforce.slots(queue=spec.queue))
    gate = settings.max_queued_chunks or max(LEAST_TICKETS, TICKETS_PER_SLOT * slots)
    ledger.create(spec, gate=gate, ticket_s=settings.ticket_s)
    announced = ledger.announced(spec.job)
    number = -1
    try:
        for chunk in itertools.chain([first], remaining):
            number = chunk.number
            _send(spec, chunk, office, is_there=number < announced)
            on_chunk(chunk)
    except (BadInput, StoreFull) as exc:
        ledger.end(spec, "failed", str(exc))
        raise
    state, tickets = retry_transient(lambda: ledger.seal(spec, number + 1, kept_types()), for_s=PATIENCE_S)
    _go_on(spec, office, state, tickets)


def _send(spec: JobSpec, chunk: Chunk, office: tuple[Ledger, Store, Celery], *, is_there: bool) -> None:
    ledger, store, _ = office
    if not is_there:
        data = tables.to_bytes(tables.input_table(chunk.first_row, chunk.ids, chunk.texts, chunk.kept))
        retry_transient(lambda: store.put(keys.input_path(spec.job, chunk.number), data), for_s=PATIENCE_S)
    state, tickets = retry_transient(
        lambda: ledger.announce(spec, chunk.number, chunk.n_rows, chunk.n_bytes), for_s=PATIENCE_S
    )
    _go_on(spec, office, state, tickets)


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
