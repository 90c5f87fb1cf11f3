"""A job of very many chunks: memory stays flat on all sides, and the ledger as small as it is designed to be."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from tasks import keys
from tasks.messages import ModelSpec
from tests.acceptance.conftest import tree
from tests.faults.accounting import Tally
from tests.faults.conftest import by_size
from tests.faults.report import REPORT
from tests.faults.rig import Rig

CHUNKS = by_size(500, 100_000)
#: Slots of each of two nodes.
SLOTS = by_size(1, 4)
#: Bytes of Redis that the ledger may take for a chunk that is recorded.
BYTES_A_CHUNK = 150
#: MiB by which a process may be larger in the last third of a job than it ever was before.
FLAT_MIB = 20
GATE = 40


@dataclass
class Watch:
    """What was seen of memory and queue while a job ran."""

    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    longest_queue: int = 0

    def look(self, rig: Rig, client: psutil.Popen, queue: str) -> None:
        """Look at all processes and at the queue."""
        self.longest_queue = max(self.longest_queue, rig.server.redis.llen(queue))
        roots = {"client": client.pid, **{f"node {i}": w.pid for i, w in enumerate(rig.workers[MODEL])}}
        for name, pid in roots.items():
            for i, process in enumerate(tree(pid)):
                try:
                    mib = process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
                self.rss_mib.setdefault(name if i == 0 else f"{name}, child {i}", []).append(mib)


MODEL = "fake:dim=4"


@pytest.mark.timeout(3600)
def test_a_job_of_many_chunks_leaves_memory_flat_and_the_ledger_small(rig: Rig, tmp_path) -> None:
    """One row a chunk: every chunk is recorded once, nothing grows, and the queue keeps to the gate."""
    rig.shell.environment["PENSTOCK_MAX_QUEUED_CHUNKS"] = str(GATE)
    rig.shell.environment["PENSTOCK_BROKER_URL"] = rig.server.url  # the proxy would be the bottleneck
    for _ in range(2):
        rig.start_worker(MODEL, slots=SLOTS)
    before = rig.server.redis.info("memory")["used_memory"]
    corpus = rig.shell.folder / "many.txt"
    corpus.write_text("".join(f"record {i}\n" for i in range(CHUNKS)))
    out = rig.shell.folder / "many.npy"
    started = time.monotonic()
    client = rig.shell.start("encode", corpus, "--model", MODEL, "--chunk-rows", "1", "--out", out)
    watch = Watch()
    while client.poll() is None:
        watch.look(rig, client, ModelSpec.parse(MODEL).queue("encode"))
        time.sleep(0.2)
    seconds = time.monotonic() - started
    assert client.returncode == 0
    (job,) = rig.ledger.jobs()
    status = rig.ledger.status(job)
    assert (status.state, status.chunks, status.recorded, status.rows_done) == ("done", CHUNKS, CHUNKS, CHUNKS)
    vectors = np.load(out)
    n_different = len(np.unique(vectors, axis=0))
    tally = Tally(lost=CHUNKS - len(vectors), doubled=len(vectors) - n_different)
    per_chunk = rig.server.redis.memory_usage(keys.done(job), samples=0) / CHUNKS
    in_all = (rig.server.redis.info("memory")["used_memory"] - before) / CHUNKS
    growth = {name: _growth(seen) for name, seen in watch.rss_mib.items() if len(seen) >= 9}
    note = f"{CHUNKS:,} chunks in {seconds:.0f} s: {per_chunk:.0f} bytes of Redis a record, {in_all:.0f} in all; "
    REPORT.notes.append(note + f"queue {watch.longest_queue} of {GATE}; MiB at last {_last(watch)}, growth {growth}")
    print(REPORT.notes[-1])  # noqa: T201 - shown if the test fails
    REPORT.add(f"none: {CHUNKS:,} chunks", tally, rows=CHUNKS, injected=0)
    assert tally == Tally()
    assert per_chunk < BYTES_A_CHUNK
    assert watch.longest_queue <= GATE
    assert max(growth.values(), default=0) < FLAT_MIB


def _growth(seen: list[float]) -> float:
    """Return how much higher the last third's peak is than all before."""
    third = len(seen) // 3
    return round(max(seen[-third:]) - max(seen[: 2 * third]), 1)


def _last(watch: Watch) -> dict[str, int]:
    return {name: round(seen[-1]) for name, seen in watch.rss_mib.items()}
