"""Sending a job: its inputs to the store, the numbers of chunks to the ledger, the first tickets to the broker."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import suppress

from producer.chunking import Chunk, PairChunk
from producer.corpus import Opened
from producer.text_blocks import TextBlock
from tasks import delivery, manifest, tables
from tasks.errors import BadInput, BrokerDenied, DamagedObject, JobFailed, StoreFull, UnknownJob, UsageError
from tasks.manifest import Sealed
from tasks.messages import JobSpec
from tasks.recovery import Office, rebuild
from tasks.retrying import retry_transient
from tasks.settings import Settings

log = logging.getLogger(__name__)

#: Seconds that broker or store may be away before a client gives up submitting, or following a job that goes on.
PATIENCE_S = 60.0
#: How often what the broker lost is rebuilt for one step.
REBUILDS = 3
#: Tickets in the broker per live slot, and the least: enough that no slot waits for the next one.
TICKETS_PER_SLOT = 4
LEAST_TICKETS = 32


def submit(
    spec: JobSpec,
    opened: Opened,
    *,
    office: Office,
    settings: Settings,
    on_chunk: Callable[[Chunk | PairChunk], None],
) -> None:
    """Send all parts and seal the job. What an interrupted submission sent before is compared, and not sent again.

    Two clients may do this for the same job at the same time: they send the same.

    Args:
        spec: the job; it is made in the ledger once the first part could be read.
        opened: its input.
        office: where the job is done.
        settings: for the chunks and the gate.
        on_chunk: called after each chunk.

    Raises:
        BadInput: a record cannot be read. If chunks were sent already, the job is marked as failed.
        UsageError: the input is not what it was when the submission began.
        JobFailed: the job was cancelled or failed meanwhile.
    """
    ledger, store = office.ledger, office.store
    remaining = opened.parts(settings)
    first = next(remaining, None)
    if first is None:
        raise BadInput("The input holds no records.")
    slots = len(ledger.workforce.slots(queue=spec.queue))
    gate = settings.max_queued_chunks or max(LEAST_TICKETS, TICKETS_PER_SLOT * slots)
    is_new = retry_transient(lambda: ledger.create(spec, gate=gate, ticket_s=settings.ticket_s), for_s=PATIENCE_S)
    retry_transient(
        lambda: manifest.note_made(store, ledger, spec, gate=gate, ticket_s=settings.ticket_s), for_s=PATIENCE_S
    )
    sender = Sender(spec, office, is_new=is_new)
    chunks = n_rows = n_bytes = 0
    try:
        for part in itertools.chain([first], remaining):
            if isinstance(part, TextBlock):
                sender.send_block(part)
                continue
            sender.send_chunk(part)
            chunks, n_rows, n_bytes = chunks + 1, n_rows + part.n_rows, n_bytes + part.n_bytes
            on_chunk(part)
    except (BadInput, StoreFull) as exc:
        manifest.end_job(store, ledger, spec, "failed", str(exc))
        raise
    totals = Sealed(chunks=chunks, rows=n_rows, input_bytes=n_bytes, kept_types=opened.kept_types())
    retry_transient(lambda: manifest.note_sealed(store, spec, totals), for_s=PATIENCE_S)
    _tell(spec, office, lambda: ledger.seal(spec, chunks, totals.kept_types))


class Sender:
    """Sends the parts of a job, in their order.

    Args:
        spec: the job, which the ledger has.
        office: where it is done.
        is_new: whether nobody can have sent anything of it before.
    """

    def __init__(self, spec: JobSpec, office: Office, *, is_new: bool) -> None:
        self._spec = spec
        self._office = office
        self._announced = retry_transient(lambda: office.ledger.announced(spec.job), for_s=PATIENCE_S)
        self._has_blocks = not is_new

    def send_block(self, block: TextBlock) -> None:
        """Store a text block, unless it is there.

        The ledger does not count them. They were sent in order, so the first that is missing was not sent, nor was any
        after it.
        """
        if self._has_blocks:
            try:
                self._compare(block)
            except DamagedObject as exc:
                log.info("Texts sent from here on: %s", exc, extra={"action": "send", "job": self._spec.job})
                self._has_blocks = False
        if not self._has_blocks:
            self._put(block)

    def send_chunk(self, chunk: Chunk | PairChunk) -> None:
        """Store a chunk input, unless it is there, and announce it."""
        spec, ledger = self._spec, self._office.ledger
        if not (chunk.number < self._announced and self._is_there(chunk)):
            self._put(chunk)
        _tell(spec, self._office, lambda: ledger.announce(spec, chunk.number, chunk.n_rows, chunk.n_bytes))

    def _put(self, part: Chunk | PairChunk | TextBlock) -> None:
        path = part.path(self._spec.job)
        data = tables.input_bytes(part.table(), path)
        retry_transient(lambda: self._office.store.put(path, data), for_s=PATIENCE_S)

    def _is_there(self, chunk: Chunk | PairChunk) -> bool:
        """Whether the store has this chunk input, whole."""
        try:
            self._compare(chunk)
        except DamagedObject as exc:
            log.warning("Sent again: %s", exc, extra={"action": "send", "job": self._spec.job})
            return False
        return True

    def _compare(self, part: Chunk | PairChunk | TextBlock) -> None:
        """Compare a part with what the store has of it.

        Raises:
            DamagedObject: that is missing or torn.
            UsageError: it is another.
        """
        job, path = self._spec.job, part.path(self._spec.job)
        stored = tables.read_whole(retry_transient(lambda: self._office.store.get(path), for_s=PATIENCE_S), path)
        if not stored.equals(part.table()):
            raise UsageError(
                f"The input is not what it was when job {job} was begun, though its size and time are the same. "
                f"Start a new job with --new (new=True); `penstock cancel {job}` drops the old one.",
                job=job,
            )


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
