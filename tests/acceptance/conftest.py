"""Real `penstock` processes, a real Valkey, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import tests.conftest
from producer.embedded import EmbeddedServer
from producer.runs import Run
from tasks import broker
from tasks.ledger import Ledger
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from workers.engines import load_engine

#: Seconds that anything in these tests may take before it counts as hung.
PATIENCE_S = 90.0

#: How long a slot of a cluster that says nothing keeps its chunk.
LEASE_S = 3
#: Seconds between two looks at what whole processes do.
POLL_S = 0.02

#: Stands in every secret that a shell has, so that it is found wherever one is shown.
PLANT = "PLANTED-SECRET"
#: Stands in every text that `texts` makes.
TEXT_MARK = " of the corpus, which says "
SECRETS = {"HF_TOKEN": f"hf_{PLANT}", "AWS_SECRET_ACCESS_KEY": f"aws_{PLANT}"}

PENSTOCK = [sys.executable, "-P", "-m", "producer.cli"]


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait as long as whole processes may take."""
    return tests.conftest.wait_until(condition, what, PATIENCE_S, POLL_S)


class Started(subprocess.Popen[str]):
    """A command that runs. It writes to a file, because nobody reads a pipe here until it is full."""

    def __init__(self, arguments: Sequence[object], log: Path, **options: Any) -> None:
        self._log = log
        with log.open("w") as file:
            super().__init__(
                [*PENSTOCK, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, text=True, **options
            )

    def said(self) -> str:
        """Return what it wrote up to now."""
        return self._log.read_text(errors="replace")

    def finish(self) -> str:
        """Wait for its end, and return all that it wrote."""
        try:
            self.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end of {self.args!r}, which wrote:\n{self.said()[-4000:]}")
        return self.said()


@dataclass
class Shell:
    """A working folder with an environment of its own, as a person has."""

    folder: Path
    environment: dict[str, str]
    started: list[Started] = field(default_factory=list)

    def run(self, *arguments: object, code: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a penstock command to its end and check its exit code."""
        done = subprocess.run(
            [*PENSTOCK, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode} of {arguments}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        check_shows_no_secret(done.stdout + done.stderr)
        return done

    def json(self, *arguments: object, code: int = 0, stdin: str | None = None) -> Any:
        """Run a command with --json and return the one object that it prints."""
        return json.loads(self.run(*arguments, "--json", code=code, stdin=stdin).stdout)

    def start(self, *arguments: object, stdin: int | None = None, **environment: str) -> Started:
        """Start a penstock command, with these variables too, and leave it running."""
        log = self.folder / f"{len(self.started):03}-{arguments[0]}.log"
        process = Started(arguments, log, cwd=self.folder, env={**self.environment, **environment}, stdin=stdin)
        self.started.append(process)
        return process

    def write(self, name: str, lines: list[str]) -> Path:
        """Write a text file, a record a line."""
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def end(self) -> None:
        """End what is still running."""
        for process in self.started:
            for member in tree(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
        self.started.clear()
        for log in self.folder.rglob("*.log"):
            check_shows_no_secret(log.read_text(errors="replace"))


def check_shows_no_secret(said: str) -> None:
    """Check that nothing which a command printed or logged holds a planted secret, or a record's text."""
    for mark in (PLANT, TEXT_MARK):
        at = said.find(mark)
        assert at < 0, f"it shows what it should not: ...{said[max(0, at - 300) : at + 100]}"


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, directly or not."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def texts(count: int) -> list[str]:
    """Return different short texts."""
    return [f"record number {i}{TEXT_MARK}{i * i}" for i in range(count)]


def fake_vectors(records: list[str]) -> np.ndarray:
    """Return the vectors that the fake engine gives for texts, without any process or fault."""
    return load_engine(ModelSpec.parse("fake"), "cpu", Settings()).encode(records, EncodeOptions()).values


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell without any configuration."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    environment = {**inherited, **SECRETS, "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "120"}
    here = Shell(tmp_path, environment)
    yield here
    here.end()


@dataclass
class Cluster:
    """A shell with a broker, a shared store and whatever workers are started."""

    shell: Shell
    run: Run
    server: EmbeddedServer

    def break_broker(self) -> None:
        """Kill the broker, and start it again on the same data."""
        guard = self.server._process
        assert guard is not None
        (program,) = psutil.Process(guard.pid).children()
        program.kill()
        guard.wait()
        self.server.stop()
        self.server.start()

    def start_worker(self, model: str, processes: int = 2, operation: str = "encode") -> Started:
        """Start a worker and wait until all its slots are ready."""
        before = len(self.slots())
        what = ("--operation", operation, "--model", model)
        worker = self.shell.start("worker", *what, "--devices", "cpu", "--processes-per-device", processes)
        wait_until(lambda: len(self.slots()) >= before + processes, "the slots are ready")
        return worker

    def ledger(self) -> Ledger:
        """Return the broker's ledger."""
        return Ledger(broker.connect(self.server.url), self.server.url)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the ready slots."""
        return [psutil.Process(slot["pid"]) for slot in self.slots()]

    def slots(self) -> list[dict[str, Any]]:
        """Return the ready slots."""
        ledger = self.ledger()
        with contextlib.closing(ledger.redis):
            found = ledger.workforce.slots()
        return [asdict(slot) for slot in found if slot.state == "ready" and slot.seen_s <= LEASE_S]

    def done_chunks(self, job: str) -> int:
        """Return how many chunks of a job have results."""
        ledger = self.ledger()
        with contextlib.closing(ledger.redis):
            return ledger.status(job).recorded


@pytest.fixture
def cluster(shell: Shell, tmp_path: Path) -> Iterator[Cluster]:
    """A broker and a store that a shell is configured for."""
    run = Run.at(tmp_path / "broker", "cluster")
    server = EmbeddedServer(run)
    server.start()
    shell.environment |= {
        "PENSTOCK_BROKER_URL": server.url,
        "PENSTOCK_STORE_URL": (tmp_path / "shared").as_uri(),
        "PENSTOCK_HEARTBEAT_S": "0.5",
        "PENSTOCK_LEASE_S": str(LEASE_S),
        "PENSTOCK_RECONCILE_S": "0.5",
    }
    yield Cluster(shell, run, server)
    shell.end()
    server.stop()


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that this test started."""
    process.send_signal(number)
