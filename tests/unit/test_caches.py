"""Where vectors are kept: a folder, and an in-process Redis. The names of texts, and the values."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import fakeredis
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UsageError
from tasks.options import EncodeOptions
from tests.conftest import wait_until
from tests.contracts.cache import NAMES, VALUES, CacheContract
from workers.caches import CacheFault
from workers.caches import folder as folder_module
from workers.caches.folder import FILE, FolderCache
from workers.caches.redis import KEEP_S, RedisCache
from workers.caches.values import name_texts, pack, unpack

VECTOR = np.array([1.5, -0.0, 3e-40, 7.0], np.float32)
NAME = b"n" * 32


class TestFolderCache(CacheContract):
    """The contract in a folder."""

    @pytest.fixture
    def open_one(self, tmp_path):
        """Return a function that opens the cache."""
        opened = []

        def open_cache():
            opened.append(FolderCache(tmp_path / "below" / "cache"))
            return opened[-1]

        yield open_cache
        for cache in opened:
            cache.close()


class TestRedisCache(CacheContract):
    """The contract in an in-process Redis."""

    @pytest.fixture
    def open_one(self):
        """Return a function that opens the cache."""
        server = fakeredis.FakeServer()
        opened = []

        def open_cache():
            opened.append(RedisCache(fakeredis.FakeRedis(server=server), "redis://"))
            return opened[-1]

        yield open_cache
        for cache in opened:
            cache.close()


@pytest.fixture
def folder_cache(tmp_path):
    """Return an empty cache in a folder."""
    cache = FolderCache(tmp_path / "cache")
    yield cache
    cache.close()


def write_for_ever(folder):
    """Run a process that puts batches of 500 values without end, each with the number of its batch."""
    code = (
        "import sys; from pathlib import Path; from workers.caches.folder import FolderCache\n"
        "cache, batch = FolderCache(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    batch += 1\n"
        "    names = (b'%06d-%d-%03d' % (int(sys.argv[2]), batch, row) for row in range(500))\n"
        "    cache.put(dict.fromkeys(names, b'%d' % batch * 1500))\n"
        "    print(batch, flush=True)\n"
    )
    number = str(np.random.default_rng().integers(10**6))
    return number, subprocess.Popen(
        [sys.executable, "-c", code, str(folder), number], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_leaves_whole_batches(tmp_path):
    """Of two that write at once one is killed, again and again; what it said was kept is there, and nothing is torn."""
    folder = tmp_path / "cache"
    cache = FolderCache(folder)
    _, other = write_for_ever(folder)
    try:
        for _ in range(5):
            victim_number, victim = write_for_ever(folder)
            for _ in range(3):
                said = int(victim.stdout.readline())
            victim.send_signal(signal.SIGKILL)
            said = int((victim.stdout.read().split() or [said])[-1])
            victim.wait()
            victim.stdout.close()
            for batch in range(1, said + 3):
                names = [b"%06d-%d-%03d" % (int(victim_number), batch, row) for row in range(500)]
                found = cache.get(names)
                assert len(found) == 500 if batch <= said else len(found) in {0, 500}
                assert set(found.values()) <= {b"%d" % batch * 1500}
        before = int(other.stdout.readline())
        assert wait_until(lambda: int(other.stdout.readline()) > before, "the other goes on writing")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert cache._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cache.close()


def test_a_full_cache_forgets_others(tmp_path):
    """It keeps to its size, and what is new is kept."""
    most_bytes = 2**20
    cache = FolderCache(tmp_path, most_bytes=most_bytes)
    value = os.urandom(1500)
    for batch in range(60):
        names = [b"%d-%d" % (batch, row) for row in range(100)]
        cache.put(dict.fromkeys(names, value))
        assert len(cache.get(names)) == 100
    old = [b"%d-%d" % (batch, row) for batch in range(50) for row in range(100)]
    assert 0 < len(cache.get(old)) < most_bytes // 1500
    cache.close()
    assert (tmp_path / FILE).stat().st_size < 1.5 * most_bytes


def test_a_full_disk_is_a_fault_and_leaves_the_rest(folder_cache):
    """SQLite itself says so; what was there before stays readable."""
    folder_cache.put({NAMES[0]: b"value"})
    folder_cache._db.execute("PRAGMA max_page_count = 40")
    with pytest.raises(CacheFault, match="failed: database or disk is full"):
        folder_cache.put(VALUES)
    assert folder_cache.get(NAMES) == {NAMES[0]: b"value"}
    folder_cache._db.execute("PRAGMA max_page_count = 100000")
    folder_cache.put(VALUES)
    assert folder_cache.get(NAMES) == VALUES


def test_a_writer_that_stands_still_is_waited_for_only_so_long(tmp_path, monkeypatch):
    """Reading goes on meanwhile."""
    monkeypatch.setattr(folder_module, "WAIT_S", 0.1)
    cache = FolderCache(tmp_path)
    cache.put({NAMES[0]: b"value"})
    frozen = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    frozen.execute("BEGIN IMMEDIATE")
    with pytest.raises(CacheFault, match="locked"):
        cache.put({NAMES[1]: b"value"})
    assert cache.get(NAMES[:2]) == {NAMES[0]: b"value"}
    FolderCache(tmp_path).close()  # a slot that starts now starts
    frozen.close()
    cache.put({NAMES[1]: b"value"})
    cache.close()


def test_a_database_that_is_damaged_while_it_is_used_is_a_fault(tmp_path):
    """Whatever SQLite meets there."""
    cache = FolderCache(tmp_path)
    cache.put(VALUES)
    cache.close()
    cache = FolderCache(tmp_path)
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(8192 * 40))
    with pytest.raises(CacheFault, match="malformed"):
        cache.get(NAMES)
    cache.close()


def test_a_folder_that_is_none_is_refused(tmp_path):
    """A file, something below a file, and a database that is none."""
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(UsageError, match=f"^--cache {file}: it is a file; name a folder.$"):
        FolderCache(file)
    with pytest.raises(UsageError, match="the folder cannot be made"):
        FolderCache(file / "below")
    (tmp_path / FILE).write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(UsageError, match=r"cannot be used \(file is not a database"):
        FolderCache(tmp_path)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs"])
def test_a_folder_of_a_network_is_refused(tmp_path, monkeypatch, kind):
    """The deepest mount point counts."""
    mounts = [("/", "ext4"), (str(tmp_path), kind), (str(tmp_path / "local"), "ext4")]
    parts = [SimpleNamespace(mountpoint=point, fstype=fstype) for point, fstype in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: parts)
    with pytest.raises(UsageError, match=f"lies on {kind}"):
        FolderCache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    FolderCache(tmp_path / "local" / "cache").close()


def test_redis_forgets_after_30_days():
    """Nothing stays for ever in a server that is never cleaned."""
    with fakeredis.FakeRedis() as client:
        RedisCache(client, "redis://").put({NAME: b"value"})
        (key,) = client.keys("*")
        assert key == b"penstock:vector:" + NAME.hex().encode()
        assert KEEP_S - 10 < client.ttl(key) <= KEEP_S


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_row_comes_back_as_it_was(n_tokens, truncated):
    """To the bit."""
    vector, *fed = unpack(NAME, pack(NAME, VECTOR, n_tokens, truncated), 4)
    assert vector.tobytes() == VECTOR.tobytes()
    assert fed == [n_tokens, truncated]


@given(st.data())
def test_a_damaged_value_is_unknown(data):
    """Any flipped bit, any cut, any value of another text, any other length."""
    value = bytearray(pack(NAME, VECTOR, 5, truncated=False))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    assert unpack(NAME, bytes(value), 4) is None
    whole = pack(NAME, VECTOR, 5, truncated=False)
    assert unpack(NAME, whole[: data.draw(st.integers(0, len(whole) - 1))], 4) is None
    assert unpack(b"m" * 32, whole, 4) is None
    assert unpack(NAME, whole, 3) is None


def test_a_name_depends_on_all_that_the_vector_depends_on():
    """Weights, text, place and each option alone, but not the stored type, nor where a language comes from."""
    others = [
        EncodeOptions(),
        EncodeOptions(normalize=True),
        EncodeOptions(truncate_dim=2),
        EncodeOptions(prompt=""),
        EncodeOptions(prompt="query: "),
        EncodeOptions(prompt_name="query"),
        EncodeOptions(language="wol_Latn"),
        EncodeOptions(max_tokens=5),
        EncodeOptions(reproducible=True),
    ]
    told = {name for options in others for name in options.model_fields_set}
    assert told == {*EncodeOptions.model_fields} - {"operation", "vector_dtype", "language_field"}
    names = [name_texts(["text", "", "Text"], "weights", options) for options in others]
    names += [name_texts(["text"], "weights", EncodeOptions(), "here"), name_texts(["text"], "heavy", EncodeOptions())]
    flat = [name for some in names for name in some]
    assert len(set(flat)) == len(flat)
    assert name_texts(["text"], "weights", EncodeOptions(vector_dtype="float16")) == [flat[0]]


def test_names_stay_what_they_are():
    """What was kept by one release is found by the next; else the format's version must change."""
    (name,) = name_texts(["text"], "weights", EncodeOptions(normalize=True))
    assert name.hex() == "afb2a9400c803f361d1c1327a04e64e6babe97b0760850595257cd2f01e2571c"
