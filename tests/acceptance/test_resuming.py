"""Clients on a cluster that die, are interrupted or come again: the same command goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks import broker
from tasks.ledger import Ledger
from tests.acceptance.conftest import Cluster, Started, texts, wait_until

ROWS = 400
#: Each row is a chunk of its own, so that the upload takes long enough to be caught at it.
COMMAND = ("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 1)


@pytest.fixture
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    """The cluster's ledger, to look into."""
    with broker.connect(cluster.server.url) as client:
        yield Ledger(client, cluster.server.url)


def start_upload(cluster: Cluster, ledger: Ledger, *arguments: str) -> tuple[Started, str]:
    """Start a client and wait until it has sent a part of its corpus. Returns the client and its job."""
    before = set(ledger.jobs())
    client = cluster.shell.start(*COMMAND, *arguments)
    job = wait_until(lambda: next(iter(set(ledger.jobs()) - before), None), "the job is made")
    wait_until(lambda: ledger.announced(job) >= 20, "a part is uploaded")
    return client, job


def test_a_client_that_was_killed_during_the_upload_is_continued_by_the_same_command(
    cluster: Cluster, ledger: Ledger
) -> None:
    """SIGKILL, twice; then the job has every row once, with the vectors of a run without any fault."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(ROWS))
    client, job = start_upload(cluster, ledger)
    client.kill()
    client.wait()
    announced = ledger.announced(job)
    assert announced < ROWS
    again = shell.start(*COMMAND)
    wait_until(lambda: ledger.announced(job) >= announced + 20, "the second client goes on")
    again.kill()
    again.wait()
    assert ledger.status(job).state == "submitting"
    cluster.start_worker("fake")
    done = shell.run(*COMMAND, "--out", "v.parquet")
    assert f"job: {job} of the same command is continued (submitting" in done.stderr
    assert "--new" in done.stderr
    assert ledger.jobs() == [job]
    shell.run("encode", "corpus.txt", "--model", "fake", "--out", "reference.parquet")
    table = pq.read_table(shell.folder / "v.parquet")
    assert table["row"].to_pylist() == list(range(ROWS))
    assert table.equals(pq.read_table(shell.folder / "reference.parquet"))


def test_ctrl_c_during_the_upload_leaves_the_job_to_the_same_command(cluster: Cluster, ledger: Ledger) -> None:
    """It says so, and `penstock cancel` drops the job; then the same command makes a new one."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(ROWS))
    client, job = start_upload(cluster, ledger)
    client.send_signal(signal.SIGINT)
    said = client.finish()
    assert client.returncode == 130
    assert "The same command goes on from here" in said
    assert f"penstock cancel {job}" in said
    assert ledger.status(job).state == "submitting"
    assert shell.json("cancel", job)["state"] == "cancelled"
    second = shell.json(*COMMAND, "--detach")["job"]
    assert second != job
    assert ledger.status(job).state == "cancelled"
    assert ledger.status(second).state == "running"


def test_standard_input_is_never_continued(cluster: Cluster, ledger: Ledger) -> None:
    """Nobody can read it again: Ctrl-C cancels the job."""
    reader, writer = os.pipe()
    client = cluster.shell.start("encode", "-", "--model", "fake", "--chunk-rows", 1, stdin=reader)
    os.close(reader)
    with os.fdopen(writer, "w") as stdin:
        stdin.writelines(f"{text}\n" for text in texts(3000))
        stdin.flush()
        job = wait_until(lambda: next(iter(ledger.jobs()), None), "the job is made")
        client.send_signal(signal.SIGINT)
        said = client.finish()
    assert f"job {job} is cancelled" in said
    assert ledger.status(job).state == "cancelled"


def test_a_job_that_runs_is_followed_and_one_that_is_done_is_collected(cluster: Cluster, ledger: Ledger) -> None:
    """Nothing is sent or computed again, unless with --new."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(40))
    job = shell.json(*COMMAND, "--detach")["job"]
    follower = shell.start(*COMMAND, "--out", "followed.npy")
    cluster.start_worker("fake")
    said = follower.finish()
    assert follower.returncode == 0, said
    assert f"job: {job} of the same command is continued (running" in said
    records = ledger.recorded(job, 0, 40)
    done = shell.run(*COMMAND, "--out", "collected.npy")
    assert f"job: {job} of the same command is continued (done, 40 rows done)" in done.stderr
    assert (ledger.jobs(), ledger.recorded(job, 0, 40)) == ([job], records)
    fresh = shell.json(*COMMAND, "--new", "--out", "fresh.npy")["job"]
    assert ledger.jobs() == [job, fresh]
    followed = np.load(shell.folder / "followed.npy")
    for name in ("collected.npy", "fresh.npy"):
        np.testing.assert_array_equal(np.load(shell.folder / name), followed)


def test_an_input_that_changed_behind_its_size_and_time_is_refused(cluster: Cluster, ledger: Ledger) -> None:
    """A job is never made of two versions of a file."""
    shell = cluster.shell
    corpus = shell.write("corpus.txt", texts(ROWS))
    client, job = start_upload(cluster, ledger)
    client.kill()
    client.wait()
    change_in_place(corpus)
    done = shell.run(*COMMAND, "--detach", code=2)
    assert "The input is not what it was" in done.stderr
    assert "--new" in done.stderr
    assert f"penstock cancel {job}" in done.stderr
    assert ledger.status(job).state == "submitting"
    assert shell.json(*COMMAND, "--new", "--detach")["job"] != job


def change_in_place(corpus: Path) -> None:
    """Change a file, but neither its size nor its time."""
    info, content = corpus.stat(), corpus.read_bytes()
    corpus.write_bytes(content.replace(b"record number 3 ", b"RECORD NUMBER 3 "))
    os.utime(corpus, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert corpus.stat().st_size == info.st_size


def test_two_clients_that_submit_the_same_at_the_same_time_do_no_harm(cluster: Cluster, ledger: Ledger) -> None:
    """Both end with every row once; a third one that comes later joins a job."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(ROWS))
    clients = [shell.start(*COMMAND, "--out", f"{i}.npy") for i in range(2)]
    wait_until(lambda: any(ledger.announced(job) >= 20 for job in ledger.jobs()), "an upload is under way")
    clients.append(shell.start(*COMMAND, "--out", "2.npy"))
    cluster.start_worker("fake")
    for client in clients:
        said = client.finish()
        assert client.returncode == 0, said
    assert len(ledger.jobs()) <= 2
    vectors = [np.load(shell.folder / f"{i}.npy") for i in range(3)]
    assert vectors[0].shape == (ROWS, 32)
    assert len(np.unique(vectors[0], axis=0)) == ROWS
    for other in vectors[1:]:
        np.testing.assert_array_equal(other, vectors[0])
