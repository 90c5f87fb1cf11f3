"""A broker that dies, stands still, forgets, fills up, or is out of reach: work goes on without a person."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil
import pytest
import redis

from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.proxy import Act, Trap, Verdict
from tests.faults.rig import Rig, now, wait_until
from tests.faults.steps import evalsha

#: Seconds within which work has to go on, once the broker is back; and after a connection fell silent.
RESUMES_S = 30.0
RESUMES_SILENT_S = 60.0
#: Connections to the broker above which somebody leaves them open: two slots, their node and a client have 20.
MOST_CONNECTIONS = 60

Inject = Callable[[Rig], None]


def kill_and_restart(rig: Rig) -> None:
    """Kill the server, and start it again on its data."""
    rig.server.kill()
    rig.server.start()


def stand_still(rig: Rig) -> None:
    """Stop the server for a while."""
    rig.server.pause()
    try:
        time.sleep(by_size(5, 60))
    finally:
        rig.server.go_on()


def cut_all(rig: Rig) -> None:
    """Reset all connections."""
    assert rig.proxy.cut() > 0


def kill_clients(rig: Rig) -> None:
    """Let the server close all connections."""
    assert rig.server.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") > 0
    rig.server.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")


def block(rig: Rig) -> None:
    """Keep the server busy with a script, so that it answers BUSY to all others."""
    rig.server.redis.config_set("busy-reply-threshold", 100)
    loop = "local start = redis.call('TIME')[1]; while redis.call('TIME')[1] - start < tonumber(ARGV[1]) do end"
    with redis.Redis.from_url(rig.server.url, socket_timeout=60) as client:
        client.eval(loop, 0, by_size(3, 20))


def fill_up(rig: Rig) -> None:
    """Let the server have no room for a while, from the moment on when a node has taken a ticket."""

    def fill(*_: object) -> Verdict:
        rig.server.redis.config_set("maxmemory", 1)
        return Verdict.FORWARD

    trap = rig.proxy.set(Trap(b"BRPOP", fill, reply=b"penstock.encode"))
    wait_until(lambda: trap.sprung, "a ticket is taken")
    try:
        time.sleep(by_size(3, 60))
    finally:
        rig.server.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("fault", "inject", "times"),
    [
        ("broker killed and restarted", kill_and_restart, by_size(2, 10)),
        ("broker stopped (SIGSTOP)", stand_still, 1),
        ("all connections reset", cut_all, by_size(2, 10)),
        ("CLIENT KILL of all clients", kill_clients, by_size(2, 10)),
        ("broker busy with a script", block, 1),
        ("broker full (maxmemory)", fill_up, 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broker_in_trouble_costs_no_row_no_model_and_no_person(
    rig: Rig, fault: str, inject: Inject, times: int
) -> None:
    """In mid-job, with a client that waits: work goes on within half a minute, in the same processes."""
    rig.need_worker()
    before = rig.pids()
    running = rig.start_encode(by_size(400, 2000))
    recoveries = []
    for _ in range(times):
        rig.wait_for_record(running.job, 3)
        inject(rig)
        recoveries.append(rig.recovery_s(running.job, now(), RESUMES_S))
    assert rig.settle_encode(fault, running, injected=times, recoveries_s=recoveries) == FLAWLESS
    wait_until(lambda: rig.pids() == before, "the slots are the same processes")
    assert len(rig.server.redis.client_list()) < MOST_CONNECTIONS


def test_a_broker_that_forgot_everything_is_told_again(rig: Rig) -> None:
    """FLUSHALL in mid-job: the job is rebuilt from the store, and what was recorded is not done again."""
    rig.need_worker()
    before = rig.pids()
    for _ in range(by_size(1, 5)):
        running = rig.start_encode(400)
        rig.wait_for_record(running.job, 10)
        rig.server.redis.flushall()
        since = now()
        recovery_s = rig.recovery_s(running.job, since, RESUMES_S)
        assert rig.settle_encode("FLUSHALL", running, recoveries_s=[recovery_s]) == FLAWLESS
    wait_until(lambda: rig.pids() == before, "the slots are the same processes")


def test_a_waiting_client_is_not_needed_after_a_flush(rig: Rig) -> None:
    """The nodes alone rebuild a job that nobody waits for."""
    rig.need_worker()
    job = rig.submit(400)
    rig.wait_for_record(job, 10)
    rig.server.redis.flushall()
    since = now()
    recovery_s = rig.recovery_s(job, since, RESUMES_S)
    assert rig.settle("FLUSHALL, no client", job, recoveries_s=[recovery_s]) == FLAWLESS


@pytest.mark.parametrize("moment", by_size(["idle"], ["idle", "touch", "record", "announce"]))
def test_connections_that_fall_silent_are_noticed(rig: Rig, moment: str) -> None:
    """Nothing comes back any more, while a node is idle, in mid-chunk, at a record or at the submission."""
    rig.need_worker()
    before = rig.pids()
    rows = by_size(100, 1000)
    if moment == "idle":
        assert rig.proxy.silence(new_ones=False) > 0
        running = rig.start_encode(rows)
    else:
        trap = rig.proxy.set(Trap(evalsha(moment), _silence_all(rig)))
        running = rig.start_encode(rows)
        wait_until(lambda: trap.sprung, "the connections are silent")
    recovery_s = rig.recovery_s(running.job, now(), RESUMES_SILENT_S)
    fault = f"connections silent: {moment}"
    assert rig.settle_encode(fault, running, recoveries_s=[recovery_s]) == FLAWLESS
    assert rig.pids() == before


def _silence_all(rig: Rig) -> Act:
    """Return an act that silences all connections, and for a while those that are made anew."""

    def act(*_: object) -> Verdict:
        rig.proxy.silence(new_ones=True)
        threading.Timer(5, rig.proxy.clear).start()
        return Verdict.DROP

    return act


STEPS = ["create", "announce", "seal", "claim", "record", "free"]
CUTS = [(step, Verdict.CUT) for step in STEPS]
#: A silence costs the time limit of a connection each.
SILENCES = [(step, Verdict.DROP) for step in by_size(["record"], STEPS)]


@pytest.mark.parametrize(("step", "verdict"), CUTS + SILENCES, ids=lambda value: getattr(value, "name", value))
def test_a_step_whose_reply_is_lost_happens_once(rig: Rig, step: str, verdict: Verdict) -> None:
    """The ledger did what it was asked; who asked saw a dead connection, and asks again."""
    rig.need_worker()
    times = by_size(2, 10) if step not in {"create", "seal", "free"} else 1
    trap = rig.proxy.set(Trap(evalsha(step), lambda *_: verdict, reply=b"", times=times))
    running = rig.start_encode(200)
    if step == "free":  # which a node does for a slot that died
        psutil.Process(rig.working_slot(running.job).pid).kill()
    since = now()
    recovery_s = rig.recovery_s(running.job, since, RESUMES_SILENT_S)
    fault = f"reply lost: {step}"
    assert rig.settle_encode(fault, running, injected=times, recoveries_s=[recovery_s]) == FLAWLESS
    assert trap.sprung == times
    status = rig.ledger.status(running.job)
    assert (status.chunks, status.recorded, status.rows, status.rows_done) == (20, 20, 200, 200)
