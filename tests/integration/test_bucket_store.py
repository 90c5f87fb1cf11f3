"""A store in a bucket whose server is busy, breaks off, or says nothing."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks import object_store
from tasks.errors import DamagedObject, StoreUnavailable
from tasks.retrying import retry_transient
from tasks.slot import PATIENCE_S
from tasks.store import open_store

KEY = "jobs/encode-0001/result/00000000-0000000000001.arrow"
DATA = bytes(range(256)) * 1000


class Bucket(BaseHTTPRequestHandler):
    """Does what the server's script says, a word a request, and behaves well when it is over."""

    def do_GET(self):
        """Send the object, or what the script says."""
        self._answer(DATA)

    def do_PUT(self):
        """Take the object, or do what the script says."""
        self.server.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"")

    def _answer(self, body):
        self.server.requests.append(self.command)
        what = self.server.script.pop(0) if self.server.script else "serve"
        if what == "hang":
            self.server.is_over.wait(30)
        elif what == "reset":
            self.close_connection = True
        elif what == "cut":
            self._send(200, body, body[: len(body) // 2])
            self.close_connection = True
        elif what.isdigit():
            self._send(int(what), b"<Error><Code>SlowDown</Code></Error>")
        else:
            self._send(200, body)

    def _send(self, status, body, sent=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 08:00:00 GMT")
        self.end_headers()
        self.wfile.write(body if sent is None else sent)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(s3_environment, monkeypatch):
    """Run such a server in the place of S3, with short pauses and timeouts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.script, server.requests, server.taken, server.is_over = [], [], [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    backoff = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setitem(object_store.RETRIES, "backoff", backoff)
    monkeypatch.setitem(object_store.CHUNKS, "timeout", "1s")
    yield server
    server.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "script",
    [["500"] * 3, ["503"] * 3, ["429"] * 3, ["reset"] * 3, ["cut"] * 3, ["hang"], ["503", "reset", "cut", "hang"]],
    ids="-".join,
)
def test_what_passes_is_tried_again_until_the_object_is_there_whole(server, script):
    """Server errors, throttling, lost connections, bodies cut in the middle, silence."""
    store = open_store("s3://bucket/folder")
    for call in (lambda: store.get(KEY), lambda: store.put(KEY, DATA)):
        server.script[:] = script
        answer = retry_transient(call, for_s=20)
        assert answer in {DATA, None}
    assert server.taken[-1] == DATA


def test_a_body_that_is_always_cut_is_an_error_and_never_a_short_object(server):
    """What comes back is the object or nothing."""
    server.script[:] = ["cut"] * 1000
    with pytest.raises(StoreUnavailable, match=f"failed on {KEY}|sent [0-9]+ of {len(DATA)} bytes of {KEY}"):
        open_store("s3://bucket/folder").get(KEY)


@pytest.mark.parametrize("call", ["get", "put"])
def test_a_server_that_says_nothing_is_given_up(server, monkeypatch, call):
    """As behind a connection that went half-open: one call ends within the time of its retries and one request."""
    monkeypatch.setitem(object_store.RETRIES, "retry_timeout", timedelta(seconds=1.5))
    server.script[:] = ["hang"] * 1000
    store = open_store("s3://bucket/folder")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.get(KEY) if call == "get" else store.put(KEY, DATA)
    assert time.monotonic() - started < 15  # without a timeout it would be 30 s a request


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_user_without_rights_is_told_to_check_the_credentials(server, status):
    """They may be renewed meanwhile, so it is a passing fault."""
    store = open_store("s3://bucket/folder")
    for call in (lambda: store.get(KEY), lambda: store.put(KEY, DATA)):
        server.script[:] = [status] * 20
        with pytest.raises(StoreUnavailable, match=r"refuses this user on .* Check the credentials"):
            call()


def test_a_missing_object_is_no_passing_fault(server):
    """Nobody waits for it."""
    server.script[:] = ["404"]
    with pytest.raises(DamagedObject):
        open_store("s3://bucket/folder").get(KEY)
    assert len(server.requests) == 1


def test_one_call_takes_no_longer_than_somebody_waits():
    """A slot is not to hang in one call when its patience is over."""
    assert object_store.CHUNKS["timeout"] == "1m"
    assert object_store.RETRIES["retry_timeout"].total_seconds() + 60 <= PATIENCE_S
