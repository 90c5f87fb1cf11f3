"""Downloading LASER's files from a server on this machine, which does what servers do."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from sentencepiece import SentencePieceTrainer

from tasks import object_store
from tasks.errors import ModelNotFound, StoreUnavailable
from workers.engines.laser import download
from workers.engines.laser.download import Downloads

#: As a checkpoint begins.
DATA = b"PK\x03\x04" + bytes(range(256)) * 20_000
OTHER = b"PK\x03\x04" + DATA[:3:-1]
NAMES = ["laser2.pt", "laser2.spm"]
PAGE = b"\n<html><body>Please log in to the network.</body></html>\n"


def pieces() -> bytes:
    """Return what sentencepiece can read."""
    model = BytesIO()
    lines = iter(["some words of a text"] * 9)
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, vocab_size=16, minloglevel=2)
    return model.getvalue()


PIECES = pieces()


def md5_tag(data: bytes) -> str:
    """Return the ETag that S3 gives a file that was put in one part."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class Server(ThreadingHTTPServer):
    """Serves files by name; breaks off as often as it is told, and notes what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(zip(NAMES, (DATA, PIECES), strict=True))
        self.tags = {name: md5_tag(data) for name, data in self.files.items()}
        self.breaks = 0
        self.has_ranges = True
        self.asked: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}/nllb/laser"

    def starts(self) -> list[str]:
        """Return which ranges were asked for."""
        return [span for method, _, span in self.asked if method == "GET"]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_HEAD(self):
        """Tell size and ETag."""
        self.answer()

    def do_GET(self):
        """Send a file, or its end."""
        self.answer()

    def answer(self):
        """Do as a server does, or break off."""
        name, span = self.path.removeprefix("/nllb/laser/"), self.headers.get("Range", "")
        self.server.asked.append((self.command, name, span))
        if name not in self.server.files:
            self.send_error(404)
            return
        body, tag = self.server.files[name], self.server.tags[name]
        if self.headers.get("If-Match", tag) != tag:
            self.send_error(412)
            return
        start = int(found[1]) if self.server.has_ranges and (found := re.fullmatch(r"bytes=(\d+)-", span)) else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = body[start:]
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def log_message(self, *_):
        """Keep the test's output quiet."""


@pytest.fixture
def server(monkeypatch):
    """Run the server; nothing is tried twice by itself."""
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)})
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def downloads(server, tmp_path) -> Downloads:
    """Return the downloads from it into an empty folder."""
    return Downloads(server.url, tmp_path / "cache" / "laser")


def files_in(downloads: Downloads) -> list[str]:
    """Return what is in the folder, the lock aside."""
    return sorted(path.name for path in downloads.folder.iterdir() if path.name != ".lock")


def test_files_are_fetched_once(server, downloads):
    """What is there is not asked for again."""
    downloads.fetch(NAMES)
    assert files_in(downloads) == NAMES
    assert (downloads.folder / "laser2.pt").read_bytes() == DATA
    asked = len(server.asked)
    downloads.fetch(NAMES)
    assert len(server.asked) == asked


def test_a_broken_transfer_goes_on_where_it_stopped(server, downloads):
    """The file appears only when it is whole; the second try asks for the rest alone."""
    server.breaks = 1
    with pytest.raises(StoreUnavailable, match=r"laser2\.pt, laser2\.spm into .*laser, or name a folder"):
        downloads.fetch(NAMES)
    (part,) = files_in(downloads)
    assert re.fullmatch(r"\.laser2\.pt\.[0-9a-f]{8}\.part", part)
    have = (downloads.folder / part).stat().st_size
    assert 0 < have < len(DATA)
    downloads.fetch(NAMES)
    assert server.starts()[:2] == ["", f"bytes={have}-"]
    assert (downloads.folder / "laser2.pt").read_bytes() == DATA
    assert files_in(downloads) == NAMES


def test_a_broken_transfer_of_another_file_begins_anew(server, downloads):
    """The server has a new file by now: the old part is thrown away."""
    server.breaks = 1
    with pytest.raises(StoreUnavailable):
        downloads.fetch(NAMES)
    server.files["laser2.pt"] = OTHER
    server.tags["laser2.pt"] = md5_tag(OTHER)
    downloads.fetch(NAMES)
    assert (downloads.folder / "laser2.pt").read_bytes() == OTHER
    assert files_in(downloads) == NAMES


def test_without_a_strong_etag_a_broken_transfer_begins_anew(server, downloads):
    """A weak one says nothing of the bytes: two versions of a file would be joined."""
    server.tags["laser2.pt"] = 'W/"1"'
    server.breaks = 1
    with pytest.raises(StoreUnavailable):
        downloads.fetch(NAMES)
    server.files["laser2.pt"] = OTHER
    downloads.fetch(NAMES)
    assert (downloads.folder / "laser2.pt").read_bytes() == OTHER
    assert set(server.starts()) == {""}


@pytest.mark.parametrize("name", ["laser2.pt", "laser2.spm", "laser2.cvocab"])
def test_a_page_in_place_of_a_file_is_thrown_away(server, downloads, name):
    """A proxy that wants a login answers everything with it, and with status 200."""
    server.files[name], server.tags[name] = PAGE, '"any-1"'
    with pytest.raises(ModelNotFound, match=rf"{name} is damaged, or the server sent something else: "):
        downloads.fetch([name])
    assert files_in(downloads) == []
    server.files |= {"laser2.cvocab": "▁a 2\nb 1\n".encode()}
    server.files |= {"laser2.pt": DATA, "laser2.spm": PIECES}
    downloads.fetch([name])
    assert files_in(downloads) == [name]


def test_a_file_is_on_the_disk_before_it_has_its_name(server, downloads, monkeypatch):
    """After a power cut a name would else stand for zeros."""
    seen = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append((files_in(downloads), os.fstat(descriptor).st_size))
    )
    downloads.fetch(NAMES[:1])
    ((names, size),) = seen
    assert (names[0].endswith(".part"), size) == (True, len(DATA))


def test_a_server_without_ranges_sends_all_again(server, downloads):
    """The part begins anew, and the file is right."""
    server.breaks = 1
    with pytest.raises(StoreUnavailable):
        downloads.fetch(NAMES)
    server.has_ranges = False
    downloads.fetch(NAMES)
    assert (downloads.folder / "laser2.pt").read_bytes() == DATA


def test_a_missing_file_is_said_in_one_line(server, downloads):
    """With the address, the files, and where to put them."""
    del server.files["laser2.spm"]
    with pytest.raises(ModelNotFound) as caught:
        downloads.fetch(NAMES)
    assert str(caught.value) == (
        f"LASER's files are not here and cannot be downloaded from {server.url} (laser2.spm: the server has no such "
        f"file). Put laser2.pt, laser2.spm into {downloads.folder}, or name a folder that has them: --model "
        "laser:./FOLDER."
    )


def test_a_server_that_is_not_there_is_said_in_one_line(server, tmp_path):
    """It may be there later, so the fault is a passing one."""
    downloads = Downloads("http://127.0.0.1:9/nllb/laser", tmp_path)
    with pytest.raises(
        StoreUnavailable, match=r"cannot be downloaded from http://127.0.0.1:9/nllb/laser \(.*\)\. Put "
    ):
        downloads.fetch(NAMES)


def test_other_content_than_the_server_names_is_thrown_away(server, downloads):
    """Its ETag is the MD5 of what should have come."""
    server.tags["laser2.pt"] = md5_tag(b"something else")
    with pytest.raises(ModelNotFound, match=r"laser2\.pt is damaged, or .*: its MD5 is not the server's ETag"):
        downloads.fetch(NAMES)
    assert files_in(downloads) == []


def test_an_etag_of_another_kind_is_no_checksum(server, downloads):
    """S3's for several parts, or a web server's own."""
    server.tags = {"laser2.pt": f'"{"0" * 32}-12"', "laser2.spm": 'W/"5f-1"'}
    downloads.fetch(NAMES)
    assert files_in(downloads) == NAMES


def test_a_part_of_a_wrong_size_is_thrown_away(server, downloads):
    """Somebody else wrote into it."""
    server.breaks = 1
    with pytest.raises(StoreUnavailable):
        downloads.fetch(NAMES)
    (part,) = files_in(downloads)
    (downloads.folder / part).write_bytes(DATA + b"more")
    with pytest.raises(ModelNotFound, match=rf"{len(DATA) + 4} bytes came, and not {len(DATA)}"):
        downloads.fetch(NAMES)
    downloads.fetch(NAMES)
    assert (downloads.folder / "laser2.pt").read_bytes() == DATA


def test_slots_that_start_together_fetch_once(server, downloads):
    """One downloads, the others wait for it."""
    with ThreadPoolExecutor(4) as threads:
        others = [Downloads(server.url, downloads.folder) for _ in range(4)]
        list(threads.map(lambda one: one.fetch(NAMES), others))
    assert server.starts() == ["", ""]


def test_waiting_ends_before_a_long_download_does(server, downloads, monkeypatch):
    """Whoever asks is told that it is on its way, and gets the files in the end."""
    hold = threading.Event()
    fetch = Downloads.fetch
    monkeypatch.setattr(Downloads, "fetch", lambda self, names: hold.wait(20) and fetch(self, names))
    with pytest.raises(StoreUnavailable, match=r"laser2\.pt is being downloaded from http://127"):
        downloads.wait(NAMES, 0.0)
    hold.set()
    downloads.wait(NAMES, 20)
    assert files_in(downloads) == NAMES


def test_whoever_waits_hears_why_a_download_failed(server, downloads, monkeypatch):
    """For a while all hear the same; then the next one tries again."""
    del server.files["laser2.pt"]
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="the server has no such file"):
            downloads.wait(NAMES, 20)
    assert len(server.asked) == 1
    server.files["laser2.pt"] = DATA
    monkeypatch.setattr(download, "AGAIN_S", 0.0)
    downloads.wait(NAMES, 20)
    assert files_in(downloads) == NAMES


def test_a_server_that_is_not_there_is_no_reason_to_wait_for_ever(server, tmp_path):
    """A chunk that were handed back for it would come again and again; with the error, its rows say what is wrong."""
    downloads = Downloads("http://127.0.0.1:9/nllb/laser", tmp_path)
    for _ in range(2):
        with pytest.raises(
            ModelNotFound, match=r"from http://127.0.0.1:9/nllb/laser \(.*\)\. Put laser2.pt, laser2.spm into"
        ):
            downloads.wait(NAMES, 20)


def test_a_failure_is_told_once_however_late_somebody_asks(server, downloads, monkeypatch):
    """Chunks that come back more seldom than downloads are tried would else never hear of it."""
    del server.files["laser2.pt"]
    monkeypatch.setattr(download, "AGAIN_S", 0.0)
    hold = threading.Event()
    fetch = Downloads.fetch
    monkeypatch.setattr(Downloads, "fetch", lambda self, names: hold.wait(20) and fetch(self, names))
    with pytest.raises(StoreUnavailable):
        downloads.wait(NAMES, 0.0)
    hold.set()
    downloads.running[tuple(NAMES)].thread.join(20)
    with pytest.raises(ModelNotFound):
        downloads.wait(NAMES, 0.0)


def test_a_download_goes_on_as_long_as_each_try_brings_it_further(server, downloads):
    """Lines that break now and then are waited for."""
    server.breaks = 2
    downloads.wait(NAMES, 20)
    assert (downloads.folder / "laser2.pt").read_bytes() == DATA
    assert len(server.starts()) == 4


def test_a_download_that_stands_still_ends(server, downloads):
    """Without a strong ETag each try begins anew, and breaks off at the same place."""
    server.tags["laser2.pt"] = 'W/"1"'
    server.breaks = 100
    with pytest.raises(ModelNotFound, match=r"from http://127\.0\.0\.1.*\(laser2\.pt.*\)\. Put "):
        downloads.wait(NAMES, 20)
    assert len(server.starts()) < 5
