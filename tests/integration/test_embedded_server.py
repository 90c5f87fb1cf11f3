"""The private server of an embedded run."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from producer import embedded
from producer.embedded import MOST_STARTS, EmbeddedServer
from producer.runs import Run, find_run, runs
from tasks import backoff, lifeline
from tasks.broker import redis_url
from tasks.errors import EmbeddedServerDown
from tests.conftest import wait_until

PATIENCE_S = 20.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A fresh state folder."""
    return Run.at(tmp_path, "one")


def ask(server: EmbeddedServer, *command: str) -> object:
    """Send one command to a server."""
    with redis.Redis.from_url(redis_url(server.url), decode_responses=True) as client:
        return client.execute_command(*command)


def test_data_survives_a_restart(run: Run) -> None:
    """What was written is there when the same folder is opened again."""
    for expected in (None, "kept"):
        server = EmbeddedServer(run)
        server.start()
        assert ask(server, "GET", "note") == expected
        ask(server, "SET", "note", "kept")
        server.stop()


def test_a_second_one_attaches_and_leaves_the_server_running(run: Run) -> None:
    """Only the owner ends it."""
    owner, guest = EmbeddedServer(run), EmbeddedServer(run)
    owner.start()
    guest.start()
    assert (owner.is_owner, guest.is_owner) == (True, False)
    ask(guest, "SET", "note", "shared")
    guest.stop()
    assert ask(owner, "GET", "note") == "shared"
    owner.stop()


def test_the_folder_and_the_socket_are_this_user_s_alone(run: Run) -> None:
    """0700 for the folder, no access for others to the server."""
    server = EmbeddedServer(run)
    server.start()
    assert run.folder.stat().st_mode & 0o077 == 0
    assert run.socket.stat().st_mode & 0o077 == 0
    files = [file for file in (run.folder / "broker").rglob("*") if file.is_file()]
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    server.stop()


def test_a_long_folder_gets_a_short_socket(tmp_path: Path) -> None:
    """Unix socket paths stop at 108 bytes."""
    run = Run.at(tmp_path / ("long" * 30), "one")
    assert len(os.fsencode(run.socket)) < 100
    server = EmbeddedServer(run)
    server.start()
    assert ask(server, "PING")
    server.stop()
    run.remove()
    assert not run.socket.exists()


def test_runs_are_found_by_their_jobs(tmp_path: Path) -> None:
    """Without opening a server."""
    one, two = Run.at(tmp_path, "one"), Run.at(tmp_path, "two")
    one.note("encode-1", None)
    two.note("encode-2", None)
    two.note("encode-3", None)
    two.note("encode-3", None)
    assert two.jobs() == ["encode-2", "encode-3"]
    assert two.store_url() == (two.folder / "store").as_uri()
    two.note("encode-3", "s3://bucket")
    assert two.store_url() == "s3://bucket"
    assert find_run(tmp_path, "encode-3") == two
    assert find_run(tmp_path, "encode-4") is None
    assert {found.folder.name for found in runs(tmp_path)} == {"one", "two"}


def test_a_program_on_a_lifeline_ends_when_the_line_is_cut() -> None:
    """A cut line ends the guard and the program, which gets SIGTERM first."""
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(1, flush=True)"
    guard = subprocess.Popen(
        lifeline.command([sys.executable, "-c", f"{code}; time.sleep(600)"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guard.stdout is not None
    guard.stdout.readline()
    (program,) = psutil.Process(guard.pid).children()
    assert guard.stdin is not None
    guard.stdin.close()
    assert guard.wait(PATIENCE_S) == 0
    wait_until(lambda: not program.is_running(), "the program ended")
    guard.stdout.close()


def test_a_program_on_a_lifeline_ends_when_its_guard_is_killed() -> None:
    """Linux kills it with the guard; the guard cannot."""
    guard = subprocess.Popen(
        lifeline.command([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(600)"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guard.stdout is not None
    guard.stdout.readline()
    (program,) = psutil.Process(guard.pid).children()
    guard.send_signal(signal.SIGKILL)
    guard.communicate()
    wait_until(lambda: not program.is_running(), "the program ended")


def server_of(server: EmbeddedServer) -> psutil.Process:
    """Return the process of the server itself."""
    assert server._process is not None
    (program,) = psutil.Process(server._process.pid).children()
    return program


def test_a_server_that_is_killed_is_started_again_with_its_data(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Its owner keeps the lock, so that nobody else starts one meanwhile, and says what happens."""
    owner, guest = EmbeddedServer(run), EmbeddedServer(run)
    owner.start()
    ask(owner, "SET", "note", "kept")
    first = server_of(owner)
    first.kill()
    wait_until(lambda: "Starting it again in 1 s" in caplog.text, "the owner noticed", PATIENCE_S)
    guest.start()
    assert not guest.is_owner
    assert ask(guest, "GET", "note") == "kept"
    assert server_of(owner).pid != first.pid
    owner.stop()


def test_a_server_that_outlived_its_guard_is_ended_before_another_is_started(run: Run) -> None:
    """Two on the same data would spoil it; where the system ends it with its guard, this one plays the orphan."""
    owner = EmbeddedServer(run)
    owner.start()
    guard = owner._process
    assert guard is not None
    assert isinstance(guard.args, list)
    guard.kill()
    wait_until(lambda: not owner._answers(), "the server is gone", PATIENCE_S)
    run.socket.unlink(missing_ok=True)
    arguments = guard.args[len(lifeline.command([])) :]
    orphan = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
    try:
        wait_until(owner._answers, "the orphan answers", PATIENCE_S)
        ask(owner, "SET", "note", "of the orphan")
        assert orphan.wait(PATIENCE_S) == 0
        wait_until(owner._answers, "the new server answers", PATIENCE_S)
        assert ask(owner, "GET", "note") == "of the orphan"
    finally:
        orphan.kill()
        orphan.wait()
        owner.stop()


def test_a_server_that_is_ended_while_it_is_down_stays_down(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is started after the end."""
    owner = EmbeddedServer(run)
    owner.start()
    server_of(owner).kill()
    wait_until(lambda: "Starting it again" in caplog.text, "the owner noticed", PATIENCE_S)
    owner.stop()
    assert not owner._answers()
    assert not owner.is_owner


def test_a_folder_that_is_removed_while_another_command_begins_in_it_is_made_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that the second one opened is nobody's any more when it gets it."""
    first, second = EmbeddedServer(run), EmbeddedServer(run)
    first.start()
    lock = fcntl.flock

    def end_first_then_lock(file: int, how: int) -> None:
        monkeypatch.undo()
        first.stop(removes=True)
        lock(file, how)

    monkeypatch.setattr(embedded.fcntl, "flock", end_first_then_lock)
    second.start()
    assert second.is_owner
    third = EmbeddedServer(run)
    third.start()
    assert not third.is_owner
    assert (run.folder / "store").is_dir()
    second.stop(removes=True)
    assert not run.folder.exists()


def test_a_server_that_cannot_start_again_is_given_up_by_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few starts without an answer, with its folder and what it said last."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.0)
    owner = EmbeddedServer(run)
    owner.start()
    owner.check()
    monkeypatch.setattr(embedded, "server_binary", lambda: "/bin/false")
    server_of(owner).kill()

    def is_given_up() -> str:
        try:
            owner.check()
        except EmbeddedServerDown as exc:
            return str(exc)
        return ""

    said = wait_until(is_given_up, "it is given up", PATIENCE_S)
    assert f"{MOST_STARTS} new starts failed" in said
    assert str(run.folder) in said
    owner.stop()


def test_a_fault_of_the_keeper_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends in a thread without a word."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.0)
    owner = EmbeddedServer(run)
    owner.start()

    def fail() -> str:
        raise OSError

    monkeypatch.setattr(embedded, "server_binary", fail)
    server_of(owner).kill()
    wait_until(lambda: owner._trouble, "the fault is noted", PATIENCE_S)
    with pytest.raises(EmbeddedServerDown, match="not looked after"):
        owner.check()
    owner.stop()
