"""Embedded workers that end: started again, or given up by name."""

import itertools
import sys
from contextlib import suppress

import pytest

from producer.embedded_workers import MOST_DEATHS, EmbeddedWorkers
from producer.runs import Run
from tasks import backoff
from tasks.backoff import Backoff
from tasks.endings import EXIT_NOT_STARTED
from tasks.errors import BrokerUnavailable, UsageError, WorkerStopped
from tasks.settings import Settings
from tests.conftest import wait_until


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts workers which run a line of shell instead, without pauses between the starts."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.0)
    started = []

    def begin(line, done=lambda: 0):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        workers = EmbeddedWorkers(Run.at(tmp_path, "run"), Settings(), bury=done)
        started.append(workers)
        return workers

    yield begin
    for workers in started:
        workers.stop()


def check_until_it_raises(workers):
    """Look after workers as a client does."""
    with pytest.raises((UsageError, WorkerStopped)) as caught:
        wait_until(workers.check, "the workers are given up")
    return caught.value


def test_workers_that_die_again_and_again_are_given_up(start, tmp_path, caplog):
    """Each time but the last they are started again, and a line says how they ended."""
    workers = start("kill -9 $$")
    error = check_until_it_raises(workers)
    assert f"ended {MOST_DEATHS} times without finishing a chunk" in str(error)
    assert "SIGKILL" in str(error)
    assert "worker.log" in str(error)
    assert len(caplog.messages) == MOST_DEATHS - 1
    assert all("killed by SIGKILL" in message for message in caplog.messages)


def test_workers_that_finish_chunks_between_their_deaths_are_not_given_up(start, caplog):
    """A machine may be short of memory, and the job ends all the same."""
    counts = itertools.count()
    workers = start("exit 70", done=lambda: next(counts))

    def died_often():
        workers.check()
        return len(caplog.messages) >= 3 * MOST_DEATHS

    wait_until(died_often, "they died often")


def test_chunks_that_are_opened_again_are_no_progress(start):
    """A number of chunks done that fell says nothing about the workers."""
    counts = itertools.count(100, -1)
    error = check_until_it_raises(start("exit 70", done=lambda: next(counts)))
    assert f"ended {MOST_DEATHS} times" in str(error)


def test_a_death_counts_once_though_the_slots_cannot_be_buried(start, tmp_path):
    """The broker may be away as well; the workers are started again all the same."""
    faults = [BrokerUnavailable("away")]

    def bury():
        if faults:
            raise faults.pop()
        return 0

    workers = start(f"echo started >> {tmp_path}/starts; exit 70", done=bury)

    def is_away():
        with suppress(BrokerUnavailable):
            workers.check()
        return not faults

    wait_until(is_away, "the slots could not be buried")
    check_until_it_raises(workers)
    assert len((tmp_path / "starts").read_text().splitlines()) == MOST_DEATHS + 1


def test_workers_that_cannot_start_are_given_up_at_once(start, caplog):
    """Another start would end in the same way; the line says why."""
    workers = start(f"echo 'Node ends, its slot failed: no such file' >&2; exit {EXIT_NOT_STARTED}")
    error = check_until_it_raises(workers)
    assert isinstance(error, WorkerStopped)
    assert "The embedded workers ended: no such file" in str(error)
    assert caplog.messages == []


def test_a_wrong_setting_is_wrong_usage(start):
    """It is the command's own option."""
    error = check_until_it_raises(start("echo 'penstock worker: --devices tpu: unknown' >&2; exit 2"))
    assert isinstance(error, UsageError)
    assert str(error) == "--devices tpu: unknown"


def test_pauses_grow_and_begin_anew_after_a_calm_life():
    """1, 2, 4 ... 30 s; and 1 s again after more than a minute."""
    pauses = Backoff()
    assert [pauses.pause_s(5) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [pauses.pause_s(61), pauses.pause_s(5)] == [1, 2]
