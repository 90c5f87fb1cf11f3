"""Workers that are told to stop, or to take no more: no chunk is blamed for it."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.conftest import Cluster, Started, texts, wait_until

#: A chunk of ten rows takes three seconds.
SLOW = "fake:ms_per_row=300"


def submit_and_start(cluster: Cluster, grace_s: float) -> tuple[str, Started]:
    """Submit two slow chunks and start a worker of two slots that both have one in work."""
    cluster.shell.environment["PENSTOCK_GRACE_S"] = str(grace_s)
    cluster.shell.write("corpus.txt", texts(20))
    worker = cluster.start_worker(SLOW)
    job = cluster.shell.json("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 10, "--detach")["job"]
    wait_until(lambda: all(slot["claim"] for slot in cluster.slots()), "both slots are at work")
    return job, worker


def check_handed_back(cluster: Cluster, job: str) -> None:
    """Both chunks are free and not blamed, and another worker does them."""
    ledger = cluster.ledger()
    spec = ledger.spec(job)
    assert ledger.leases(spec) == []
    assert set(ledger.redis.hvals(f"penstock:job:{job}:attempts")) <= {"0"}
    assert not any(name.endswith(":now") for name in ledger.redis.hkeys(f"penstock:job:{job}:journal"))
    cluster.start_worker(SLOW)
    result = cluster.shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 20, 0)


@pytest.mark.parametrize(
    ("grace_s", "signals"),
    [(0.2, [signal.SIGTERM]), (60, [signal.SIGQUIT]), (60, [signal.SIGINT, signal.SIGINT])],
    ids=["SIGTERM and no time left", "SIGQUIT", "Ctrl-C twice"],
)
def test_a_worker_that_may_not_finish_hands_its_chunks_back(
    cluster: Cluster, grace_s: float, signals: list[signal.Signals]
) -> None:
    """It exits with 0, and the chunks wait for nobody."""
    job, worker = submit_and_start(cluster, grace_s)
    for number in signals:
        worker.send_signal(number)
    assert worker.wait(30) == 0
    assert cluster.slots() == []
    check_handed_back(cluster, job)


def test_a_slot_that_is_ended_on_purpose_hands_its_chunk_back(cluster: Cluster) -> None:
    """Service managers send SIGTERM to every process of a unit."""
    job, worker = submit_and_start(cluster, 0.2)
    for slot in cluster.processes():
        slot.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    check_handed_back(cluster, job)


def test_a_drained_node_finishes_its_chunks_and_takes_no_more(cluster: Cluster) -> None:
    """It is shown as drained, and what waits is for others."""
    cluster.shell.write("corpus.txt", texts(100))
    model = "fake:ms_per_row=100"
    cluster.start_worker(model)
    job = cluster.shell.json("encode", "corpus.txt", "--model", model, "--chunk-rows", 5, "--detach")["job"]
    wait_until(lambda: all(slot["claim"] for slot in cluster.slots()), "both slots are at work")
    (node,) = {slot["node"] for slot in cluster.slots()}
    done = cluster.shell.run("worker", "--drain", node)
    assert done.stdout.startswith(f"{node} takes no more tickets; ")
    wait_until(
        lambda: [(slot["state"], slot["claim"]) for slot in cluster.shell.json("workers")] == [("drained", "")] * 2,
        "the node has nothing in work",
    )
    before = cluster.shell.json("status", job)["chunks_done"]
    assert before < 20
    cluster.start_worker(model)
    result = cluster.shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 100, 0)
    drained = [slot for slot in cluster.shell.json("workers") if slot["state"] == "drained"]
    assert sum(slot["chunks"] for slot in drained) == before


def test_draining_a_node_that_is_not_there_names_those_that_are(cluster: Cluster) -> None:
    """A typo does not look like success."""
    assert "no such live node; there are: none." in cluster.shell.run("worker", "--drain", "gpu7", code=2).stderr
