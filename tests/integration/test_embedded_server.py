"""The private server of an embedded run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from producer.embedded import EmbeddedServer
from producer.runs import Run, find_run, runs
from tasks import lifeline
from tasks.broker import redis_url
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
