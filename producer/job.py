"""A job as its owner sees it: follow it, collect it, end it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from producer import collect
from producer.chunk_inputs import fetch_input, temporary_blocks
from producer.columns import LAYOUTS, check_tables
from producer.extensions import check_top_k
from producer.progress import Progress
from producer.submission import PATIENCE_S
from producer.writers import write_results
from tasks import delivery, keys, manifest
from tasks.errors import BrokerDenied, BrokerFull, DamagedObject, JobRefused, UnknownJob, UsageError
from tasks.messages import JobSpec
from tasks.operations import OPERATIONS
from tasks.options import Operation
from tasks.records import JobStatus, Recorded
from tasks.recovery import rebuild
from tasks.retrying import retry_transient
from tasks.workforce import SlotStatus

if TYPE_CHECKING:
    from producer.client import Client

#: Seconds between two looks at a job.
POLL_S = 0.1
#: Seconds between two looks at the slots that serve it, of which there may be many.
LOOK_S = 0.5
#: Seconds without a live slot after which that is said.
LONELY_S = 10.0


class Job:
    """One submission. Get it from ``Client.encode``, ``Client.score`` or ``Client.job``."""

    def __init__(self, client: Client, spec: JobSpec) -> None:
        self._client = client
        self.spec = spec

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.job

    def status(self) -> JobStatus:
        """Return what the ledger has of this job now."""
        return self._client.ledger.status(self.id)

    def slots(self) -> list[SlotStatus]:
        """Return the live slots that serve this job's model."""
        return self._client.live_slots(self.spec.queue)

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> JobStatus:
        """Wait until the job is over and return its state.

        Args:
            progress: show rows, rates and the time left on stderr.
            timeout_s: seconds to wait at most.

        Raises:
            JobFailed: it failed or was cancelled.
            JobRefused: every live worker uses another store or other weights.
            WorkerStopped: the embedded workers ended.
            TimeoutError: the time is up; the job goes on.
        """
        with Progress(enabled=progress) as shown:
            return self.follow(shown, timeout_s=timeout_s)

    def follow(self, shown: Progress, *, timeout_s: float | None = None) -> JobStatus:
        """Wait, and report to a progress display that is open already."""
        started = time.monotonic()
        look_at = 0.0
        slots: list[SlotStatus] = []
        while True:
            status = retry_transient(lambda: self._status_or_rebuild(shown), for_s=PATIENCE_S)
            if time.monotonic() >= look_at or status.is_over:
                slots = retry_transient(lambda: self._look(shown), for_s=PATIENCE_S)
                look_at = time.monotonic() + LOOK_S
            shown.update(status, slots)
            if status.is_over:
                status.raise_for_state()
                return status
            self._client.check_workers()
            waited_s = time.monotonic() - started
            if waited_s > LONELY_S and not self._client.is_embedded:
                self._say_what_lacks(shown, status, slots)
            if timeout_s is not None and waited_s > timeout_s:
                raise TimeoutError(f"Job {self.id} is not over after {timeout_s:g} s.")
            time.sleep(POLL_S)

    def _say_what_lacks(self, shown: Progress, status: JobStatus, slots: list[SlotStatus]) -> None:
        if status.state == "submitting":
            shown.say_once(
                f"Not all of job {self.id} is uploaded. If its client is gone, the same `penstock "
                f"{self.spec.operation}` command goes on."
            )
        if all(slot.state == "drained" for slot in slots):
            shown.say_once(f"No live worker serves {self.spec.model}. {self._client.how_to_start(self.spec)}")

    def _status_or_rebuild(self, shown: Progress) -> JobStatus:
        """Return the state of the job, which comes back from the store if the broker lost its data."""
        self._client.check_server()
        try:
            return self.status()
        except UnknownJob:
            if not any(self._client.store.list_keys(keys.manifest(self.id))):  # it was removed
                raise
            shown.say_once(f"The broker lost job {self.id}. It is rebuilt from {self._client.store.url}.")
            with suppress(BrokerDenied):  # this user may not record results: a node goes on
                rebuild(self._client.office, self.id)
            return self.status()

    def results(self) -> Iterator[pa.Table]:
        """Yield the results chunk by chunk, in the order of the rows.

        A result that is damaged or missing is computed again, here as in all that reads results.
        """
        yield from self._tables(self.status())
        self._note_collected()

    def vectors(self) -> np.ndarray:
        """Return all vectors (n_rows, dim) in the order of the rows; rows with an error are NaN.

        Raises:
            UsageError: it is a scoring job.
        """
        self._check_operation("encode", "no vectors: see scores() and rankings()")
        return self._values()

    def scores(self) -> np.ndarray:
        """Return all scores (n_pairs,) float32 in the order of the pairs; pairs with an error are NaN.

        Raises:
            UsageError: it is an encode job.
        """
        self._check_operation("score", "no scores: see vectors()")
        return self._values()

    def rankings(self, top_k: int | None = None) -> dict[str, list[tuple[str, float]]]:
        """Return each query's documents with their scores, the best first, all in memory.

        Equal scores are in the order of the document ids, and of equal pairs the first with a score counts. Pairs with
        an error are left out; a warning says how many.

        Args:
            top_k: documents of a query at most.

        Raises:
            UsageError: it is an encode job, or the pairs of a query do not stand together.
        """
        self._check_operation("score", "no rankings: see vectors()")
        check_top_k(top_k, self.spec.operation)
        status = self.status()
        found = collect.rankings(check_tables(self._tables(status), collect.result_info(status)), top_k)
        self._note_collected()
        return found

    def collect(self, out: str, *, top_k: int | None = None, overwrite: bool = False) -> list[str]:
        """Write the results to a file or folder, streaming. Returns what was written.

        Args:
            out: a path or URL, whose extension names the format, or a folder of shards with a slash at its end.
            top_k: of a scoring job: the best so many pairs of each query.
            overwrite: replace what is there.
        """
        status = self.status()
        info = collect.result_info(status)
        written = write_results(self._tables(status), info, out, top_k=top_k, overwrite=overwrite)
        # Only now: until the file has its name, the store holds the only copy.
        self._note_collected()
        return written

    def errors(self, count: int) -> list[dict[str, object]]:
        """Return row number, ids and error of the first rows that failed, as far as chunks are done."""
        if not self.status().failed_rows:
            return []
        self.check_store()
        failed = self._client.ledger.failed_chunks(self.id)[:count]
        chunks = collect.fetch(self._client.ledger, self._client.store, self.id, failed)
        return collect.first_errors(chunks, LAYOUTS[self.spec.operation], count)

    def cancel(self) -> str:
        """End the job; chunks in work are dropped. Returns the state that it has now."""
        return self._client.end(self.spec, "cancelled")

    def retry(self) -> int:
        """Run the chunks with error rows again. Returns how many there are.

        Raises:
            UsageError: the job is not over, was cancelled, or has only a part of its corpus.
        """
        if not self._client.ledger.is_sealed(self.id):
            raise UsageError(f"Job {self.id} has only a part of its corpus; submit it again.")
        state, chunks, tickets = self._reopen()
        if state not in {"done", "failed"}:
            raise UsageError(f"Job {self.id} is {state}; only a job that is done or failed can be retried.")
        delivery.publish(self._client.app, self.spec, tickets)
        return chunks

    def _reopen(self, *damaged: int) -> tuple[str, int, list[int]]:
        """Reopen what failed, or chunks whose results are damaged. Returns what ``Ledger.retry`` does."""
        if self.spec.store_id == self._client.store_id and self.status().state == "failed":
            manifest.note_reopened(self._client.store, self.spec)
        return self._client.ledger.retry(self.spec, damaged)

    def check_store(self) -> None:
        """Raise JobRefused unless this client uses the store that the job lives in."""
        if self.spec.store_id != self._client.store_id:
            raise JobRefused(
                f"Job {self.id} lives in a store with id {self.spec.store_id}; this client uses "
                f"{self._client.store.url}, id {self._client.store_id}. Name the job's own with --store.",
                job=self.id,
            )

    def _check_operation(self, operation: Operation, otherwise: str) -> None:
        if self.spec.operation != operation:
            raise UsageError(f"Job {self.id} is of the operation {self.spec.operation}, and has {otherwise}.")

    def _values(self) -> np.ndarray:
        status = self.status()
        values = collect.stack_values(self._tables(status), collect.result_info(status))
        self._note_collected()
        return values

    def _note_collected(self) -> None:
        if not self.status().failed_rows:  # failed rows may be retried
            self._client.note_collected(self.id)

    def _tables(self, status: JobStatus) -> Iterator[pa.Table]:
        self.check_store()
        return collect.result_tables(self._client.ledger, self._client.store, status, self._compute_again)

    def _compute_again(self, damaged: Recorded) -> Recorded:
        """Have a chunk computed again whose result is damaged. Returns its new record."""
        ledger = self._client.ledger
        while True:
            (record,) = ledger.recorded(self.id, damaged.chunk, 1)
            if record.token != damaged.token:
                return record
            self._client.check_service(self.spec)
            self._check_input(damaged.chunk)
            # Whoever else collects this job may do the same: the first one reopens the chunk, all wait for it.
            _, _, tickets = retry_transient(lambda: self._reopen(damaged.chunk), for_s=PATIENCE_S)
            delivery.publish_or_leave(self._client.app, self.spec, tickets)
            self._client.start_workers(str(self.spec.model), operation=self.spec.operation)
            self.follow(Progress(enabled=False))

    def _check_input(self, chunk: int) -> None:
        """Raise DamagedObject if a chunk cannot be computed again, while the job is still as it was."""
        store = self._client.store
        try:
            inputs = fetch_input(store, self.spec, chunk)
            with temporary_blocks(store) as blocks:
                OPERATIONS[self.spec.operation].read(self.id, inputs, blocks)
        except DamagedObject as exc:
            path = exc.data.get("key", keys.input_path(self.id, chunk))
            raise DamagedObject(
                f"The result of chunk {chunk} of job {self.id} is damaged, and its input {path} is missing or "
                f"damaged too. The same `penstock {self.spec.operation}` command with --new does all of it again.",
                key=path,
            ) from exc

    def _look(self, shown: Progress) -> list[SlotStatus]:
        slots = self.slots()
        self._check_refusals(slots)
        for trouble, names in troubles(slots).items():
            shown.say_once(f"Workers report: {trouble}", detail=f" ({', '.join(names)})")
        try:
            self._client.reconcile()
        except BrokerFull as exc:  # what goes on without a new ticket does so
            shown.say_once(f"Waiting for room: {exc}")
        return slots

    def _check_refusals(self, slots: list[SlotStatus]) -> None:
        refusals = self._client.ledger.refusals(self.id) if slots else {}
        if refusals and all(slot.slot in refusals for slot in slots):
            slot, why = next(iter(refusals.items()))
            raise JobRefused(f"No worker takes job {self.id}. {slot}: {why}.", job=self.id)


def troubles(slots: Sequence[SlotStatus]) -> dict[str, list[str]]:
    """Return what slots cannot reach at present, and which ones."""
    found: dict[str, list[str]] = {}
    for slot in slots:
        if slot.error:
            found.setdefault(slot.error, []).append(slot.slot)
    return found
