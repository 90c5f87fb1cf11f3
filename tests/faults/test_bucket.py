"""A store in a bucket that fails, and slots that are killed between any two steps on the way of a chunk."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pyarrow as pa
import pytest

from tests.faults.accounting import FLAWLESS
from tests.faults.conftest import by_size
from tests.faults.proxy import Act, Link, Proxy, Trap, Verdict
from tests.faults.rig import SLOW, Rig, now, open_rig, wait_until
from tests.faults.steps import STEPS_OF_A_CHUNK, Step, chunk_of, evalsha, job_of

#: What S3 answers when it has trouble, and when it has too much to do.
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
THROTTLED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
)
THROTTLED = THROTTLED % len(_SLOW_DOWN) + _SLOW_DOWN
TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[Proxy]:
    """A proxy before an S3 server with a bucket."""
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    parts = urlsplit(s3_endpoint)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        made = boto3.resource("s3").Bucket("corpora")
        made.create()
        proxy = Proxy(lambda: socket.create_connection((parts.hostname, parts.port)))
        yield proxy
        proxy.close()
        made.objects.delete()
        made.delete()


@pytest.fixture(scope="module")
def module_rig(expected: pa.Table, bucket: Proxy) -> Iterator[Rig]:
    """A cluster whose processes reach the bucket through the proxy."""
    folder = Path(tempfile.mkdtemp(prefix="pst-"))
    endpoint = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*bucket.address)}
    with open_rig(folder, expected, "s3://corpora/penstock", endpoint) as rig:
        yield rig
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _mended(bucket: Proxy) -> Iterator[None]:
    """Break nothing in the next test."""
    yield
    bucket.clear()


@pytest.mark.parametrize("step", STEPS_OF_A_CHUNK, ids=lambda step: step.name)
def test_a_slot_that_is_killed_between_two_steps_costs_one_attempt(rig: Rig, bucket: Proxy, step: Step) -> None:
    """Wherever its slot dies, a chunk has one result in the end, and the ledger counted one claim more."""
    # A slot is caught at computing by its heartbeat, for which a chunk has to last.
    model, rows = ("fake:ms_per_row=70", 60) if step.name == "compute" else (SLOW, 150)
    for _ in range(by_size(1, 10)):
        rig.need_worker(model, slots=2)
        kill_once_at(step, rig, bucket, model, rows)
        rig.proxy.clear()
        bucket.clear()


def kill_once_at(step: Step, rig: Rig, bucket: Proxy, model: str, rows: int) -> None:
    """Run a job in which one slot is killed at a step, and check what became of its chunk."""
    killed: list[int] = []
    claims: dict[int, int] = {}

    def kill(link: Link, data: bytes) -> Verdict:
        killed.append(chunk_of(link.request))
        return rig.kill_owner(link, data)

    def observe(link: Link, _: bytes) -> Verdict:
        chunk = chunk_of(link.request)
        claims[chunk] = rig.attempts(job_of(link.request), chunk)
        return Verdict.FORWARD

    rig.proxy.set(Trap(evalsha("record"), observe, times=None))
    (bucket if step.is_in_store else rig.proxy).set(Trap(step.request, kill, reply=step.reply))
    job = rig.submit(rows, model)
    wait_until(lambda: killed, "the slot is killed")
    since = now()
    wait_until(lambda: rig.is_recorded(job, killed[0]), "its chunk is done")
    assert rig.settle(f"slot killed: {step.name}", job, recoveries_s=[now() - since]) == FLAWLESS
    assert step.attempts in {0, claims[killed[0]]}
    assert set(claims.values()) <= {1, step.attempts}


def answer(data: bytes) -> Act:
    """Return an act that answers in the store's place."""
    return lambda link, _: link.answer(data)


READ, WRITE = b"GET /corpora/penstock/jobs/", b"PUT /corpora/penstock/jobs/"


@pytest.mark.parametrize("request_", [READ, WRITE], ids=["read", "write"])
@pytest.mark.parametrize(
    ("fault", "act", "reply"),
    [
        ("500", answer(BROKEN), None),
        ("503", answer(AWAY), None),
        ("throttled, 503 SlowDown", answer(THROTTLED), None),
        ("throttled, 429", answer(TOO_MANY), None),
        ("request cut in the middle", Link.tear_request, None),
        ("answer cut in the middle", Link.tear_answer, b"HTTP/1.1 200"),
        ("reply lost", lambda *_: Verdict.CUT, b"HTTP/1.1 200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_store_that_fails_for_a_while_costs_nothing(
    rig: Rig, bucket: Proxy, fault: str, act: Act, reply: bytes | None, request_: bytes
) -> None:
    """Reads and writes of chunks fail for some requests in a row; then the work goes on."""
    rig.need_worker()
    times = by_size(3, 30)
    trap = bucket.set(Trap(request_, act, reply=reply, times=times))
    since = now()
    job = rig.submit(by_size(60, 300))
    recovery_s = rig.recovery_s(job, since)
    assert rig.settle(f"S3: {fault}", job, injected=times, recoveries_s=[recovery_s]) == FLAWLESS
    assert trap.sprung == times


def test_a_slow_store_costs_nothing(rig: Rig, bucket: Proxy) -> None:
    """Each block takes a while; leases are kept meanwhile."""
    rig.need_worker()
    bucket.delay_s = by_size(0.3, 2.0)
    job = rig.submit(by_size(60, 300))
    assert rig.settle("S3: slow", job) == FLAWLESS
