"""SIGKILL of any process at any moment, again and again."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import PENSTOCK, Shell, texts, tree
from tests.faults.accounting import FLAWLESS, compare
from tests.faults.conftest import by_size
from tests.faults.report import REPORT
from tests.faults.rig import HUNG_S, SLOW, TIMES, Rig, now, wait_until

#: The same victims in the same order in every run.
SEED = 2026
KILLS = by_size(5, 50)
#: Rows that are done between two kills, at most.
ROWS_PER_KILL = by_size(100, 150)
#: Chunks that may be recorded after a kill because they were finished by then.
IN_FLIGHT = 2


class Embedded:
    """An embedded command that is started again when it was killed."""

    def __init__(self, folder: Path, shell: Shell, rows: int) -> None:
        self._folder = folder
        self._shell = shell
        corpus = shell.write("corpus.txt", texts(rows))
        options = ("--model", SLOW, "--workers", "2", "--chunk-rows", "10", "--out", "v.parquet")
        self._command = [*PENSTOCK, "encode", str(corpus), *options]
        self.process = self._start()

    def members(self, kind: str) -> list[psutil.Process]:
        """Return its processes of a kind: client, server, guard (of the server), node or slot."""
        return [process for process in tree(self.process.pid) if self._kind(process) == kind]

    def n_done(self) -> int:
        """Return how many results are in the store."""
        return len(list((self._folder / "state").glob("penstock/runs/*/store/jobs/*/result/*.arrow")))

    def work_on(self, more: int) -> None:
        """Wait until there are so many more results; start the command again if it ends before."""
        goal = self.n_done() + more
        while self.n_done() < goal and self.process.poll() != 0:
            if self.process.poll() is not None:
                self.process = self._start()
            wait_until(lambda: self.process.poll() is not None or self.n_done() >= goal, "work goes on")

    def end(self) -> None:
        """Wait for the end of the job; start the command again if it ends before."""
        while self.process.wait(HUNG_S) != 0:
            self.process = self._start()

    def said(self) -> str:
        """Return all that the commands and their workers said."""
        logs = [self._folder / "command.log", *(self._folder / "state").glob("penstock/runs/*/worker.log")]
        return "\n".join(log.read_text() for log in logs)

    def _kind(self, process: psutil.Process) -> str:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "spawn_main" in line:
                return "slot"
            if "valkey-server" in line:
                return "guard" if "tasks.lifeline" in line else "server"
            if "celery" in line or "workers.launch" in line:
                return "node"
        return "client" if process.pid == self.process.pid else ""

    def _start(self) -> subprocess.Popen[str]:
        with (self._folder / "command.log").open("a") as log:
            process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._shell.environment, stdout=log, stderr=log, text=True
            )
        self._shell.started.append(process)
        return process


@pytest.fixture
def embedded(rig: Rig, tmp_path: Path) -> Iterator[Embedded]:
    """An embedded job with work for all kills."""
    inherited = {name: value for name, value in rig.shell.environment.items() if not name.startswith("PENSTOCK_")}
    shell = Shell(tmp_path, {**inherited, **TIMES, "XDG_STATE_HOME": str(tmp_path / "state")})
    run = Embedded(tmp_path, shell, rows=ROWS_PER_KILL * KILLS + 300)
    yield run
    shell.end()
    print(run.said())  # noqa: T201 - shown if the test failed


def test_an_embedded_job_outlives_the_death_of_any_of_its_processes(
    rig: Rig, embedded: Embedded, tmp_path: Path
) -> None:
    """Client, server, guard, node and slots are killed; the same command, again if need be, ends well."""
    luck = random.Random(SEED)  # noqa: S311 - no secret
    kinds = ["client", "server", "guard", "node", "slot"]
    recoveries = []
    for kind in [*luck.sample(kinds, len(kinds)), *luck.choices(kinds, k=KILLS)][:KILLS]:
        embedded.work_on(luck.randrange(1, 6))
        victims = wait_until(lambda kind=kind: embedded.members(kind), f"there is a {kind}")
        with contextlib.suppress(psutil.NoSuchProcess):
            luck.choice(victims).kill()
        since = now()
        embedded.work_on(IN_FLIGHT + 1)
        recoveries.append(now() - since)
        print(f"{kind}: {recoveries[-1]:.1f} s")  # noqa: T201 - shown if the test failed
    embedded.end()
    found = pq.read_table(tmp_path / "v.parquet")
    expected = rig.expected.slice(0, ROWS_PER_KILL * KILLS + 300)
    tally = compare(found, expected)
    REPORT.add("kill -9, embedded", tally, rows=len(expected), injected=KILLS, recoveries_s=recoveries)
    assert tally == FLAWLESS


def test_a_job_on_a_cluster_outlives_the_death_of_any_process(rig: Rig) -> None:
    """Broker, nodes, slots and the waiting client are killed; a service manager starts the first two again."""
    luck = random.Random(SEED)  # noqa: S311 - no secret
    rig.stop_workers()
    nodes = [rig.start_worker(slots=1), rig.start_worker(slots=1)]
    running = rig.start_encode(ROWS_PER_KILL * KILLS + 300)
    kinds = ["broker", "node", "slot", "client"]
    recoveries = []
    for kind in [*luck.sample(kinds, len(kinds)), *luck.choices(kinds, k=KILLS)][:KILLS]:
        rig.wait_for_record(running.job, luck.randrange(1, 6))
        since = now()
        if kind == "broker":
            rig.server.kill()
            rig.server.start()
        elif kind == "node":
            victim = luck.choice(nodes)
            victim.kill()
            nodes.remove(victim)
            victim.wait()
            nodes.append(rig.spawn_worker(slots=1))
        elif kind == "slot":
            psutil.Process(luck.choice(wait_until(rig.slots, "there is a slot")).pid).kill()
        else:
            running.process.kill()
            running.process.wait()
            rig.run_again(running)
        rig.wait_for_record(running.job, IN_FLIGHT + 1)
        recoveries.append(now() - since)
    tally = rig.settle_encode("kill -9, cluster", running, injected=KILLS, recoveries_s=recoveries)
    assert tally == FLAWLESS
