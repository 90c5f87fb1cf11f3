"""A broker that loses its data: jobs come back from the store, and nobody has to do anything."""

from __future__ import annotations

import subprocess

import pyarrow.parquet as pq

from producer.corpus import AHEAD_ROWS
from tasks import broker
from tests.acceptance.conftest import PATIENCE_S, PENSTOCK, Cluster, texts, wait_until

SLOW = "fake:ms_per_row=5"
ROWS, CHUNK_ROWS = 600, 20


def empty(cluster: Cluster) -> None:
    """Do what an operator does by mistake, or a failover to an empty replica."""
    with broker.connect(cluster.server.url) as client:
        client.flushall()


def done_chunks(cluster: Cluster) -> int:
    """Return how many chunks of the only job have results."""
    jobs = cluster.shell.json("jobs")
    return int(jobs[0]["chunks_done"]) if jobs else 0


def results(cluster: Cluster) -> int:
    """Return how many result objects lie in the store."""
    return sum(1 for _ in (cluster.shell.folder / "shared").glob("jobs/*/result/*.arrow"))


def check_every_row_once(cluster: Cluster, rows: int = ROWS) -> None:
    """Compare the output with that of a run without a fault."""
    table = pq.read_table(cluster.shell.folder / "v.parquet")
    assert table["row"].to_pylist() == list(range(rows))
    assert table["error"].null_count == rows


def test_a_flushed_broker_costs_a_waiting_client_nothing_but_time(cluster: Cluster) -> None:
    """Worker and client go on by themselves; what was done is not done again, and no model is loaded anew."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(ROWS))
    cluster.start_worker(SLOW)
    pids = {slot["pid"] for slot in cluster.slots()}
    client = shell.start(
        "encode", "corpus.txt", "--model", SLOW, "--chunk-rows", CHUNK_ROWS, "--out", "v.parquet", "--json"
    )
    wait_until(lambda: done_chunks(cluster) >= 5, "the job is under way")
    before = results(cluster)
    empty(cluster)
    said = client.finish()
    assert client.returncode == 0, said
    check_every_row_once(cluster)
    # Chunks that were in work at that moment may be done twice, those that were done may not.
    assert before >= 5
    assert results(cluster) <= ROWS / CHUNK_ROWS + len(pids)
    assert {slot["pid"] for slot in cluster.slots()} == pids


def test_a_flushed_broker_is_filled_again_by_the_workers_alone(cluster: Cluster) -> None:
    """The client went after the upload; it comes back when the job is done."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(ROWS))
    cluster.start_worker(SLOW)
    job = shell.json("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", CHUNK_ROWS, "--detach")["job"]
    wait_until(lambda: done_chunks(cluster) >= 3, "the job is under way")
    empty(cluster)
    wait_until(lambda: [found["job"] for found in shell.json("jobs")] == [job], "the job is back")
    assert shell.json("wait", job)["rows_done"] == ROWS
    shell.run("collect", job, "--out", "v.parquet")
    check_every_row_once(cluster)


def test_a_flushed_broker_does_not_end_an_upload(cluster: Cluster) -> None:
    """The client brings back what it sent, and sends the rest."""
    shell = cluster.shell
    cluster.start_worker("fake:ms_per_row=1")
    lines = [f"{line}\n" for line in texts(AHEAD_ROWS + ROWS)]
    command = ["encode", "-", "--model", "fake:ms_per_row=1", "--chunk-rows", "100", "--out", "v.parquet"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PENSTOCK, *command], cwd=shell.folder, env=shell.environment, text=True, **pipes) as client:
        try:
            client.stdin.writelines(lines[:-ROWS])
            client.stdin.flush()
            wait_until(lambda: done_chunks(cluster) >= 3, "the job is under way, and the client waits for more")
            empty(cluster)
            _, said = client.communicate("".join(lines[-ROWS:]), timeout=PATIENCE_S)
        finally:
            client.kill()
    assert client.returncode == 0, said
    check_every_row_once(cluster, len(lines))


def test_jobs_are_recovered_by_hand_where_nobody_remembers_the_broker(cluster: Cluster) -> None:
    """What was done comes back done, but for what is damaged; a second time changes nothing."""
    shell, store = cluster.shell, cluster.shell.environment["PENSTOCK_STORE_URL"]
    shell.write("corpus.txt", texts(100))
    arguments = ("--model", "fake", "--chunk-rows", 10, "--detach", "--new")
    worker = cluster.start_worker("fake")
    done = shell.json("encode", "corpus.txt", *arguments)["job"]
    shell.run("wait", done)
    worker.terminate()
    worker.wait(PATIENCE_S)
    waiting, cancelled = (shell.json("encode", "corpus.txt", *arguments)["job"] for _ in range(2))
    shell.run("cancel", cancelled)
    torn = next((shell.folder / "shared").glob(f"jobs/{done}/result/00000003-*"))
    torn.write_bytes(torn.read_bytes()[:-10])
    empty(cluster)
    assert shell.json("jobs") == []
    expected = {(done, "running", 10, 9, 1), (waiting, "running", 10, 0, 0), (cancelled, "cancelled", 10, 0, 0)}
    answer = shell.json("recover", store)
    assert answer["store"] == store
    assert {tuple(job.values()) for job in answer["jobs"]} == expected
    shown = shell.run("recover", store).stdout
    assert [line.split() for line in shown.splitlines() if done in line] == [[done, "running", "10", "9", "1"]]
    cluster.start_worker("fake")
    for job in (done, waiting):
        assert shell.json("wait", job)["rows_done"] == 100
    shell.run("collect", done, "--out", "v.parquet")
    check_every_row_once(cluster, 100)


def test_a_store_without_jobs_is_a_usage_error(cluster: Cluster) -> None:
    """Somebody named another one than they meant."""
    assert (
        "holds no job that could be recovered"
        in cluster.shell.run("recover", (cluster.shell.folder / "other").as_uri(), code=2).stderr
    )
