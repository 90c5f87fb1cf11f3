"""Input behind URLs: an S3 that answers like the real one, and web servers with and without ranges."""

import gzip
import io
import json
import re
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.readers import Row, read_rows
from producer.sources import expand
from tasks import object_store
from tasks.errors import BadInput, StoreUnavailable

RECORDS = [{"id": str(number), "text": f"text {number} é", "n": number} for number in range(5000)]
ROWS = [Row(record["id"], record["text"], None) for record in RECORDS]
JSONL = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def parquet() -> bytes:
    """Return the records as parquet of several row groups."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), out, row_group_size=1000)
    return out.getvalue()


@pytest.fixture
def bucket(make_bucket):
    """Return a fresh bucket, with its credentials in the environment as a user has them."""
    return make_bucket("corpus")


class WebServer(ThreadingHTTPServer):
    """Serves some bytes by their path, and notes what was asked for."""

    def __init__(self, files: dict[str, bytes], *, has_ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.has_ranges = has_ranges
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request to the WebServer."""

    server: WebServer

    def do_GET(self):
        """Send the whole file, or the range that was asked for."""
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path.partition("?")[0])
        if body is None:
            self.send_error(404)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and self.server.has_ranges:
            start, last = int(span[1]), min(int(span[2]), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
            body = body[start : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the test's output quiet."""


@contextmanager
def serving(files, *, has_ranges=True):
    """Run a web server with these files."""
    server = WebServer(files, has_ranges=has_ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def impatient(monkeypatch):
    """Give up after the first try."""
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(object_store, "RETRIES", retries)


def message_of(url) -> str:
    """Return what is said against a URL, and check that it is one line."""
    with pytest.raises(BadInput) as caught:
        list(read_rows(expand([url])))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("part.jsonl.gz", gzip.compress(JSONL)),
        ("part.jsonl", JSONL),
        ("part.parquet", parquet()),
        ("a folder/100%é?#[1].jsonl", JSONL),
    ],
)
def test_an_object_of_s3_is_read_like_a_file(bucket, key, data):
    """Keys are taken literally, whatever characters they hold."""
    bucket.put_object(Key=key, Body=data)
    sources = expand([f"s3://corpus/{key}"])
    assert sources[0].name == f"s3://corpus/{key}"
    assert list(read_rows(sources)) == ROWS


@pytest.mark.parametrize("block_bytes", [1000, len(JSONL), len(JSONL) + 1])
def test_an_object_is_read_block_by_block(bucket, monkeypatch, block_bytes):
    """The blocks put together are the object, wherever they end."""
    monkeypatch.setattr("producer.sources.BLOCK_BYTES", block_bytes)
    bucket.put_object(Key="part.jsonl", Body=JSONL)
    assert list(read_rows(expand(["s3://corpus/part.jsonl"]))) == ROWS


def test_the_identity_of_an_object_changes_with_its_content(bucket):
    """Objects have no time of their own, but an ETag."""
    bucket.put_object(Key="a.txt", Body=b"one")
    before = expand(["s3://corpus/a.txt"])[0].identity()
    assert before == ("s3://corpus/a.txt", 3, bucket.Object("a.txt").e_tag)
    bucket.put_object(Key="a.txt", Body=b"two")
    assert expand(["s3://corpus/a.txt"])[0].identity() != before


def test_an_object_that_changes_while_it_is_read_is_refused(bucket):
    """Two halves of different objects are no corpus."""
    bucket.put_object(Key="a.txt", Body=b"one")
    sources = expand(["s3://corpus/a.txt"])
    bucket.put_object(Key="a.txt", Body=b"two")
    with pytest.raises(BadInput) as caught:
        list(read_rows(sources))
    assert str(caught.value) == "s3://corpus/a.txt changed while it was read; start again"


def test_an_object_that_is_gone_is_refused(bucket):
    """It was there when the command started."""
    bucket.put_object(Key="a.txt", Body=b"one")
    sources = expand(["s3://corpus/a.txt"])
    bucket.Object("a.txt").delete()
    with pytest.raises(BadInput) as caught:
        list(read_rows(sources))
    assert str(caught.value) == "s3://corpus/a.txt: no such object"


def test_a_missing_object_is_named(bucket):
    """A glob in a URL is a key that is not there; the message says why."""
    assert message_of("s3://corpus/none.txt") == "s3://corpus/none.txt: no such object"
    remedy = "a glob works on local files only"
    assert message_of("s3://corpus/*.txt") == f"s3://corpus/*.txt: no such object; {remedy}"


def test_an_empty_object_is_refused(bucket):
    """As an empty file is."""
    bucket.put_object(Key="a.txt", Body=b"")
    assert message_of("s3://corpus/a.txt") == "s3://corpus/a.txt is empty (0 bytes); leave it out"


def test_a_broken_object_is_named_by_its_url(bucket):
    """Decoders do not know where their bytes come from, the message does."""
    bucket.put_object(Key="a.txt.gz", Body=gzip.compress(JSONL)[:-9])
    assert message_of("s3://corpus/a.txt.gz") == (
        "s3://corpus/a.txt.gz: broken gzip data (Truncated compressed stream); copy or write it again"
    )


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize(("name", "data"), [("a.jsonl", JSONL), ("a.jsonl.gz", gzip.compress(JSONL))])
def test_text_of_a_web_server_is_read_with_and_without_ranges(name, data, has_ranges):
    """The simplest server will do."""
    with serving({f"/{name}": data}, has_ranges=has_ranges) as server:
        assert list(read_rows(expand([f"{server.url}/{name}"]))) == ROWS


def test_parquet_of_a_web_server_needs_ranges():
    """Parquet is read from its end; without ranges the message says what to do."""
    with serving({"/a.parquet": parquet()}) as server:
        assert list(read_rows(expand([f"{server.url}/a.parquet"]))) == ROWS
    with serving({"/a.parquet": parquet()}, has_ranges=False) as server:
        assert message_of(f"{server.url}/a.parquet") == (
            f"{server.url}/a.parquet: parquet is read from its end, and this comes from the start only; "
            "download or save it and name the file"
        )


def test_the_query_of_a_web_address_is_sent_and_not_shown():
    """It may be a signature; the path is decoded once and encoded once."""
    with serving({"/a%20b.txt": b"x\n"}) as server:
        [source] = expand([f"{server.url}/a%20b.txt?sig=secret"])
        assert [row.text for row in read_rows([source])] == ["x"]
        assert set(server.asked) == {"/a%20b.txt?sig=secret"}
    assert source.name == f"{server.url}/a%20b.txt"
    assert source.identity() == (source.name, 2, None)


def test_a_server_that_is_not_there_can_be_tried_again(impatient):
    """The message names the address and hides its query."""
    with serving({}) as server:
        url = server.url
    with pytest.raises(StoreUnavailable) as caught:
        expand([f"{url}/a.txt?sig=secret"])
    assert str(caught.value) == (
        f"{url}/a.txt does not answer (HTTP error: error sending request); "
        "check the address, the network and the credentials"
    )


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_server_that_stops_in_the_middle_is_no_bad_input(impatient, has_ranges):
    """What was asked for later fails as what it is."""
    with serving({"/a.txt": b"x\n"}, has_ranges=has_ranges) as server:
        sources = expand([f"{server.url}/a.txt"])
    with pytest.raises(StoreUnavailable, match=r"^http://127.0.0.1:\d+/a.txt does not answer "):
        list(read_rows(sources))
