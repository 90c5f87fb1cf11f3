"""Text blocks on a host: fetched once, shared by its slots, bounded."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from tasks import blocks as blocks_module
from tasks import keys, tables
from tasks.blocks import DRAFT_S, BlockCache
from tasks.errors import DamagedObject
from tasks.open_blocks import LEAST_BYTES, OpenBlocks

JOB = "score-1"


class Origin:
    """A store with blocks, which counts what is fetched."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def put(self, block: int, *texts: str) -> None:
        """Store a block."""
        key = keys.texts_path(JOB, block)
        table = tables.text_block([str(i) for i in range(len(texts))], list(texts))
        self.objects[key] = tables.input_bytes(table, key)

    def fetch(self, key: str) -> bytes:
        """Return an object, as a slot gets it from its store."""
        self.fetched.append(key)
        try:
            return self.objects[key]
        except KeyError:
            raise DamagedObject(f"{key} is missing") from None


@pytest.fixture
def origin():
    """Return a store with three blocks of a few kB."""
    origin = Origin()
    for block in range(3):
        origin.put(block, f"text {block}", "x" * 5000)
    return origin


@pytest.fixture
def open_cache(origin, tmp_path):
    """Return a function that opens the cache of a slot of this host."""
    return lambda limit_bytes=2**30, **fields: BlockCache(tmp_path / "blocks", limit_bytes, origin.fetch, **fields)


def kept(folder: Path) -> list[str]:
    """Return the numbers of the blocks that are on the disk."""
    return sorted(file.stem[-1] for file in (folder / "blocks").glob("*.arrow"))


def test_a_block_is_fetched_once_for_all_slots(origin, open_cache):
    """The second slot finds it on the disk, the same slot has it open."""
    one, other = open_cache(), open_cache()
    for cache in (one, one, other):
        assert cache.get(JOB, 1)["text"][0].as_py() == "text 1"
    assert len(origin.fetched) == 1


def test_slots_share_the_memory_of_a_block(open_cache, tmp_path):
    """It is mapped, not read: no allocation of Arrow's grows with it."""
    open_cache().get(JOB, 0)
    before = pa.total_allocated_bytes()
    table = open_cache().get(JOB, 0)
    assert pa.total_allocated_bytes() - before < 1000
    maps = Path(f"/proc/{os.getpid()}/maps")
    if maps.exists():
        assert str(tmp_path / "blocks") in maps.read_text()
    assert table["text"][1].as_py() == "x" * 5000


def test_another_process_finds_the_block(origin, open_cache, tmp_path):
    """Slots are processes."""
    open_cache(store_id="s").get(JOB, 2)
    program = (
        "import sys; from pathlib import Path; from tasks.blocks import BlockCache\n"
        "cache = BlockCache(Path(sys.argv[1]), 2**30, lambda key: sys.exit('fetched'), 's')\n"
        f"print(cache.get({JOB!r}, 2)['text'][0])"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "blocks")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("text 2\n", "")


def test_slots_that_need_a_block_at_once_fetch_it_once(origin, open_cache):
    """The others wait for the first."""
    began, may_go_on = threading.Event(), threading.Event()

    def fetch_slowly(key: str) -> bytes:
        began.set()
        assert may_go_on.wait(20)
        return origin.fetch(key)

    found: list[str] = []

    def read(fetch) -> None:
        cache = open_cache()
        cache._fetch = fetch
        found.append(cache.get(JOB, 0)["text"][0].as_py())

    first = threading.Thread(target=read, args=(fetch_slowly,))
    first.start()
    assert began.wait(20)
    others = [threading.Thread(target=read, args=(origin.fetch,)) for _ in range(3)]
    for other in others:
        other.start()
    may_go_on.set()
    for thread in (first, *others):
        thread.join(20)
    assert found == ["text 0"] * 4
    assert len(origin.fetched) == 1


def test_a_slot_that_waits_too_long_fetches_for_itself(origin, open_cache, monkeypatch):
    """A slot that hangs while it fetches stops no other."""
    monkeypatch.setattr(blocks_module, "TURN_S", 0.0)
    inner = open_cache()
    outer = open_cache()
    outer._fetch = lambda key: (inner.get(JOB, 0), origin.fetch(key))[1]
    assert outer.get(JOB, 0)["text"][0].as_py() == "text 0"
    assert len(origin.fetched) == 2


def test_the_block_unused_for_longest_goes_first(origin, open_cache, tmp_path):
    """Use counts by any slot, and what is open stays readable."""
    cache = open_cache(15_000)
    held = [cache.get(JOB, block) for block in (0, 1)]
    for block, age_s in ((0, 5), (1, 10)):
        (file,) = (tmp_path / "blocks").glob(f"*{block}.arrow")
        os.utime(file, (time.time() - age_s,) * 2)
    open_cache(15_000).get(JOB, 1)
    cache.get(JOB, 2)
    assert kept(tmp_path) == ["1", "2"]
    assert [table["text"][0].as_py() for table in held] == ["text 0", "text 1"]
    assert open_cache().get(JOB, 0)["text"][0].as_py() == "text 0"
    assert len(origin.fetched) == 4


def test_the_limit_counts_the_blocks_of_all_stores(open_cache, tmp_path):
    """Embedded runs have a store each; their blocks must not add up."""
    for store_id in ("a", "b", "c"):
        open_cache(15_000, store_id=store_id).get(JOB, 0)
    assert len(kept(tmp_path)) == 2


def test_a_block_larger_than_the_limit_is_the_only_one(open_cache, tmp_path):
    """It is of use to the other slots that are at the same chunk's neighbours."""
    cache = open_cache(0)
    for block in range(3):
        cache.get(JOB, block)
    assert kept(tmp_path) == ["2"]


@pytest.mark.parametrize("limit", ["MAPPED_BYTES", "OWN_BYTES"])
def test_a_slot_keeps_few_bytes_open(origin, open_cache, tmp_path, monkeypatch, limit):
    """A job may have any number of blocks; those in the slot's own memory cost more than mapped ones."""
    monkeypatch.setattr(blocks_module, limit, 2 * LEAST_BYTES)
    if limit == "OWN_BYTES":
        (tmp_path / "blocks").write_text("")  # no folder
    cache = open_cache()
    kept, empty = (cache._mapped, cache._own) if limit == "MAPPED_BYTES" else (cache._own, cache._mapped)
    for block in (0, 1, 0, 2):
        cache.get(JOB, block)
    assert [key[-7] for key in kept._blocks] == ["0", "2"]
    assert not empty._blocks


def test_open_blocks_are_bounded_by_their_bytes():
    """The latest stays whatever its size; one that is put twice counts once."""
    large, small = (tables.text_block(["a"], [n * "x"]) for n in (3 * LEAST_BYTES, 1))
    open_blocks = OpenBlocks(4 * LEAST_BYTES)
    for key, block in (("a", small), ("b", large), ("b", large), ("c", small), ("d", small)):
        open_blocks.put(key, block)
    assert [key for key in "abcd" if open_blocks.get(key)] == ["c", "d"]
    open_blocks.put("e", tables.text_block(["a"], [5 * LEAST_BYTES * "x"]))
    assert [key for key in "cde" if open_blocks.get(key)] == ["e"]
    open_blocks.clear()
    assert open_blocks.get("e") is None
    open_blocks.put("b", large)
    assert open_blocks.get("b") is large


def test_the_folder_is_looked_at_only_when_enough_was_written(origin, open_cache, tmp_path, monkeypatch):
    """A look at thousands of files takes longer than a fetch; the folder stays bounded all the same."""
    looks = []
    prune = BlockCache._prune
    monkeypatch.setattr(BlockCache, "_prune", lambda self, latest: (looks.append(self), prune(self, latest)))
    monkeypatch.setattr(blocks_module, "LOOKS", 4)
    for block in range(40):
        origin.put(block, "x" * 5000)
    size = len(origin.objects[keys.texts_path(JOB, 0)])
    slots = [open_cache(16 * size) for _ in range(2)]
    for block in range(40):
        slots[block % 2].get(JOB, block)
        n_kept = len(kept(tmp_path))
        assert n_kept <= 16 + 2 * 4  # a quarter more for each of the slots
    assert len(looks) == 2 * (1 + 19 // 4)
    assert len(origin.fetched) == 40


def test_a_full_folder_is_pruned_to_less_than_its_limit(origin, open_cache, tmp_path):
    """So that not every block is followed by another pruning."""
    for block in range(11):
        origin.put(block, "x" * 5000)
    cache = open_cache(10 * len(origin.objects[keys.texts_path(JOB, 0)]))
    for block in range(10):
        cache.get(JOB, block)
    assert len(kept(tmp_path)) == 10
    cache.get(JOB, 10)
    assert len(kept(tmp_path)) == 9


def test_threads_share_a_cache(origin, tmp_path, monkeypatch):
    """A chunk's blocks are fetched side by side, in and out of what is open and what is on the disk."""
    monkeypatch.setattr(blocks_module, "MAPPED_BYTES", 3 * LEAST_BYTES)
    for block in range(12):
        origin.put(block, f"text {block}", "x" * 5000)
    cache = BlockCache(tmp_path / "blocks", 30_000, origin.fetch)
    wanted = [block * step % 12 for step in (1, 5, 7) for block in range(48)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda block: cache.get(JOB, block)["text"][0].as_py(), wanted))
    assert found == [f"text {block}" for block in wanted]
    assert cache._mapped._size_bytes <= 3 * LEAST_BYTES


@pytest.mark.parametrize("damage", ["empty", "torn", "zeros", "altered", "another"])
def test_a_block_that_the_disk_damaged_is_fetched_again(origin, open_cache, tmp_path, caplog, damage):
    """Its content is compared with its hash whenever a slot opens it."""
    open_cache().get(JOB, 0)
    (file,) = (tmp_path / "blocks").glob("*.arrow")
    data = file.read_bytes()
    spoilt = {
        "empty": b"",
        "torn": data[: len(data) // 2],
        "zeros": bytes(len(data)),
        "altered": data.replace(b"xxxx", b"xxyx", 1),
        "another": origin.objects[keys.texts_path(JOB, 1)],
    }
    file.write_bytes(spoilt[damage])
    with caplog.at_level(logging.WARNING):
        assert open_cache().get(JOB, 0)["text"].to_pylist() == ["text 0", "x" * 5000]
    assert "Text block fetched again" in caplog.text
    assert "submit it again" not in caplog.text  # the store has it whole
    assert open_cache().get(JOB, 0)["text"][0].as_py() == "text 0"
    assert len(origin.fetched) == 2


def test_a_damaged_object_is_not_kept(origin, open_cache, tmp_path):
    """The next slot asks the store again, which may have it whole by then."""
    key = keys.texts_path(JOB, 0)
    whole = origin.objects[key]
    origin.objects[key] = whole[:-10]
    with pytest.raises(DamagedObject, match="submit it again"):
        open_cache().get(JOB, 0)
    assert kept(tmp_path) == []
    origin.objects[key] = whole
    assert open_cache().get(JOB, 0).num_rows == 2


def test_a_missing_block_is_named(open_cache):
    """The chunk fails with this line."""
    with pytest.raises(DamagedObject, match=r"texts/00000009\.arrow is missing"):
        open_cache().get(JOB, 9)


def test_without_a_folder_blocks_are_read_into_memory(origin, tmp_path, caplog):
    """That is said once."""
    (tmp_path / "file").write_text("")
    cache = BlockCache(tmp_path / "file" / "blocks", 2**30, origin.fetch)
    for block in (0, 1, 0):
        assert cache.get(JOB, block)["text"][0].as_py() == f"text {block}"
    assert len(origin.fetched) == 2
    assert caplog.text.count("Text blocks are not kept on disk") == 1


def test_a_full_disk_leaves_no_draft(origin, open_cache, tmp_path, monkeypatch, caplog):
    """The block is used all the same, as it was fetched, and that is said once."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        cache = open_cache()
        for block in (0, 1, 0):
            assert cache.get(JOB, block)["text"][0].as_py() == f"text {block}"
    assert len(origin.fetched) == 2
    assert caplog.text.count("Text blocks are not kept on disk") == 1
    assert list((tmp_path / "blocks").glob("*-0*")) == []


def test_old_drafts_go(open_cache, tmp_path):
    """A slot that was killed at its writing leaves one; that of a living slot stays."""
    folder = tmp_path / "blocks"
    folder.mkdir()
    for name in ("old.1.draft", "new.2.draft"):
        (folder / name).write_bytes(b"x")
    os.utime(folder / "old.1.draft", (time.time() - DRAFT_S - 60,) * 2)
    open_cache().get(JOB, 0)
    assert [file.name for file in folder.glob("*.draft")] == ["new.2.draft"]


def test_the_blocks_of_a_store_can_be_deleted(open_cache, tmp_path):
    """At the end of an embedded run, whose store goes too; those of others stay."""
    caches = {store_id: open_cache(store_id=store_id) for store_id in ("a", "b")}
    held = [cache.get(JOB, 0) for cache in caches.values()]
    caches["a"].clear()
    assert [file.name[0] for file in (tmp_path / "blocks").glob("*.arrow")] == ["b"]
    assert held[0]["text"][0].as_py() == "text 0"


def test_nobody_else_may_read_the_texts(open_cache, tmp_path):
    """The host has other users."""
    open_cache().get(JOB, 0)
    (file,) = (tmp_path / "blocks").glob("*.arrow")
    assert ((tmp_path / "blocks").stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
