"""Jobs that are removed, at once or by their age."""

from __future__ import annotations

from pathlib import Path

from tasks import broker
from tasks.ledger import Ledger
from tests.acceptance.conftest import Cluster, Shell, texts, wait_until


def objects_of(folder: Path) -> list[Path]:
    """Return the files that a store has of jobs."""
    return [path for part in ("jobs", "manifests") for path in (folder / part).rglob("*") if path.is_file()]


def test_a_job_is_removed_from_ledger_and_store(cluster: Cluster) -> None:
    """Only once it is over; what was freed is said, and the same command computes anew."""
    shell, store = cluster.shell, cluster.shell.folder / "shared"
    shell.write("corpus.txt", texts(20))
    command = ("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 10)
    job = shell.json(*command, "--detach")["job"]
    refused = shell.run("remove", job, code=2)
    assert f"Job {job} is running: `penstock cancel {job}` comes first." in refused.stderr
    cluster.start_worker("fake", processes=1)
    shell.run("wait", job)
    size = sum(path.stat().st_size for path in (store / "jobs").rglob("*") if path.is_file())
    foreseen = shell.json("remove", job, "--dry-run")
    assert (foreseen["objects"], foreseen["size_bytes"], foreseen["dry_run"]) == (4, size, True)
    assert objects_of(store)
    freed = shell.run("remove", job)
    assert "1 job removed: 4 objects" in freed.stdout
    assert objects_of(store) == []
    assert shell.json("jobs") == []
    assert f"No job '{job}'" in shell.run("remove", job, code=2).stderr
    assert shell.json(*command, "--out", "v.npy")["job"] != job


def test_old_jobs_are_removed_together(cluster: Cluster) -> None:
    """Those that ended longer ago; jobs that run, and younger ones, stay."""
    shell = cluster.shell
    shell.write("corpus.txt", texts(5))
    ended, running = (shell.json("encode", "corpus.txt", "--model", "fake", "--new", "--detach")["job"] for _ in "ab")
    shell.run("cancel", ended)
    assert shell.json("remove", "--ended-before", "1h")["jobs"] == []
    found = wait_until(lambda: shell.json("remove", "--ended-before", "0s")["jobs"], "the job is a moment old")
    assert [one["job"] for one in found] == [ended]
    assert [one["job"] for one in shell.json("jobs")] == [running]
    assert "is no duration" in shell.run("remove", "--ended-before", "soon", code=2).stderr
    assert "--ended-before AGE" in shell.run("remove", code=2).stderr


def test_a_removal_that_was_interrupted_is_finished_by_the_same_command(cluster: Cluster) -> None:
    """Until then the job counts as cancelled; what the ledger lost already is removed from the store."""
    shell, store = cluster.shell, cluster.shell.folder / "shared"
    shell.write("corpus.txt", texts(20))
    cluster.start_worker("fake", processes=1)
    jobs = [shell.json("encode", "corpus.txt", "--model", "fake", "--new", "--out", f"{i}.npy")["job"] for i in "ab"]
    with broker.connect(cluster.server.url) as client:
        ledger = Ledger(client, cluster.server.url)
        for job in jobs:
            ledger.withdraw(ledger.spec(job))
        for path in (store / "manifests").rglob("*.json"):
            path.unlink()
        ledger.remove(ledger.spec(jobs[1]))
    assert "was cancelled (it is being removed)" in shell.run("collect", jobs[0], "--out", "v.npy", code=1).stderr
    assert [one["objects"] for one in shell.json("remove", *jobs)["jobs"]] == [2, 2]
    assert objects_of(store) == []


def test_an_embedded_job_is_removed_with_its_state_folder(shell: Shell) -> None:
    """Whatever was in it."""
    shell.write("corpus.txt", texts(5))
    job = shell.json("encode", "corpus.txt", "--model", "fake")["job"]
    (run,) = (shell.folder / "state" / "penstock" / "runs").iterdir()
    assert shell.json("remove", job)["objects"] == 2
    assert not run.exists()
