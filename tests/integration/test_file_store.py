"""A store in a folder on disks that lose power, fill up, or are not there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import keys
from tasks.errors import DamagedObject, StoreUnavailable
from tasks.store import open_store, store_id

KEY = "jobs/encode-0001/result/00000000-0000000000001.arrow"
FOLDER = KEY.rpartition("/")[0]


@pytest.fixture
def store(tmp_path):
    """Return an empty store."""
    store = open_store(f"file://{tmp_path}/store")
    store_id(store)
    return store


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Return a list of what is forced to disk and what is renamed or linked, in order."""
    found = []
    fsync, link, replace = os.fsync, os.link, Path.replace

    def name(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "draft" if path.name.startswith(".") else str(path.relative_to(tmp_path))

    monkeypatch.setattr(os, "fsync", lambda fd: found.append(f"sync {name(fd)}") or fsync(fd))
    monkeypatch.setattr(os, "link", lambda a, b: found.append("link") or link(a, b))
    monkeypatch.setattr(Path, "replace", lambda a, b: found.append("rename") or replace(a, b))
    return found


def drafts(tmp_path):
    """Return the files that have no object's name."""
    return [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name.startswith(".")]


def test_an_object_is_on_disk_before_its_name_and_its_name_before_put_returns(store, calls):
    """The ledger names it right afterwards; the folders that were made for it are on disk too."""
    store.put(KEY, b"data")
    made = ["sync store", "sync store/jobs", "sync store/jobs/encode-0001"]
    assert calls == [*made, "sync draft", "rename", f"sync store/{FOLDER}"]
    calls.clear()
    store.put(KEY.replace("00000000-", "00000001-"), b"data")
    assert calls == ["sync draft", "rename", f"sync store/{FOLDER}"]


def test_an_object_that_is_created_is_on_disk_too(tmp_path, calls):
    """The store's id must not change after a power cut; the root's own entry is on disk as well."""
    store_id(open_store(f"file://{tmp_path}/store"))
    assert calls == ["sync .", "sync draft", "link", "sync store"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "The disk is full: make room."),
        (errno.EDQUOT, "The quota is used up: make room, or ask for more."),
        (errno.EROFS, "It is mounted read-only: mount it for writing."),
        (errno.EACCES, "This user has no right to: change the folder's owner or mode."),
        (errno.EIO, ""),
    ],
)
@pytest.mark.parametrize("when", ["open", "fsync", "replace"])
def test_a_disk_that_refuses_is_one_line_with_a_remedy(store, tmp_path, monkeypatch, number, remedy, when):
    """At whatever moment; what was there stays, nothing half-written has a name, and later it goes on."""
    store.put(KEY, b"older")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as context:
        context.setattr(Path if when == "replace" else os, when, refuse)
        with pytest.raises(StoreUnavailable) as caught:
            store.put(KEY, b"newer and longer")
    assert str(caught.value).endswith(f"failed on {KEY}: {os.strerror(number)}.{' ' * bool(remedy)}{remedy}")
    assert caught.value.data == {"key": KEY}
    assert store.get(KEY) == b"older"
    assert drafts(tmp_path) == []
    store.put(KEY, b"newer and longer")
    assert store.get(KEY) == b"newer and longer"


#: Runs as root of a mount namespace of its own: fills a disk of 1 MiB, makes room, and mounts it read-only.
REAL_DISK = """
import subprocess, sys
from tasks.errors import StoreUnavailable
from tasks.store import open_store, store_id
folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
store = open_store("file://" + folder)
store_id(store)

def line(size):
    try:
        store.put("jobs/J/input/1", b"x" * size)
    except StoreUnavailable as exc:
        return str(exc).partition(": ")[2]
    return "written"

print(line(500_000), line(2_000_000), len(store.get("jobs/J/input/1")), line(400_000), sep="|")
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
print(line(1), len(store.get("jobs/J/input/1")), sep="|")
"""


def test_a_real_disk_that_is_full_or_read_only_keeps_what_it_has(tmp_path):
    """A file system of 1 MiB, in a child that may mount one."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this user may not mount anything, not even in a namespace of their own")
    command = ["unshare", "-rm", sys.executable, "-c", REAL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [
        f"written|{os.strerror(errno.ENOSPC)}. The disk is full: make room.|500000|written",
        f"{os.strerror(errno.EROFS)}. It is mounted read-only: mount it for writing.|400000",
    ], done.stderr


def test_a_disk_that_is_not_mounted_is_a_passing_fault(store, tmp_path):
    """Otherwise every object would count as lost, and results would be written below the mount point."""
    store.put(KEY, b"data")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    for call in (lambda: store.get(KEY), lambda: store.put(KEY, b"data")):
        with pytest.raises(StoreUnavailable, match=r"is not there: penstock-store-id is missing. Mount it\.$"):
            call()
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "store").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.get(KEY) == b"data"
    with pytest.raises(DamagedObject):
        store.get(f"{KEY}.other")


def test_what_a_power_cut_left_of_a_draft_is_no_object(store, tmp_path):
    """It is not listed, and goes with its folder."""
    store.put(KEY, b"data")
    (tmp_path / "store" / FOLDER / ".00000000-0000000000001.arrow.0badf00d").write_bytes(b"da")
    assert list(store.list_keys("jobs/")) == [KEY]
    store.delete_folder("jobs/encode-0001/")
    assert list((tmp_path / "store" / "jobs").iterdir()) == []


def test_a_folder_into_which_somebody_still_writes_is_deleted(store, tmp_path, monkeypatch):
    """A slot that was late; the next pass takes it."""
    store.put(KEY, b"data")
    rmdir, late = Path.rmdir, ["late"]

    def write_late(folder):
        if late and folder.name == "result":
            (folder / late.pop()).touch()
        rmdir(folder)

    monkeypatch.setattr(Path, "rmdir", write_late)
    store.delete_folder("jobs/encode-0001/")
    assert list(store.list_keys("jobs/")) == []
    assert keys.STORE_ID in {path.name for path in (tmp_path / "store").iterdir()}
