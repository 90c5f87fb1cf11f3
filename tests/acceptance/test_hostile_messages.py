"""Whoever can write to the broker: what a node makes of it, and what a person sees."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator

import pytest
from celery import Celery

from tasks import broker, delivery, keys
from tasks.ledger import Ledger
from tasks.messages import JobSpec, ModelSpec, new_job_id
from tasks.options import EncodeOptions
from tests.acceptance.conftest import Cluster, texts, wait_until

QUEUE = ModelSpec.parse("fake").queue("encode")


@pytest.fixture
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    """The broker's ledger."""
    with broker.connect(cluster.server.url) as client:
        yield Ledger(client, cluster.server.url)


def ticket(job: str, chunk: int = 0, version: int = 1, **headers: object) -> str:
    """Return the message of a ticket as Celery writes it."""
    arguments = [[job, chunk, version], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(arguments).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "penstock.encode", "id": f"{job}:{chunk}", **headers},
            "properties": {
                "correlation_id": f"{job}:{chunk}",
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "body_encoding": "base64",
                "delivery_tag": f"{job}{chunk}{version}",
            },
        }
    )


def encode(cluster: Cluster, rows: int = 50) -> str:
    """Run a job to its end and return its id."""
    corpus = cluster.shell.write("corpus.txt", texts(rows))
    arguments = ("--model", "fake", "--chunk-rows", 10, "--new", "--overwrite", "--out", "v.npy")
    result = cluster.shell.json("encode", corpus, *arguments)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", rows, 0)
    return str(result["job"])


def forge(ledger: Ledger, changes: dict[str, object]) -> str:
    """Put a job into the ledger whose spec is changed: one chunk, announced. Returns its id."""
    job = new_job_id()
    spec = JobSpec(job=job, model=ModelSpec.parse("fake"), options=EncodeOptions(), store_id="s", key=f"key-{job}")
    ledger.create(spec, gate=4, ticket_s=900)
    ledger.announce(spec, 0, 1, 1)
    text = json.dumps({**json.loads(spec.model_dump_json()), **changes})
    ledger.redis.hset(keys.job(job), "spec", text)
    return job


def test_garbage_in_the_queue_is_parked_and_the_node_goes_on(cluster: Cluster, ledger: Ledger) -> None:
    """Nothing of it runs, ends or wedges the node; `doctor` and `parked` show it, and it can be put back."""
    shell, client = cluster.shell, ledger.redis
    cluster.start_worker("fake", processes=1)
    before = {process.pid for process in cluster.processes()}
    trap = shell.folder / "pwned"
    bomb = pickle.dumps((eval, (f"open({str(trap)!r}, 'w')",)))
    garbage = [
        "not JSON",
        "x" * 5_000_000,
        bomb,
        ticket("encode-0000000000").replace("application/json", "application/x-python-serialize"),
        ticket("encode-0000000000", task="celery.map"),
        ticket("encode-0000000000", version=99),
        ticket("../../etc/passwd"),
        ticket("encode-0000000000", chunk=-1),
    ]
    client.lpush(QUEUE, *garbage)
    client.lpush(QUEUE, ticket("encode-0000000000"), ticket("encode-0000000000", chunk=2**31 - 1))  # void, not parked
    client.lpush(QUEUE, ticket("encode-0000000000", timelimit=[0.001, 0.001], eta="2099-01-01T00:00:00"))
    encode(cluster)
    assert {process.pid for process in cluster.processes()} == before
    assert not trap.exists()
    found = shell.json("parked")
    assert len(found) == len(garbage)
    assert {message["queue"] for message in found} == {QUEUE}
    assert "a ticket of version 99; this node reads version 1" in {message["why"] for message in found}
    assert "parked messages: 8 that no node could read" in shell.run("doctor", "--model", "fake", code=1).stdout
    assert shell.json("parked", "--requeue") == {"requeued": len(garbage) - 1, "dropped": 1}
    wait_until(lambda: len(shell.json("parked")) == len(garbage) - 1, "the node parked them again")
    assert shell.json("parked", "--drop") == {"requeued": 0, "dropped": len(garbage) - 1}
    assert "no parked messages" in shell.run("parked").stderr
    encode(cluster)


def test_a_node_answers_questions_and_takes_no_orders(cluster: Cluster) -> None:
    """Over the broker it says what it is; nobody can stop it, give it a queue, or end its tasks from there."""
    cluster.start_worker("fake", processes=1)
    app: Celery = delivery.make_app(cluster.server.url)
    ask = app.control.broadcast
    assert app.control.ping(timeout=5, limit=1)

    def consumes() -> bool:
        (queues,) = app.control.inspect(timeout=5, limit=1).active_queues().values()
        return QUEUE in {queue["name"] for queue in queues}

    wait_until(consumes, "the node takes tickets")
    for order in ("shutdown", "pool_shrink", "add_consumer", "cancel_consumer", "terminate", "revoke", "time_limit"):
        (answer,) = ask(order, reply=True, timeout=5, limit=1, arguments={})
        assert "error" in str(answer)
    app.close()
    encode(cluster)


def test_a_job_of_a_newer_release_is_left_alone_beside_a_good_one(cluster: Cluster, ledger: Ledger) -> None:
    """The node that cannot read it says so by name, once, and does what it can read; the newer job stays as it is."""
    shell = cluster.shell
    newer = forge(ledger, {"version": 2, "compression": "zstd"})
    worker = cluster.start_worker("fake", processes=1)
    ledger.redis.lpush(QUEUE, ticket(newer))
    good = encode(cluster)
    wait_until(lambda: ledger.refusals(newer), "the slot refused it")
    (why,) = ledger.refusals(newer).values()
    assert "has a spec of version 2; this release reads version 1" in why
    assert ledger.redis.hgetall(f"{keys.job(newer)}:attempts") == {"0": "0"}
    assert newer in ledger.active_jobs()
    listed = shell.run("jobs", "--json")
    assert [job["job"] for job in json.loads(listed.stdout)] == [good]
    assert "spec of version 2" in listed.stderr
    assert "Upgrade it" in shell.run("status", newer, code=1).stderr
    worker.terminate()
    said = worker.finish()
    assert said.count(f"Job left to others: Job {newer}") <= 1


def test_a_forged_job_makes_a_node_do_nothing_else_than_it_was_started_for(cluster: Cluster, ledger: Ledger) -> None:
    """Another model, store, option or job: it is refused or fails, loads nothing, and the next job is done."""
    cluster.start_worker("fake", processes=1)
    before = {process.pid for process in cluster.processes()}
    forgeries: list[dict[str, object]] = [
        {"model": {"engine": "sentence_transformer", "name": "/evil", "revision": None}},
        {"store_id": "another-store"},
        {"options": {"trust_remote_code": True}},
        {"job": "encode-of-another"},
    ]
    jobs = []
    for changes in forgeries:
        jobs.append(forge(ledger, changes))
        ledger.redis.lpush(QUEUE, ticket(jobs[-1]))
    wait_until(lambda: all(ledger.refusals(job) for job in jobs), "the slot refused all of them")
    assert [ledger.recorded(job, 0, 1) for job in jobs] == [[]] * len(jobs)
    encode(cluster)
    assert {process.pid for process in cluster.processes()} == before


def test_a_node_with_a_key_does_what_is_signed_and_nothing_else(cluster: Cluster, ledger: Ledger) -> None:
    """Signed by a client with the same file: done. Unsigned tickets are parked, unsigned jobs are left alone."""
    shell = cluster.shell
    file = shell.folder / "keys"
    file.write_text("0123456789abcdef" * 4)
    forged = forge(ledger, {})
    shell.environment["PENSTOCK_SIGNING_KEY_FILE"] = str(file)
    cluster.start_worker("fake", processes=1)
    ledger.redis.lpush(QUEUE, ticket(forged))
    job = encode(cluster)
    wait_until(lambda: shell.json("parked"), "the ticket is parked")
    assert [message["why"] for message in shell.json("parked")] == ["not signed"]
    assert ledger.redis.hget(keys.job(job), "signature")
    assert ledger.recorded(forged, 0, 1) == []
    del shell.environment["PENSTOCK_SIGNING_KEY_FILE"]
    unsigned = shell.run("encode", "corpus.txt", "--model", "fake", "--new", "--detach").stdout.strip()
    wait_until(lambda: len(shell.json("parked")) > 1, "its tickets are parked")
    assert shell.json("status", unsigned)["rows_done"] == 0
    assert file.read_text() not in json.dumps(ledger.redis.hgetall(keys.job(job)))
