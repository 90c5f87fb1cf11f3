"""Fixtures that several test folders share."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis

from producer.embedded import server_binary
from tasks import broker, lifeline
from tasks.ledger import Ledger
from tasks.messages import JobSpec, ModelSpec
from tasks.options import EncodeOptions

pytest.register_assert_rewrite("tests.contracts")

# A shell starts its background commands with these ignored, and whatever the tests start would inherit that.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# The same examples in every run: a red build is red again at the desk.
hypothesis.settings.register_profile("penstock", deadline=None, derandomize=True)
hypothesis.settings.load_profile("penstock")

#: Seconds that a test waits for something that takes milliseconds.
DEADLINE_S = 20.0
#: Seconds between two looks.
POLL_S = 0.001


def wait_until(is_true: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S, poll_s: float = POLL_S) -> Any:
    """Look until something is true and return it; fail the test when the deadline passes."""
    deadline = time.monotonic() + deadline_s
    while not (found := is_true()):
        if time.monotonic() > deadline:
            pytest.fail(f"Not within {deadline_s} s: {what}")
        time.sleep(poll_s)
    return found


@pytest.fixture(scope="session")
def valkey_server():
    """Run a real Valkey server for the whole session, and return its URL."""
    folder = Path(tempfile.mkdtemp(prefix="pst-"))  # short: socket paths stop at 108 bytes
    socket = folder / "v.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(
        [server_binary(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - no thread holds a lock yet
    )
    url = f"unix://{socket}"
    try:
        with broker.connect(url) as client:
            wait_until(lambda: _is_up(client, process), "the Valkey server answers")
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _is_up(client: redis.Redis, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the Valkey server ended"
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


@pytest.fixture
def valkey(valkey_server):
    """Return the URL of an empty Valkey server."""
    with broker.connect(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture
def valkey_ledger(valkey):
    """Return the ledger of an empty Valkey server."""
    with broker.connect(valkey) as client:
        yield Ledger(client, valkey)


@pytest.fixture
def fake_ledger():
    """Return the ledger of an empty in-process Redis."""
    import fakeredis

    with fakeredis.FakeRedis(decode_responses=True) as client:
        yield Ledger(client)


@pytest.fixture
def make_spec():
    """Return a function that makes the spec of a new encode job; keyword arguments replace its fields."""
    numbers = itertools.count(1)

    def make(**fields) -> JobSpec:
        job = f"encode-{next(numbers):04d}"
        defaults = {
            "job": job,
            "model": ModelSpec.parse("fake"),
            "options": EncodeOptions(),
            "store_id": "store-1",
            "key": f"key-{job}",
        }
        return JobSpec.model_validate({**defaults, **fields})

    return make


@pytest.fixture(scope="session")
def s3_endpoint():
    """Run an S3 server for the whole session, and return its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint):
    """Return the variables by which obstore and boto3 find that server, as a user sets them for MinIO."""
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def s3(s3_environment, monkeypatch):
    """Set those variables in this process, and return a client."""
    import boto3

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    yield client
    client.close()


@pytest.fixture
def make_bucket(s3):
    """Return a function that makes an empty bucket, which is removed afterwards."""
    import boto3

    made = []

    def make(name):
        made.append(boto3.resource("s3").Bucket(name))
        made[-1].create()
        return made[-1]

    yield make
    for bucket in made:
        bucket.objects.delete()
        bucket.delete()
