"""Processes that die or stand still: at random moments, between two steps, for longer than their lease."""

from __future__ import annotations

import re
import threading

import psutil

from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.proxy import Link, Trap, Verdict
from tests.faults.rig import Rig, now, wait_until
from tests.faults.steps import chunk_of, evalsha


def test_the_reconciler_brings_back_a_chunk_whose_ticket_died_with_its_node(rig: Rig) -> None:
    """The node is killed at the very moment when the broker's BRPOP gave it a ticket: the message is gone for good."""
    for _ in range(by_size(1, 10)):
        rig.stop_workers()
        lose_a_ticket(rig, victim=rig.start_worker(slots=1).pid)
        rig.proxy.clear()


def lose_a_ticket(rig: Rig, victim: int) -> None:
    """Run a job on two nodes, one of which is killed as it takes a ticket."""
    rig.start_worker(slots=1)
    taken: list[int] = []

    def kill(link: Link, data: bytes) -> Verdict:
        if taken or rig.owner(link).pid != victim:
            return Verdict.FORWARD
        taken.append(int(re.findall(rb'"encode-[0-9a-f]+:([0-9]+)"', data)[0]))
        return rig.kill_owner(link)

    rig.proxy.set(Trap(b"BRPOP", kill, reply=b"penstock.encode", times=None))
    job = rig.submit(400)
    wait_until(lambda: taken, "the node is killed")
    since = now()
    wait_until(lambda: rig.is_recorded(job, taken[0]), "its chunk is done")
    assert rig.settle("node killed on the reply of BRPOP", job, recoveries_s=[now() - since]) == FLAWLESS


def test_a_chunk_longer_than_all_time_limits_runs_once(rig: Rig) -> None:
    """One chunk takes longer than the lease and, in the long version, than every timeout of the broker's clients."""
    ms_per_row = by_size(500, 6000)
    model = f"fake:ms_per_row={ms_per_row}"
    rig.need_worker(model, slots=2)
    job = rig.submit(10, model)
    attempts = set()

    def is_over() -> bool:
        attempts.add(rig.attempts(job, 0))
        return rig.ledger.status(job).is_over

    wait_until(is_over, "the chunk is done")
    assert attempts <= {0, 1}
    assert rig.settle("one chunk longer than all time limits", job) == FLAWLESS


def test_a_slot_that_wakes_up_after_its_lease_records_nothing(rig: Rig) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: another slot finished the chunk, and its result stays."""
    for _ in range(by_size(1, 5)):
        rig.need_worker()
        oversleep(rig)


def oversleep(rig: Rig) -> None:
    """Run a job in which a slot is stopped as it has got a lease, until another slot did the chunk."""
    stopped: list[tuple[psutil.Process, int]] = []

    def stop(link: Link, _: bytes) -> Verdict:
        process = rig.owner(link)
        process.suspend()
        stopped.append((process, chunk_of(link.request)))
        return Verdict.FORWARD

    rig.proxy.set(Trap(evalsha("claim"), stop, reply=b"leased"))
    job = rig.submit(200)
    process, chunk = wait_until(lambda: stopped, "a slot is stopped")[0]
    since = now()
    try:
        wait_until(lambda: rig.is_recorded(job, chunk), "another slot finished its chunk")
        recovery_s = now() - since
        (record,) = rig.ledger.recorded(job, chunk, 1)
    finally:
        process.resume()
    fault = "slot stopped for longer than its lease, then continued"
    assert rig.settle(fault, job, recoveries_s=[recovery_s]) == FLAWLESS
    assert rig.ledger.recorded(job, chunk, 1) == [record]
    status = rig.ledger.status(job)
    assert (status.recorded, status.rows_done) == (20, 200)


def test_a_record_that_comes_after_another_slots_is_refused(rig: Rig) -> None:
    """The record of a slot is held up until another slot, after the lease, recorded the same chunk."""
    rig.need_worker()
    held: list[tuple[str, int]] = []
    answers: list[bytes] = []
    go_on = threading.Event()

    def hold(link: Link, _: bytes) -> Verdict:
        process = rig.owner(link)
        process.suspend()  # its pulse, too
        slot = next(slot for slot in rig.slots() if slot.pid == process.pid)
        held.append((slot.claim.split()[0], int(slot.claim.split()[1])))
        go_on.wait()
        process.resume()
        rig.proxy.set(Trap(link.request, hear, reply=b""))
        return Verdict.FORWARD

    def hear(_: Link, data: bytes) -> Verdict:
        answers.append(data)
        return Verdict.FORWARD

    rig.proxy.set(Trap(evalsha("record"), hold))
    job = rig.submit(200)
    wait_until(lambda: held, "a record is held up")
    try:
        wait_until(lambda: rig.is_recorded(*held[0]), "another slot recorded the chunk")
    finally:
        go_on.set()
    wait_until(lambda: answers, "the late record is answered")
    assert b"late" in answers[0] or b"done" in answers[0]  # done: it was the job's last chunk
    assert rig.settle("record held up until another slot made it", job) == FLAWLESS
    status = rig.ledger.status(job)
    assert (status.recorded, status.rows_done) == (20, 200)
