"""The task body: claim, read, run, write, record.

A ticket is a hint. Whatever it says, the ledger decides whether there is work, and a chunk that is worked on twice
changes nothing: each result lies under its own fencing token, and the first one recorded wins.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from tasks import keys, manifest, tables
from tasks.endings import FORGIVEN, STOPPED, Ending
from tasks.errors import DamagedObject, EngineBroken, Permanent, Transient, place_of
from tasks.isolation import LeaseLost, Runner, error_rows, run_bisecting, run_in_probation
from tasks.journal import Span
from tasks.messages import Receipt, Ticket
from tasks.operations import OPERATIONS, Rows
from tasks.ports import Computed
from tasks.records import Lease, Refusal
from tasks.slot import Slot

log = logging.getLogger(__name__)

#: The release that writes a result; looked up once, because it is read from disk.
RELEASE = version("penstock")
#: Attempts to finish a chunk with error rows, for which its input must be read; then the job fails.
GIVE_UPS = 3
#: Seconds after which a chunk that this slot could not do is offered again, and for which a slot rests that will not
#: do a job.
AGAIN_S = 2.0


def run_chunk(slot: Slot, ticket: Ticket) -> str:
    """Do what a ticket asks for, if there is still need. Returns the outcome in a word or two, for logs and Flower."""
    answer = slot.patiently(
        lambda: slot.ledger.claim(
            ticket.job,
            ticket.chunk,
            queue=slot.status.queue,
            slot=slot.status.slot,
            lease_s=slot.settings.lease_s,
        )
    )
    if isinstance(answer, Refusal):
        log.debug("Ticket void", extra={"action": "void", "job": ticket.job, "why": answer.why})
        return f"void: {answer.why}"
    with slot.pulse.holding(answer):
        slot.publish(answer.spec, list(answer.released))
        reason = _mismatch(slot, answer)
        return _refuse(slot, answer, reason) if reason else _work(slot, answer)


def _mismatch(slot: Slot, lease: Lease) -> str | None:
    """Say why this slot may not work on the job, or return None."""
    if lease.spec.queue != slot.status.queue:  # a ticket that somebody put into the wrong queue
        return f"it serves {slot.status.model}, the job wants {lease.spec.model}"
    if lease.spec.store_id != slot.status.store_id:
        return (
            f"it uses the store {slot.store.url} (id {slot.status.store_id}), the job lives in one with id "
            f"{lease.spec.store_id}: start both sides with the same --store"
        )
    if lease.weights not in {"", slot.engine.weights}:
        return _other_weights(slot, lease.weights)
    return None


def _other_weights(slot: Slot, pinned: str) -> str:
    return (
        f"its weights of {slot.status.model} ({slot.engine.weights}) are not those that began the job ({pinned}): "
        "load the same revision with the same --precision, --backend and --template everywhere"
    )


def _refuse(slot: Slot, lease: Lease, reason: str) -> str:
    """Note by name that this slot will not do the job, and leave the chunk to others."""
    log.warning("Job refused: %s", reason, extra={"action": "refuse", "job": lease.job})
    slot.patiently(lambda: slot.ledger.refuse(lease.spec, slot.status.slot, reason))
    _give_back(slot, lease)
    # Otherwise this slot, which is always idle, would take nearly every ticket from those that can do the job.
    time.sleep(AGAIN_S)
    return "refused"


def _work(slot: Slot, lease: Lease) -> str:
    fields = {"job": lease.job, "chunk": lease.chunk, "attempt": lease.attempts}
    try:
        _check(slot, lease)
        receipt = _produce(slot, lease)
    except Permanent as exc:
        # It would fail in the same way everywhere.
        log.error("Job failed: %s", exc, extra={"action": "fail", **fields})  # noqa: TRY400 - the reason is known
        return _fail(slot, lease, str(exc))
    except LeaseLost:
        return "lease lost"
    except SystemExit:  # SIGTERM: this process is told to end
        _give_back(slot, lease, STOPPED)
        raise
    except EngineBroken as exc:
        _give_back(slot, lease, Ending("died", str(exc)))
        raise
    except Transient as exc:
        log.warning("Chunk handed back: %s", exc, extra={"action": "free", **fields})
        _give_back(slot, lease, delay_s=AGAIN_S)
        return "handed back"
    except Exception as exc:  # noqa: BLE001 - the task's boundary
        # The attempt counts, and the chunk is given up after a few.
        log.error("Chunk failed: %s", place_of(exc), extra={"action": "free", **fields})  # noqa: TRY400 - see place_of
        _give_back(slot, lease, Ending("failed", place_of(exc)), delay_s=AGAIN_S)
        return "attempt failed"
    outcome, released = slot.patiently(lambda: slot.ledger.record(lease, receipt))
    if outcome == "weights":  # another slot began the job while this one was at work
        with suppress(Transient):  # else a recovery might take this result for the one that began it
            slot.store.delete(keys.result_path(lease.job, lease.chunk, lease.token))
        return _refuse(slot, lease, _other_weights(slot, slot.ledger.status(lease.job).weights))
    slot.publish(lease.spec, released)
    if outcome == "recorded":
        slot.count(receipt)
    log.info("Chunk finished", extra={"action": "record", **fields, "rows": receipt.rows, "outcome": outcome})
    return f"{outcome}: {receipt.rows} rows"


def _check(slot: Slot, lease: Lease) -> None:
    """Raise Permanent if the model cannot serve the job's options, or its chunk cannot even be given up."""
    if lease.attempts > slot.settings.max_attempts + GIVE_UPS:  # first, as it may be the engine's look that ends slots
        raise Permanent(f"chunk {lease.chunk} can neither be done nor given up, the last so: {lease.journal.why}")
    options = lease.spec.options
    with slot.limits.options(len(options.model_dump_json())):
        problem = slot.engine.check(options)
    if problem:
        raise Permanent(problem)


def _fail(slot: Slot, lease: Lease, reason: str) -> str:
    slot.patiently(lambda: manifest.end_job(slot.store, slot.ledger, lease.spec, "failed", reason))
    return "failed"


def _give_back(slot: Slot, lease: Lease, ending: Ending = FORGIVEN, *, delay_s: float = 0.0) -> None:
    try:
        released = slot.ledger.free(lease.spec, lease.chunk, lease.token, ending, delay_s=delay_s)
    except Transient as exc:
        log.warning("Lease not freed, it will lapse: %s", exc, extra={"action": "free", "job": lease.job})
        return
    slot.publish(lease.spec, released)


def _produce(slot: Slot, lease: Lease) -> Receipt:
    """Read, run and write a chunk. Returns its receipt.

    Raises:
        LeaseLost: the chunk is another slot's by now, or its job ended.
    """
    started_s, started = time.time(), time.perf_counter()
    rows = _read_rows(slot, lease)
    read_s = time.perf_counter() - started
    computed = _run(slot, lease, rows.rows)
    times = {
        "started_s": started_s,
        "wall_s": time.perf_counter() - started,
        "idle_s": slot.idle_s(lease.job, started, computed.model_s),
        "read_s": read_s,
    }
    if slot.pulse.has_lost_lease:
        raise LeaseLost
    started = time.perf_counter()
    receipt = _receipt(slot, computed, times)
    data = _result_bytes(slot, lease, rows.heads, computed, receipt)
    target = keys.result_path(lease.job, lease.chunk, lease.token)
    slot.patiently(lambda: slot.store.put(target, data))
    return receipt.model_copy(
        update={
            "write_s": time.perf_counter() - started,
            "size_bytes": len(data),
            "crc32": zlib.crc32(data),
        }
    )


def _read_rows(slot: Slot, lease: Lease) -> Rows[Any]:
    """Read the rows of a chunk; what seems damaged is read once more, as a shared folder may show a new file late."""
    work, path = OPERATIONS[lease.spec.operation], keys.input_path(lease.job, lease.chunk)

    def read() -> Rows[Any]:
        data = slot.patiently(lambda: slot.store.get(path))
        inputs = tables.read_input(data, path, lease.spec.operation)
        return work.read(lease.job, inputs, slot.blocks)

    try:
        return read()
    except DamagedObject as exc:
        log.warning("Read once more: %s", exc, extra={"action": "read"})
    time.sleep(AGAIN_S)
    return read()


def _run(slot: Slot, lease: Lease, rows: Sequence[Any]) -> Computed:
    """Compute a chunk, carefully if earlier attempts at it failed, or give it up."""
    options = lease.spec.options
    work = OPERATIONS[lease.spec.operation]

    def run(some: Sequence[Any]) -> Computed:
        with slot.limits.rows(work.size(some)):
            computed = work.run(slot.engine, some, options, slot.limits.batch)
            slot.limits.computed(1 - (computed.duplicate_rows + computed.cached_rows) / len(some))
            return computed

    def note(span: Span) -> bool:
        return slot.patiently(lambda: slot.ledger.journal(lease, lease.journal, span))

    runner = Runner(run, work.row_of, slot.engine.dim(options))
    if lease.attempts > slot.settings.max_attempts:
        log.error("Chunk given up", extra={"action": "give up", "job": lease.job, "chunk": lease.chunk})
        tries = f"{lease.attempts - 1} attempt{'s' * (lease.attempts > 2)}"  # noqa: PLR2004 - plural
        last = f", the last so: {lease.journal.why}" if lease.journal.why else ""
        return error_rows([f"given up: {tries} at its chunk ended without a result{last}"] * len(rows), runner.dim)
    if lease.attempts > 1:
        return run_in_probation(runner, rows, lease.journal, note)
    return run_bisecting(runner, rows)


def _receipt(slot: Slot, computed: Computed, times: dict[str, float]) -> Receipt:
    return Receipt(
        rows=len(computed.errors),
        failed_rows=sum(error is not None for error in computed.errors),
        truncated_rows=int(computed.truncated.sum()),
        tokens=int(computed.n_tokens.sum()),
        padded_tokens=computed.padded_tokens,
        duplicate_rows=computed.duplicate_rows,
        cached_rows=computed.cached_rows,
        memory_splits=computed.memory_splits,
        batch_tokens=slot.engine.batch_tokens,
        loads=slot.loads(),
        tokenise_s=computed.tokenise_s,
        model_s=computed.model_s,
        slot=slot.status.slot,
        weights=slot.engine.weights,
        dim=computed.values.shape[1],
        **times,
    )


def _result_bytes(slot: Slot, lease: Lease, heads: pa.Table, computed: Computed, receipt: Receipt) -> bytes:
    table = OPERATIONS[lease.spec.operation].result(heads, computed, lease.spec.options)
    metadata = {
        "penstock.version": RELEASE,
        "penstock.job": lease.job,
        "penstock.chunk": str(lease.chunk),
        "penstock.token": str(lease.token),
        "penstock.model": str(lease.spec.model),
        "penstock.weights": slot.engine.weights,
        "penstock.options": lease.spec.options.model_dump_json(),
        "penstock.receipt": json.dumps(receipt.model_dump(exclude={"size_bytes", "crc32", "write_s"})),
    }
    return tables.to_bytes(table, metadata)
