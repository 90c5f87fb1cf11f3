"""What a chunk costs outside the model, against a Celery task that does nothing, on the same broker in the same run.

    python tests/benchmarks/chunk_cost.py [CHUNKS]

Both have eight prefork processes and the same settings of delivery, and both are measured from the first publication:
chunks until the last one is recorded and the job over, empty tasks until a process has taken the last one. A chunk is
a short row for the fake engine: written to the store, announced, published, claimed, read, encoded, written, recorded.
Half of the empty tasks run before the chunks and half after, so that a change of the machine's load meets both. Fails
if a chunk is lost or doubled, or costs more than three empty tasks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from producer.client import Client
from tasks import broker, delivery, lifeline
from tasks.settings import Settings

MODEL = "fake:dim=16"
PROCESSES = 8
N_CHUNKS = 10_000
#: Empty tasks a chunk may cost.
LIMIT = 3.0
#: Seconds that the processes of both get to start.
START_S = 120.0
#: Seconds between two looks at the queue.
POLL_S = 0.005


def main() -> int:
    """Measure, print the figures. Returns 1 if something was lost or doubled, or a chunk costs too much."""
    n_chunks = int(sys.argv[1]) if len(sys.argv) > 1 else N_CHUNKS
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder), chunk_rows=1)
        with Client.embedded(settings=settings) as client:
            client.start_workers(MODEL, PROCESSES)
            wait_until(lambda: sum(slot.state == "ready" for slot in client.live_slots()) == PROCESSES)
            with empty_worker(str(client.settings.broker_url)):
                run_empty_tasks(client, 10 * PROCESSES)  # until all its processes are up
                before_s = run_empty_tasks(client, n_chunks // 2)
                chunks_s, faults = run_chunks(client, n_chunks)
                after_s = run_empty_tasks(client, n_chunks // 2)
    empty_ms = 1000 * (before_s + after_s) / (n_chunks // 2 * 2)
    chunk_ms = 1000 * chunks_s / n_chunks
    print("| | tasks/s | ms each |\n|---|---:|---:|")
    for what, each_ms in (("empty Celery task", empty_ms), ("chunk", chunk_ms)):
        print(f"| {what} | {1000 / each_ms:,.0f} | {each_ms:.2f} |")
    print(f"\n{n_chunks:,} chunks, {PROCESSES} slots: {faults or 'none lost, none doubled'}")
    print(f"a chunk costs {chunk_ms / empty_ms:.2f} empty tasks (target: at most {LIMIT:g})")
    return int(bool(faults) or chunk_ms > LIMIT * empty_ms)


@contextlib.contextmanager
def empty_worker(url: str) -> Iterator[None]:
    """Run Celery's worker for the empty task."""
    command = [
        *(
            sys.executable,
            "-m",
            "celery",
            "--quiet",
            "-A",
            "noop",
            "worker",
            "--queues",
            "noop",
            "--hostname",
            "noop@%h",
        ),
        *("--pool", "prefork", "--concurrency", str(PROCESSES), "--loglevel", "ERROR"),
        *("--without-gossip", "--without-mingle"),
    ]
    environment = {**os.environ, "NOOP_BROKER_URL": url, "PYTHONPATH": str(Path(__file__).parent)}
    environment["PYTHONWARNINGS"] = "ignore"  # Celery warns of running as root
    process = subprocess.Popen(
        lifeline.command(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()


def run_empty_tasks(client: Client, n_tasks: int) -> float:
    """Publish empty tasks and wait until the last one was taken. Returns the seconds."""
    app = delivery.make_app(str(client.settings.broker_url))
    with broker.connect(str(client.settings.broker_url)) as redis, app.producer_or_acquire() as producer:
        started = time.perf_counter()
        for i in range(n_tasks):
            app.send_task("noop", args=("encode-0", i, 1), queue="noop", task_id=f"noop:{i}", producer=producer)
        wait_until(lambda: redis.llen("noop") == 0, limit_s=START_S + n_tasks)
        seconds = time.perf_counter() - started
    app.close()
    return seconds


def run_chunks(client: Client, n_chunks: int) -> tuple[float, str]:
    """Encode one row a chunk. Returns the seconds from submission to the last receipt, and what went wrong."""
    texts = [f"row {i} of a corpus of short rows" for i in range(n_chunks)]
    started = time.perf_counter()
    job = client.encode(iter(texts), model=MODEL)
    status = job.wait()
    seconds = time.perf_counter() - started
    vectors = job.vectors()
    n_unique = len(np.unique(vectors, axis=0))
    is_right = (status.recorded, status.rows_done, len(vectors), n_unique) == (n_chunks,) * 4 and not status.failed_rows
    faults = f"recorded {status.recorded:,}, rows {status.rows_done:,}, vectors {len(vectors):,}, distinct {n_unique:,}"
    return seconds, "" if is_right else faults


def wait_until(is_true, limit_s: float = START_S) -> None:
    """Look until something is true."""
    deadline = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline:
            sys.exit("nothing happens any more")
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
