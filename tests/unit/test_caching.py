"""Vectors from a cache: what is asked, what is kept, and what happens when the cache does not work."""

from __future__ import annotations

import logging

import fakeredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import EngineBroken, UsageError
from tasks.isolation import PROBE, Runner, run_bisecting
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.encoders import CountingEncoder, assert_same_rows
from workers import caching, launch
from workers.caches import CacheFault
from workers.caches.folder import FolderCache
from workers.caches.opening import open_cache
from workers.caches.redis import RedisCache
from workers.caching import CachingEncoder, wrap
from workers.distinct import DistinctEncoder

OPTIONS = EncodeOptions()
TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "ö", "!bad"]), max_size=6).map(" ".join), max_size=20)


class MemoryCache:
    """A cache that notes what it is asked, and fails when it is told to."""

    def __init__(self):
        self.values = {}
        self.asked = []
        self.fault = ""

    def get(self, names):
        """Return what is there."""
        self.asked.append(len(names))
        self._fail()
        return {name: self.values[name] for name in names if name in self.values}

    def put(self, values):
        """Keep values."""
        self._fail()
        self.values.update(values)

    def close(self):
        """Do nothing."""

    def _fail(self):
        if self.fault:
            raise CacheFault(self.fault)


@pytest.fixture
def cache():
    """Return an empty cache."""
    return MemoryCache()


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that is moved by hand, and by which pauses are measured."""
    now = [1000.0]
    monkeypatch.setattr(caching.time, "monotonic", lambda: now[0])
    return now


@given(st.lists(TEXTS, max_size=4))
def test_the_result_is_that_of_the_plain_encoder(chunks):
    """Whatever was encoded before; the model saw each text once, over all chunks, unless it is an error row."""
    counting = CountingEncoder()
    encoder = DistinctEncoder(CachingEncoder(counting, MemoryCache()))
    known = set()
    for texts in chunks:
        encoded = encoder.encode(texts, OPTIONS)
        assert_same_rows(encoded, CountingEncoder().encode(texts, OPTIONS))
        assert encoded.cached_rows == len(known & set(texts))
        assert encoded.duplicate_rows == len(texts) - len(set(texts))
        known |= {text for text in texts if "!bad" not in text}
    assert len([text for text in counting.seen if "!bad" not in text]) == len(known)


@given(TEXTS, TEXTS)
def test_equal_texts_may_stand_there_too(first, second):
    """Where duplicates are computed each by itself."""
    encoder = CachingEncoder(CountingEncoder(), MemoryCache())
    for texts in (first, second):
        assert_same_rows(encoder.encode(texts, OPTIONS), CountingEncoder().encode(texts, OPTIONS))


def test_a_known_text_meets_neither_tokenizer_nor_model(cache):
    """A chunk of known texts does not call the engine at all, and counts its tokens all the same."""
    counting = CountingEncoder()
    encoder = CachingEncoder(counting, cache)
    first = encoder.encode(["a b", "c"], OPTIONS)
    again = encoder.encode(["c", "a b"], OPTIONS)
    assert len(counting.made) == 1
    assert (first.cached_rows, again.cached_rows) == (0, 2)
    assert again.n_tokens.tolist() == [1, 2]
    assert (again.padded_tokens, again.tokenise_s, again.model_s) == (0, 0.0, 0.0)


def test_what_the_engine_says_of_its_own_work_stays(cache):
    """Padded tokens and seconds of those rows that it had to compute."""
    encoder = CachingEncoder(CountingEncoder(), cache)
    encoder.encode(["a b"], OPTIONS)
    mixed = encoder.encode(["c", "a b"], OPTIONS)
    assert mixed.cached_rows == 1
    assert mixed.padded_tokens == 1
    assert mixed.model_s > 0


def test_an_error_row_is_computed_again(cache):
    """What was wrong may be right by then."""
    counting = CountingEncoder()
    encoder = CachingEncoder(counting, cache)
    assert encoder.encode(["!bad"], OPTIONS).errors == encoder.encode(["!bad"], OPTIONS).errors != [None]
    assert counting.seen == ["!bad", "!bad"]
    assert cache.values == {}


def test_rows_beside_one_that_raises_are_kept(cache):
    """Bisecting goes through the cache as well."""
    counting = CountingEncoder()
    encoder = CachingEncoder(counting, cache)
    texts = ["a", "b", "!raise", "c"]
    run_bisecting(Runner(lambda rows: encoder.encode(rows, OPTIONS), lambda text, _: text, 4), texts)
    counting.seen.clear()
    encoded = run_bisecting(Runner(lambda rows: encoder.encode(rows, OPTIONS), lambda text, _: text, 4), texts)
    assert [text for text in counting.seen if not text.startswith(PROBE)] == []
    assert [error is None for error in encoded.errors] == [True, True, False, True]


def test_another_model_finds_nothing(cache):
    """Nor do other options find the vectors of these."""
    CachingEncoder(CountingEncoder("weights-1"), cache).encode(["a"], OPTIONS)
    assert CachingEncoder(CountingEncoder("weights-2"), cache).encode(["a"], OPTIONS).cached_rows == 0
    same = CountingEncoder("weights-1")
    assert CachingEncoder(same, cache).encode(["a"], EncodeOptions(truncate_dim=2)).cached_rows == 0
    assert CachingEncoder(same, cache).encode(["a"], EncodeOptions(vector_dtype="float16")).cached_rows == 1


def test_reproducible_vectors_are_of_the_same_place(cache):
    """Device and libraries count there."""
    reproducible = EncodeOptions(reproducible=True)
    here, there = CachingEncoder(CountingEncoder(), cache), CountingEncoder()
    there.place = "a CPU of another kind"
    here.encode(["a"], OPTIONS)
    assert here.encode(["a"], reproducible).cached_rows == 0
    assert here.encode(["a"], reproducible).cached_rows == 1
    assert CachingEncoder(there, cache).encode(["a"], reproducible).cached_rows == 0


def test_a_broken_engine_is_not_hidden_by_what_the_cache_knows(cache):
    """Whether it still works is asked with a text that no cache can know."""

    class Broken(CountingEncoder):
        def encode(self, *_):
            raise RuntimeError("device-side assert")

    works, broken = CachingEncoder(CountingEncoder(), cache), CachingEncoder(Broken(), cache)
    works.encode([PROBE], OPTIONS)
    for _ in range(2):
        with pytest.raises(EngineBroken):
            run_bisecting(Runner(lambda texts: broken.encode(texts, OPTIONS), lambda text, _: text, 4), ["a new text"])


def test_damaged_values_are_computed_and_written_over(cache):
    """Cut, changed, or of another length: the vectors are right, and the next time they come from the cache."""
    texts = ["a", "b", "c", "d"]
    counting = CountingEncoder()
    encoder = CachingEncoder(counting, cache)
    plain = encoder.encode(texts, OPTIONS)
    names = list(cache.values)
    cache.values[names[0]] = b""
    cache.values[names[1]] = cache.values[names[2]]
    cache.values[names[3]] = cache.values[names[3]][:-1] + b"\0\0"
    counting.seen.clear()
    mended = encoder.encode(texts, OPTIONS)
    assert_same_rows(mended, plain)
    assert counting.seen == ["a", "b", "d"]
    assert mended.cached_rows == 1
    assert encoder.encode(texts, OPTIONS).cached_rows == 4


def test_a_cache_that_fails_is_left_alone_for_a_while(cache, clock, caplog):
    """Rows are computed; one line says so, and another that it is over."""
    caplog.set_level(logging.INFO, "workers.caching")
    encoder = CachingEncoder(CountingEncoder(), cache)
    encoder.encode(["a"], OPTIONS)
    cache.fault = "The vector cache redis://host failed: gone"
    for _ in range(3):  # three tries, and several chunks between them
        for _ in range(4):
            encoded = encoder.encode(["a", "b"], OPTIONS)
            assert encoded.cached_rows == 0
            assert_same_rows(encoded, CountingEncoder().encode(["a", "b"], OPTIONS))
            clock[0] += caching.PAUSE_S / 4
    assert cache.asked == [1, 2, 2, 2]
    cache.fault = ""
    assert encoder.encode(["a"], OPTIONS).cached_rows == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The vector cache redis://host failed: gone. Texts are computed without it; it is tried again every 60 s",
        "The vector cache works again",
    ]


def test_the_settings_decide_what_stands_before_the_engine(tmp_path):
    """Both, either, or the engine itself."""
    engine = CountingEncoder()
    assert wrap(engine, Settings(deduplicate=False)) is engine
    assert isinstance(wrap(engine, Settings()), DistinctEncoder)
    only_cache = wrap(engine, Settings(deduplicate=False, cache_url=str(tmp_path / "cache")))
    assert isinstance(only_cache, CachingEncoder)
    both = wrap(engine, Settings(cache_url=str(tmp_path / "cache")))
    both.encode(["a", "a", "b"], OPTIONS)
    encoded = both.encode(["a", "a", "c"], OPTIONS)
    assert (encoded.duplicate_rows, encoded.cached_rows) == (1, 1)
    assert engine.seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("", "--cache '': neither a folder nor a redis:// URL."),
        ("s3://bucket/cache", "--cache 's3://bucket/cache': neither a folder nor a redis:// URL."),
        ("file:///cache", "--cache 'file:///cache': neither a folder nor a redis:// URL."),
        ("redis://", "--cache redis://: names no host."),
        ("redis://host/0?nonsense=1", "--cache redis://host/0: an option after its ?"),
        ("redis://user:pass/word@host", "--cache redis://***: no URL."),
        ("~nobody-of-this-name/cache", "--cache ~nobody-of-this-name/cache: lies in a home"),
    ],
)
def test_a_wrong_address_is_one_clear_line(url, line):
    """It names the option and shows no password."""
    with pytest.raises(UsageError) as caught:
        open_cache(url)
    assert str(caught.value).startswith(line)
    assert "word" not in str(caught.value).replace("password", "")


def test_a_worker_with_a_wrong_address_does_not_start(tmp_path, monkeypatch, capsys):
    """It says so before it loads anything."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("PENSTOCK_MODEL", "fake")
    monkeypatch.setenv("PENSTOCK_CACHE_URL", str(file))
    assert launch.main() == UsageError.exit_code
    assert capsys.readouterr().err == f"penstock worker: --cache {file}: it is a file; name a folder.\n"


def test_addresses_open_what_they_name(tmp_path, monkeypatch):
    """A folder, one of the home, and a server that nobody has asked yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(None) is None
    for url in (str(tmp_path / "cache"), "~/other"):
        cache = open_cache(url)
        assert isinstance(cache, FolderCache)
        cache.close()
    assert (tmp_path / "other" / "vectors.sqlite").is_file()
    cache = open_cache("rediss://nowhere.invalid:6380/1")
    assert isinstance(cache, RedisCache)
    cache.close()


def test_vectors_go_through_redis():
    """The whole way, with an in-process server."""
    texts = ["a b c d", "ö", ""]
    with fakeredis.FakeRedis() as client:
        encoder = CachingEncoder(CountingEncoder(), RedisCache(client, "redis://"))
        first, again = (encoder.encode(texts, OPTIONS) for _ in range(2))
    assert_same_rows(first, again)
    assert (first.cached_rows, again.cached_rows) == (0, 3)
    assert np.isfinite(again.values).all()
