"""A broker, workers that come and go, and clients that need not stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from tasks.endings import EXIT_NOT_STARTED
from tasks.settings import GIB, MIB
from tests.acceptance.conftest import PATIENCE_S, Cluster, texts, tree, wait_until

SLOW = "fake:ms_per_row=5"


def check_every_row_once(out: Path, reference: Path, rows: int) -> None:
    """Compare a file with one that was made without any fault: same rows, ids and vectors, each once."""
    table, expected = pq.read_table(out), pq.read_table(reference)
    assert table["row"].to_pylist() == list(range(rows))
    assert table.equals(expected)
    assert table["error"].null_count == rows


def slot_processes(cluster: Cluster) -> list[psutil.Process]:
    """Return the processes of the ready slots."""
    return [psutil.Process(slot["pid"]) for slot in cluster.slots()]


def test_a_detached_job_is_done_without_a_client(cluster: Cluster) -> None:
    """The client uploads and goes; a worker that comes later does the job; collect reads it."""
    cluster.shell.write("corpus.txt", texts(300))
    done = cluster.shell.run("encode", "corpus.txt", "--model", "fake", "--detach", "--chunk-rows", 10)
    job = done.stdout.strip()
    assert "no live worker serves fake" in done.stderr
    assert "penstock worker --model fake --broker" in done.stderr
    assert cluster.shell.json("status", job)["state"] == "running"
    cluster.start_worker("fake")
    result = cluster.shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["chunks_done"]) == ("done", 300, 30)
    cluster.shell.run("collect", job, "--out", "v.npy")
    assert np.load(cluster.shell.folder / "v.npy").shape == (300, 32)


def test_killing_a_slot_in_mid_chunk_loses_and_doubles_no_row(cluster: Cluster) -> None:
    """SIGKILL takes a slot; its chunk is done by another, and a new slot takes its place."""
    shell = cluster.shell
    corpus = shell.write("corpus.txt", texts(600))
    cluster.start_worker(SLOW)
    shell.run("encode", corpus, "--model", SLOW, "--chunk-rows", 30, "--out", "reference.parquet")
    job = shell.json("encode", corpus, "--new", "--model", SLOW, "--chunk-rows", 30, "--detach")["job"]
    wait_until(lambda: cluster.done_chunks(job) >= 2, "the job is under way")
    victim = wait_until(lambda: next((s["pid"] for s in cluster.slots() if s["claim"]), None), "a chunk is in work")
    psutil.Process(victim).kill()
    result = shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 600, 0)
    shell.run("collect", job, "--out", "v.parquet")
    check_every_row_once(shell.folder / "v.parquet", shell.folder / "reference.parquet", 600)
    wait_until(lambda: len(cluster.slots()) == 2, "a new slot took its place")
    assert victim not in {slot["pid"] for slot in cluster.slots()}


def test_killing_the_whole_node_and_starting_another_loses_and_doubles_no_row(cluster: Cluster) -> None:
    """SIGKILL takes parent and slots at once; the next node finds the chunks that they held."""
    shell = cluster.shell
    corpus = shell.write("corpus.txt", texts(600))
    worker = cluster.start_worker(SLOW)
    shell.run("encode", corpus, "--model", SLOW, "--chunk-rows", 30, "--out", "reference.parquet")
    job = shell.json("encode", corpus, "--new", "--model", SLOW, "--chunk-rows", 30, "--detach")["job"]
    wait_until(lambda: cluster.done_chunks(job) >= 2, "the job is under way")
    family = tree(worker.pid)
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
    assert cluster.done_chunks(job) < 20
    shell.start("worker", "--model", SLOW, "--devices", "cpu", "--processes-per-device", 2)
    result = shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 600, 0)
    shell.run("collect", job, "--out", "v.parquet")
    check_every_row_once(shell.folder / "v.parquet", shell.folder / "reference.parquet", 600)


def test_a_killed_node_takes_its_slots_along(cluster: Cluster) -> None:
    """The parent alone is killed; its slots do not live on."""
    worker = cluster.start_worker("fake")
    slots = slot_processes(cluster)
    psutil.Process(worker.pid).kill()
    _, left = psutil.wait_procs(slots, timeout=20)
    assert left == []


def test_sigterm_lets_a_worker_finish_its_chunk_and_exit_zero(cluster: Cluster) -> None:
    """No chunk is lost and none counts as failed when a worker is told to stop."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(300))
    worker = cluster.start_worker(SLOW)
    job = shell.json("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 30, "--detach")["job"]
    wait_until(lambda: cluster.done_chunks(job) >= 1, "the job is under way")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert cluster.slots() == []
    assert shell.json("status", job)["failed_rows"] == 0
    cluster.shell.start("worker", "--model", SLOW, "--devices", "cpu")
    assert shell.json("wait", job)["rows_done"] == 300


def test_a_broker_that_dies_and_comes_back_costs_no_row_no_model_and_no_client(cluster: Cluster) -> None:
    """Kill and restart it in mid-job: the waiting client goes on, and no slot loads its model again."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(600))
    cluster.start_worker(SLOW)
    before = {process.pid for process in slot_processes(cluster)}
    client = shell.start("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 20, "--out", "v.npy")
    wait_until(lambda: sum(slot["chunks"] for slot in cluster.slots()) >= 3, "the job is under way")
    cluster.break_broker()
    said = client.finish()
    assert client.returncode == 0, said
    assert np.load(shell.folder / "v.npy").shape == (600, 32)
    assert {process.pid for process in slot_processes(cluster)} == before


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    """Its tickets become void, waiting for it fails, and it cannot be retried."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(200))
    job = shell.json("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 10, "--detach")["job"]
    assert shell.json("cancel", job)["state"] == "cancelled"
    cluster.start_worker(SLOW)
    assert "was cancelled" in shell.run("wait", job, code=1).stderr
    assert "is cancelled" in shell.run("retry", job, code=2).stderr
    assert shell.json("status", job)["rows_done"] == 0


def test_workers_shows_who_works(cluster: Cluster) -> None:
    """Host, slot, device, memory, model, chunks done, tokens/s, last seen."""
    cluster.shell.write("corpus.txt", texts(20))
    cluster.start_worker("fake", processes=1)
    cluster.shell.run("encode", "corpus.txt", "--model", "fake", "--out", "v.npy", "--chunk-rows", 5)
    (slot,) = wait_until(lambda: [s for s in cluster.slots() if s["chunks"] == 4], "the slot reported its chunks")
    assert (slot["device"], slot["model"]) == ("cpu", "fake")
    assert slot["tokens_per_s"] > 0
    (slot,) = wait_until(lambda: [s for s in cluster.slots() if s["memory"]], "the slot reported its memory")
    (cpu,) = slot["memory"]
    assert cpu["device"] == "cpu"
    assert 20 * MIB < cpu["used_bytes"] < cpu["total_bytes"]
    assert [one["balance"] for one in cluster.shell.json("workers")] == [None]
    shown = cluster.shell.run("workers").stdout
    assert slot["slot"] in shown
    assert f" of {cpu['total_bytes'] / GIB:.1f} GiB " in shown


def test_two_stores_that_differ_are_refused_by_name(cluster: Cluster) -> None:
    """A client with another store than the workers' hears of it before it uploads."""
    cluster.shell.write("corpus.txt", texts(20))
    cluster.start_worker("fake", processes=1)
    other = (cluster.shell.folder / "other").as_uri()
    done = cluster.shell.run("encode", "corpus.txt", "--model", "fake", "--store", other, "--out", "v.npy", code=3)
    assert "use the store with id" in done.stderr
    assert other in done.stderr


def test_a_worker_with_another_store_refuses_the_job_by_name(cluster: Cluster) -> None:
    """The worker comes after the upload: the waiting client is told, instead of left waiting."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(20))
    job = shell.json("encode", "corpus.txt", "--model", "fake", "--detach")["job"]
    shell.start(
        *("worker", "--model", "fake", "--devices", "cpu", "--processes-per-device", "1"),
        *("--store", (shell.folder / "other").as_uri()),
    )
    done = shell.run("wait", job, code=3)
    assert "No worker takes job" in done.stderr
    assert "start both sides with the same --store" in done.stderr
    assert shell.json("status", job)["refusals"]


def test_without_a_store_a_small_job_lives_in_redis_and_a_large_one_is_refused(cluster: Cluster) -> None:
    """The broker is the default store of a cluster, up to a size."""
    shell = cluster.shell
    del shell.environment["PENSTOCK_STORE_URL"]
    shell.write("small.txt", texts(200))
    cluster.start_worker("fake", processes=1)
    assert shell.json("encode", "small.txt", "--model", "fake", "--out", "v.npy")["rows_done"] == 200
    shell.environment["PENSTOCK_REDIS_STORE_LIMIT_BYTES"] = "10000"
    done = shell.run("encode", "small.txt", "--model", "fake", "--chunk-rows", 50, code=2)
    assert "--store" in done.stderr


def test_a_worker_whose_model_cannot_be_loaded_ends_with_the_reason(cluster: Cluster) -> None:
    """An exit code of its own, so that a supervisor does not start it again, and one line that says why."""
    worker = cluster.shell.start("worker", "--model", "fake:bad=1", "--devices", "cpu", "--processes-per-device", "1")
    said = worker.finish()
    assert worker.returncode == EXIT_NOT_STARTED, said
    assert "options are dim, limit, ms_per_row" in said


def test_more_slots_work_than_tickets_wait(cluster: Cluster) -> None:
    """The gate limits the queue, not the work."""
    cluster.shell.environment["PENSTOCK_MAX_QUEUED_CHUNKS"] = "1"
    cluster.shell.write("corpus.txt", texts(200))
    cluster.start_worker(SLOW, processes=2)
    job = cluster.shell.json("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 50, "--detach")["job"]
    wait_until(lambda: sum(bool(slot["claim"]) for slot in cluster.slots()) == 2, "both slots are at work")
    assert cluster.shell.json("wait", job)["rows_done"] == 200


def test_a_job_with_failed_rows_is_retried(cluster: Cluster) -> None:
    """Chunks that were given up count as failed rows, and retry runs them again, and only them."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(90))
    shell.environment["PENSTOCK_MAX_ATTEMPTS"] = "1"
    worker = cluster.start_worker("fake:ms_per_row=30", processes=1)
    job = shell.json("encode", "corpus.txt", "--model", "fake:ms_per_row=30", "--chunk-rows", 30, "--detach")["job"]
    victim = wait_until(lambda: next((s["pid"] for s in cluster.slots() if s["claim"]), None), "a chunk is in work")
    psutil.Process(victim).kill()
    result = shell.json("wait", job, code=1)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 90, 30)
    shown = shell.json("status", job)["errors"]
    assert len(shown) == 10
    assert "given up: 1 attempt at its chunk" in shown[0]["error"]
    assert shell.json("retry", job)["chunks_retried"] == 1
    result = shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 90, 0)
    assert worker.poll() is None


def test_a_node_without_an_engine_refuses_to_consume(cluster: Cluster) -> None:
    """Celery's own command without workers.boot would swallow tickets."""
    done = celery(cluster, "worker", code=1)
    assert "This node has no engine" in done.stderr


def test_celery_inspect_sees_the_node(cluster: Cluster) -> None:
    """`celery -A tasks.app inspect` answers, so operators' habits work."""
    cluster.start_worker("fake", processes=1)
    assert "1 node online" in celery(cluster, "inspect", "active").stdout


def celery(cluster: Cluster, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of Celery on penstock's application."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks.app", *arguments],
        env={**cluster.shell.environment, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_client_waits_with_a_clear_line_when_nobody_works(cluster: Cluster) -> None:
    """After a while it names the model and the command that starts a worker."""
    cluster.shell.write("corpus.txt", texts(5))
    client = cluster.shell.start("encode", "corpus.txt", "--model", "fake", "--out", "v.npy")
    wait_until(lambda: "No live worker serves fake" in client.said(), "it says that nobody works")
    assert "penstock worker --model fake" in client.said()
    client.send_signal(signal.SIGINT)
    rest = client.finish()
    assert "goes on without this command" in rest
    assert client.returncode == 130
