"""What lies in the queue that should not, and what must not pile up there."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import pytest

from tasks import delivery
from tasks.messages import ModelSpec
from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.rig import SLOW, Rig, wait_until

QUEUE = ModelSpec.parse(SLOW).queue("encode")


@pytest.fixture(autouse=True)
def _cleared(rig: Rig) -> Iterator[None]:
    """Leave no message to the next test."""
    yield
    rig.server.redis.delete(QUEUE)


def ticket(job: str, *, version: int = 1, **changes: object) -> str:
    """Return the message of a ticket as Celery writes it, with changes at its top."""
    arguments = [[job, 0, version], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    message = {
        "body": base64.b64encode(json.dumps(arguments).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "penstock.encode", "id": f"{job}:0", "root_id": job},
        "properties": {
            "correlation_id": f"{job}:0",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_mode": 2,
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "a0b1",
        },
    }
    return json.dumps({**message, **changes})


def test_three_copies_of_each_ticket_are_void_but_one(rig: Rig) -> None:
    """Every ticket is in the queue three times; each chunk is done once."""
    rig.need_worker()
    rows = by_size(300, 5000)
    job = rig.submit(rows)
    spec = rig.ledger.spec(job)
    for _ in range(2):
        delivery.publish(rig.client.app, spec, range(rows // 10))
    assert rig.settle("three copies of each ticket", job, injected=2 * rows // 10) == FLAWLESS
    status = rig.ledger.status(job)
    assert (status.recorded, status.rows_done) == (rows // 10, rows)


def test_garbage_in_the_queue_is_harmless(rig: Rig) -> None:
    """Undecodable messages, unknown tasks, tickets of other versions and of no job: the node lives, the job is done."""
    rig.need_worker()
    before = rig.pids()
    job = rig.submit(200)
    spec = rig.ledger.spec(job)
    garbage = [
        ticket("encode-0000000000"),
        ticket(job, version=99),
        ticket(job, headers={"lang": "py", "task": "os.system", "id": "x"}),
        ticket(job, headers={}),
        ticket(job, **{"content-type": "application/x-python-serialize"}),
        ticket(job, body="AAAA"),
        ticket("../../etc/passwd"),
        json.dumps({"body": "", "properties": {}}),
        "{}",
        "[]",
        "null",
        "not JSON at all",
        "\x00\xff",
        "",
    ]
    rig.server.redis.rpush(QUEUE, *garbage)
    assert rig.settle("garbage in the queue", job, injected=len(garbage)) == FLAWLESS
    later = rig.submit(50)
    delivery.publish(rig.client.app, spec, range(5))
    assert rig.settle("garbage in the queue", later, injected=5) == FLAWLESS
    assert rig.pids() == before


def test_a_ticket_of_an_unknown_version_is_kept_and_visible(rig: Rig) -> None:
    """A node that is older than the client does not delete what it cannot read."""
    rig.need_worker()
    job = rig.submit(50)
    rig.server.redis.rpush(QUEUE, ticket(job, version=99))
    assert rig.settle("ticket of an unknown version", job) == FLAWLESS
    wait_until(lambda: _is_kept(rig, job), "the ticket is parked")


def _is_kept(rig: Rig, job: str) -> bool:
    """Whether any list of the broker but the model's queue holds the ticket."""
    lists = [key for key in rig.server.redis.scan_iter(_type="list") if key != QUEUE]
    return any(f"{job}:0" in entry for key in lists for entry in rig.server.redis.lrange(key, 0, -1))


def test_the_gate_bounds_the_queue_while_nobody_works(rig: Rig) -> None:
    """No worker lives and tickets lapse again and again: there are never more of them than the gate lets through."""
    rig.stop_workers()
    settings = rig.client.settings
    rig.client.settings = settings.model_copy(update={"max_queued_chunks": 8, "ticket_s": 0.5})
    try:
        job = rig.submit(by_size(200, 5000))
        spec = rig.ledger.spec(job)
        longest = 0
        deadline = time.monotonic() + by_size(3, 60)
        while time.monotonic() < deadline:
            delivery.publish(rig.client.app, spec, rig.ledger.reconcile(spec))
            longest = max(longest, rig.server.redis.llen(QUEUE))
        assert 1 <= longest <= 8
    finally:
        rig.client.settings = settings
    rig.need_worker()
    assert rig.settle("no worker for a while, tickets lapsed", job) == FLAWLESS


def test_a_node_with_another_store_leaves_the_job_to_the_good_one(rig: Rig) -> None:
    """It refuses by name, and rests; the chunks are done by the node that has the job's store."""
    rig.stop_workers()
    rig.start_worker(slots=1, PENSTOCK_STORE_URL=(rig.shell.folder / "other").as_uri())
    rig.start_worker(slots=1)
    running = rig.start_encode(by_size(200, 2000))
    assert rig.settle_encode("a node with another store beside a good one", running) == FLAWLESS
    rig.stop_workers()
