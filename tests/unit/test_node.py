"""How a node looks after its slots: deaths, silence, and standstill. The pool and Celery's consumer are stand-ins."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import redis
from celery.worker import state as worker_state

from tasks.endings import EXIT_ENGINE_BROKEN, EXIT_OVERDUE, STOPPED, Ending, describe, ending_of
from tests.contracts.ledger import slot_status
from workers import children, intake
from workers.children import SILENT_LEASES, Children
from workers.intake import STANDSTILL_S, Intake


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Return the clock of the node."""
    stopped = Clock()
    monkeypatch.setattr(children, "time", stopped)
    monkeypatch.setattr(intake, "time", stopped)
    return stopped


@pytest.fixture
def pool():
    """Return a pool of two processes, as Celery's looks."""
    members = [SimpleNamespace(pid=pid, exitcode=None) for pid in (101, 102)]
    return SimpleNamespace(_pool=SimpleNamespace(_pool=members), maintain_pool=lambda: None)


@pytest.fixture
def killed(monkeypatch):
    """Return the processes that were killed."""
    pids = []
    monkeypatch.setattr(children.os, "kill", lambda pid, number: pids.append((pid, number)))
    return pids


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "its process ended with exit status 3"),
        (-signal.SIGSEGV, "its process was killed by SIGSEGV"),
        (-signal.SIGKILL, "its process was killed by SIGKILL, as the kernel does when memory runs out"),
        (-77, "its process was killed by signal 77"),
        (EXIT_OVERDUE, "it ran over its time limit"),
        (EXIT_ENGINE_BROKEN, "the engine failed on everything after it"),
        (None, "its process is gone"),
    ],
)
def test_an_exit_status_has_words(status, words):
    """People read them in the error of a row."""
    assert describe(status) == words
    assert ending_of(status) == Ending("died", words)


def test_a_process_that_was_told_to_end_is_not_to_blame():
    """Service managers send SIGTERM to all processes of a unit. One that exits by itself was not told."""
    assert ending_of(-signal.SIGTERM) == STOPPED
    assert ending_of(0).kind == "died"


def test_a_dead_process_is_found_with_how_it_ended(pool):
    """The pool drops it from its list; its exit status is remembered."""
    found = Children(pool, lease_s=20)
    found.look()
    dead = pool._pool._pool.pop()
    dead.exitcode = -signal.SIGSEGV
    assert found.has_changed
    slots = [slot_status(slot="node/0", pid=101), slot_status(slot="node/1", pid=102)]
    for _ in range(2):  # the broker was away as it was to be buried
        assert found.deaths(slots) == [(slots[1], Ending("died", "its process was killed by SIGSEGV"))]
    found.forget(102)
    assert found.deaths(slots) == [(slots[1], Ending("died", "its process is gone"))]


def test_a_process_that_nobody_saw_is_dead_too(pool):
    """A node that was started again finds what it left."""
    slot = slot_status(pid=99)
    assert Children(pool, lease_s=20).deaths([slot]) == [(slot, Ending("died", "its process is gone"))]


def test_a_silent_process_is_killed_once_and_blamed(pool, clock, killed):
    """It hangs so that not even its pulse runs; its lease has lapsed long ago."""
    found = Children(pool, lease_s=20)
    found.look()
    slots = [slot_status(slot="node/0", pid=101, seen_s=0.0), slot_status(slot="node/1", pid=102, seen_s=21.0)]
    found.end_silent(slots)
    clock.now += SILENT_LEASES * 20 + 1
    found.end_silent(slots)
    found.end_silent(slots)
    assert killed == [(102, signal.SIGKILL)]
    pool._pool._pool.pop().exitcode = -signal.SIGKILL
    assert found.deaths(slots)[0][1] == Ending("died", "its process made no sign of life and was killed")


def test_a_process_whose_status_was_forgotten_meanwhile_is_silent_still(pool, clock, killed):
    """The ledger forgets slots after a minute, whatever a lease is."""
    found = Children(pool, lease_s=60)
    found.look()
    found.end_silent([slot_status(pid=102, seen_s=61.0)])
    clock.now += SILENT_LEASES * 60 + 1
    found.end_silent([])
    assert killed == [(102, signal.SIGKILL)]


def test_nobody_is_silent_who_speaks_again_or_whose_broker_was_away(pool, clock, killed):
    """Silence is counted from the last word, or from the broker's return."""
    found = Children(pool, lease_s=20)
    found.look()
    silent = [slot_status(pid=102, seen_s=21.0)]
    found.end_silent(silent)
    clock.now += 30
    found.end_silent([slot_status(pid=102, seen_s=1.0)])
    clock.now += 30
    found.end_silent(silent)
    clock.now += 30
    found.forget_silence()
    clock.now += 30
    found.end_silent(silent)
    assert killed == []


# -- intake ------------------------------------------------------------------------------------------------------


@pytest.fixture
def consumer():
    """Return what an intake uses of Celery's consumer."""
    return SimpleNamespace(controller=SimpleNamespace(max_concurrency=None), opened=[], add_task_queue=None)


@pytest.fixture
def flow(consumer, clock, monkeypatch):
    """Return an intake that is open, of a node with an idle slot that took 5 tickets."""
    consumer.add_task_queue = consumer.opened.append
    monkeypatch.setattr(worker_state, "total_count", {"penstock.encode": 5})
    monkeypatch.setattr(worker_state, "reserved_requests", set())
    found = Intake(consumer, "queue")
    found.adjust([slot_status()])
    found.is_standing(1)
    return found


def test_a_node_takes_as_many_tickets_as_slots_are_ready(consumer):
    """And none, not even as its own limit of Celery's, when none is."""
    consumer.add_task_queue = consumer.opened.append
    found = Intake(consumer, "queue")
    found.adjust([slot_status(state="loading")])
    assert (consumer.controller.max_concurrency, consumer.opened) == (-1, [])
    found.adjust([slot_status(), slot_status(state="loading")])
    assert (consumer.controller.max_concurrency, consumer.opened) == (1, ["queue"])
    found.adjust([slot_status(), slot_status()])
    assert (consumer.controller.max_concurrency, consumer.opened) == (2, ["queue"])
    found.adjust([slot_status(state="drained"), slot_status(state="drained")])
    assert consumer.controller.max_concurrency == -1


def test_a_node_stands_still_when_tickets_wait_slots_are_idle_and_it_takes_none(flow, clock):
    """For a while."""
    clock.now += STANDSTILL_S
    assert not flow.is_standing(1)
    clock.now += 1
    assert flow.is_standing(1)


@pytest.mark.parametrize(
    ("slot", "n_waiting", "taken", "reserved"),
    [
        (slot_status(), 1, 5, {"a request"}),
        (slot_status(state="drained"), 1, 5, set()),
        (slot_status(), 0, 5, set()),
        (slot_status(), 1, 6, set()),
    ],
    ids=["its slot has a ticket, if only to wait for the broker", "drained", "nothing waits", "a ticket was taken"],
)
def test_a_node_does_not_stand_still(  # noqa: PLR0913 - one parameter a reason
    flow, clock, monkeypatch, slot, n_waiting, taken, reserved
):
    """All of this is as it should be."""
    flow.adjust([slot])
    clock.now += STANDSTILL_S + 1
    monkeypatch.setattr(worker_state, "total_count", {"penstock.encode": taken})
    monkeypatch.setattr(worker_state, "reserved_requests", reserved)
    assert not flow.is_standing(n_waiting)


def test_a_node_that_stands_still_reconnects_and_then_starts_again(flow, clock, monkeypatch):
    """The second time means that the connection was not to blame."""
    events = []
    monkeypatch.setattr(intake.os, "execv", lambda *_: events.append("started"))

    def end_slots():
        events.append("ended")

    with pytest.raises(redis.ConnectionError):
        flow.free(end_slots)
    clock.now += STANDSTILL_S + 1
    assert flow.is_standing(1)
    flow.free(end_slots)
    assert events == ["ended", "started"]


def test_a_node_that_took_tickets_since_reconnects_anew(flow, clock, monkeypatch):
    """It was helped the last time."""
    with pytest.raises(redis.ConnectionError):
        flow.free(pytest.fail)
    monkeypatch.setattr(worker_state, "total_count", {"penstock.encode": 9})
    flow.is_standing(1)
    with pytest.raises(redis.ConnectionError):
        flow.free(pytest.fail)
