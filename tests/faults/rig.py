"""A cluster with a proxy before its broker, whose processes and jobs are at hand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import tests.conftest
from producer.client import Client
from tasks import keys
from tasks.ledger import Ledger
from tasks.messages import ModelSpec
from tasks.settings import Settings
from tasks.workforce import SlotStatus
from tests.acceptance.conftest import PATIENCE_S, Shell, texts, tree
from tests.faults.accounting import Tally, compare
from tests.faults.proxy import Link, Proxy, Verdict
from tests.faults.report import REPORT
from tests.faults.server import Valkey

#: Seconds after which a job counts as hung; the longest take a minute or two.
HUNG_S = 300.0
#: Rows of a chunk in all these tests.
CHUNK_ROWS = 10
#: The fake engine, slow enough that a chunk can be caught at work.
SLOW = "fake:ms_per_row=10"
#: Short times, so that what takes half a minute elsewhere takes seconds here.
TIMES = {"PENSTOCK_HEARTBEAT_S": "0.5", "PENSTOCK_LEASE_S": "3", "PENSTOCK_RECONCILE_S": "0.5"}


def wait_until(is_true: Callable[[], Any], what: str, deadline_s: float = PATIENCE_S) -> Any:
    """Wait as long as whole processes may take, and leave the machine to them."""
    return tests.conftest.wait_until(is_true, what, deadline_s, poll_s=0.02)


@dataclass
class Running:
    """A job with the command that waits for it."""

    job: str
    process: subprocess.Popen[str]
    out: Path
    rows: int
    command: tuple[object, ...]


@dataclass
class Rig:
    """Broker, proxy, store, workers and clients.

    Attributes:
        client: a client that reaches the broker past the proxy.
        expected: the result of a run without faults.
    """

    shell: Shell
    server: Valkey
    proxy: Proxy
    client: Client
    expected: pa.Table
    workers: dict[str, list[subprocess.Popen[str]]] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        """The ledger, past the proxy."""
        return self.client.ledger

    # -- workers ---------------------------------------------------------------------------------------------------

    def start_worker(self, model: str = SLOW, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start one more node and wait until its slots are ready."""
        before = len(self.slots(model))
        worker = self.spawn_worker(model, slots, **environment)
        wait_until(lambda: len(self.slots(model)) >= before + slots, "the slots are ready")
        return worker

    def spawn_worker(self, model: str = SLOW, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start one more node, and do not wait for it."""
        arguments = ("worker", "--model", model, "--devices", "cpu", "--processes-per-device", slots)
        worker = self.shell.start(*arguments, **environment)
        self.workers.setdefault(model, []).append(worker)
        return worker

    def need_worker(self, model: str = SLOW, slots: int = 2) -> subprocess.Popen[str]:
        """Return the one node that serves a model, all its slots ready; start it if need be."""
        nodes = self.workers.get(model, [])
        if len(nodes) != 1 or nodes[0].poll() is not None:
            self.stop_workers()
            return self.start_worker(model, slots)
        wait_until(lambda: len(self.slots(model)) == slots, "the slots are ready")
        return nodes[0]

    def stop_workers(self) -> None:
        """Kill all nodes with their slots."""
        for worker in (worker for group in self.workers.values() for worker in group):
            for member in tree(worker.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            worker.wait()
        self.workers.clear()
        for slot in self.ledger.workforce.slots():
            self.ledger.workforce.forget(slot.slot)

    def slots(self, model: str = SLOW) -> list[SlotStatus]:
        """Return the ready slots of a model whose processes live."""
        queue = ModelSpec.parse(model).queue("encode")
        found = self.ledger.workforce.slots(queue=queue)
        return [slot for slot in found if slot.state == "ready" and psutil.pid_exists(slot.pid)]

    def pids(self, model: str = SLOW) -> set[int]:
        """Return the processes of the ready slots."""
        return {slot.pid for slot in self.slots(model)}

    def working_slot(self, job: str) -> SlotStatus:
        """Wait for a slot that has a chunk of a job, and return it."""
        return wait_until(
            lambda: next((slot for slot in self.slots() if slot.claim.startswith(f"{job} ")), None),
            "a slot has a chunk",
        )

    def owner(self, link: Link) -> psutil.Process:
        """Return the process at the client's end of a connection."""
        members = [member for process in self.shell.started for member in tree(process.pid)]
        for member in members:
            with contextlib.suppress(psutil.Error):
                if any(end.laddr.port == link.port for end in member.net_connections(kind="tcp")):
                    return member
        raise LookupError(f"no process has port {link.port}")

    def kill_owner(self, link: Link, _: bytes = b"") -> Verdict:
        """Kill the process at the client's end, as a trap's act."""
        owner = self.owner(link)
        owner.kill()
        with contextlib.suppress(psutil.TimeoutExpired):  # its parent may take its time to notice
            owner.wait(1)
        return Verdict.CUT

    # -- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, rows: int, model: str = SLOW) -> str:
        """Submit a job past the proxy and return its id."""
        return self.client.encode(texts(rows), model=model).id

    def start_encode(self, rows: int, model: str = SLOW) -> Running:
        """Start a command that submits a job and waits for its result; return once the job exists."""
        before = set(self.ledger.jobs())
        number = len(self.shell.started)
        corpus = self.shell.write(f"{number}.txt", texts(rows))
        out = self.shell.folder / f"{number}.parquet"
        command = ("encode", corpus, "--model", model, "--out", out, "--chunk-rows", CHUNK_ROWS)
        process = self.shell.start(*command)
        (job,) = wait_until(lambda: set(self.ledger.jobs()) - before, "the job exists")
        return Running(job, process, out, rows, command)

    def run_again(self, running: Running) -> None:
        """Run the same command again, after its process ended."""
        running.process = self.shell.start(*running.command)

    def recorded(self, job: str) -> int:
        """Return how many chunks of a job are recorded; 0 if the ledger does not know it."""
        return int(self.server.redis.hget(keys.job(job), "recorded") or 0)

    def is_recorded(self, job: str, chunk: int) -> bool:
        """Whether a chunk has a result."""
        return bool(self.server.redis.hexists(keys.done(job), str(chunk)))

    def attempts(self, job: str, chunk: int) -> int:
        """Return how often a chunk was claimed, as long as it has no result."""
        return int(self.server.redis.hget(f"{keys.job(job)}:attempts", str(chunk)) or 0)

    def wait_for_record(self, job: str, count: int = 1) -> None:
        """Wait until so many more chunks are recorded."""
        goal = self.recorded(job) + count
        wait_until(lambda: self.recorded(job) >= goal, "chunks are recorded")

    def recovery_s(self, job: str, since: float, deadline_s: float = PATIENCE_S) -> float:
        """Wait for the first chunk that is recorded after a moment; return the seconds that it took."""

        def seconds() -> float:
            return int(self.server.redis.hget(keys.job(job), "last_record_ms") or 0) / 1000 - since

        wait_until(lambda: seconds() > 0, "work goes on", deadline_s)
        return seconds()

    def finish(self, job: str) -> pa.Table:
        """Wait until a job is done and return its result."""
        wait_until(lambda: self.ledger.status(job).is_over, f"job {job} is over", HUNG_S)
        return pa.concat_tables(self.client.job(job).results())

    def settle(self, fault: str, job: str, *, injected: int = 1, recoveries_s: list[float] | None = None) -> Tally:
        """Wait until a job is done, compare its result with one without faults, and put both into the report."""
        return self.note(fault, self.finish(job), injected=injected, recoveries_s=recoveries_s)

    def settle_encode(
        self, fault: str, running: Running, *, injected: int = 1, recoveries_s: list[float] | None = None
    ) -> Tally:
        """Do the same for a job with a command that waits: it has to end well, and wrote the result."""
        code = running.process.wait(HUNG_S)
        assert code == 0, f"exit {code}"
        return self.note(fault, pq.read_table(running.out), injected=injected, recoveries_s=recoveries_s)

    def note(self, fault: str, found: pa.Table, *, injected: int = 1, recoveries_s: list[float] | None = None) -> Tally:
        """Compare a result with the beginning of the one without faults, and put the tally into the report."""
        expected = self.expected.slice(0, int(found["row"].to_numpy().max()) + 1)
        tally = compare(found, expected)
        REPORT.add(fault, tally, rows=expected.num_rows, injected=injected, recoveries_s=recoveries_s)
        return tally

    # -- inside ----------------------------------------------------------------------------------------------------

    def say(self) -> str:
        """Return the last lines of all logs."""
        logs = sorted(self.shell.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-100:]) for log in logs)


@contextlib.contextmanager
def open_rig(folder: Path, expected: pa.Table, store_url: str, environment: dict[str, str]) -> Iterator[Rig]:
    """Start a broker with a proxy before it; end all at the end."""
    with contextlib.ExitStack() as stack:
        server = Valkey(folder)
        stack.callback(server.close)
        proxy = Proxy(server.connect)
        stack.callback(proxy.close)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        host, port = proxy.address
        urls = {"PENSTOCK_BROKER_URL": f"redis://{host}:{port}/0", "PENSTOCK_STORE_URL": store_url}
        state = {"XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "120"}
        shell = Shell(folder, {**inherited, **state, **urls, **TIMES, **environment})
        stack.callback(shell.end)
        settings = Settings(broker_url=server.url, store_url=store_url, chunk_rows=CHUNK_ROWS, lease_s=3, heartbeat_s=1)
        client = stack.enter_context(Client(settings=settings))
        yield Rig(shell, server, proxy, client, expected)


def now() -> float:
    """Return the time as the broker's host has it, which is this one."""
    return time.time()
