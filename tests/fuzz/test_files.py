"""Files that are none, or have no end: each is answered within bounded memory and time."""

from __future__ import annotations

import gzip
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import zstandard

from tests.fuzz.commands import PATIENCE_S, SECRET, call, run

#: Bytes of address space of a process that reads: enough for one record, not for what the bombs below hold.
MEMORY_BYTES = 2 * 2**30
#: What a bomb holds, some of it packed into a few kB.
BOMB_BYTES = 4 * 2**30

#: Reads files as a job would, and says of each how many rows it has, or what is wrong.
READ = """
import json, sys
from producer.chunking import cut_chunks
from producer.readers import read_rows
from producer.sources import expand
from tasks.errors import BadInput
for name in sys.argv[1:]:
    try:
        chunks = cut_chunks(read_rows(expand([name])), chunk_rows=2000, chunk_bytes=2**18, keeps=False)
        print(json.dumps([name, sum(chunk.n_rows for chunk in chunks)]), flush=True)
    except BadInput as exc:
        print(json.dumps([name, str(exc)]), flush=True)
"""


def read(folder: Path, *names: str) -> dict[str, int | str]:
    """Read files in a process with little memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *names],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def gzip_of(start: bytes, block: bytes) -> bytes:
    """Return a gzip file of BOMB_BYTES, made of equal members, so that making it takes no time."""
    return gzip.compress(start) + gzip.compress(block) * (BOMB_BYTES // len(block))


def zstd_of(start: bytes, block: bytes) -> bytes:
    """Return the same as zstd."""
    pack = zstandard.ZstdCompressor().compress
    return pack(start) + pack(block) * (BOMB_BYTES // len(block))


def test_what_has_no_end_is_refused_in_bounded_memory(tmp_path):
    """Packed bombs and endless devices: one line names the place, and the memory of one record suffices."""
    bombs = {
        "a.txt.gz": gzip_of(b"one\n", bytes(2**24)),
        "a.jsonl.zst": zstd_of(b'{"text": "one"}\n{"text": "', b"x" * 2**24),
        "a.csv.gz": gzip_of(b'id,text\n1,"', b"one\n" * 2**22),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    found = read(tmp_path, *bombs, "zero.csv")
    longer = "longer than 64 MiB; a record takes one line"
    assert found == {
        "a.txt.gz": f"a.txt.gz, line 2: {longer}",
        "a.jsonl.zst": f"a.jsonl.zst, line 2: {longer}",
        "a.csv.gz": "a.csv.gz, line 2: a record of more than 64 MiB; a closing quote may be missing",
        "zero.csv": f"zero.csv, line 1: {longer}",
    }


def test_what_is_long_but_has_an_end_is_read_in_bounded_memory(tmp_path):
    """Many members, many rows, long lines and deep records are no bombs."""
    (tmp_path / "members.txt.gz").write_bytes(gzip.compress(b"one\n") * 20_000)
    (tmp_path / "rows.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"x" * 99 + b"\n") * 20_000)
    (tmp_path / "long.txt").write_bytes((b"x" * 10**7 + b"\n") * 3)
    (tmp_path / "deep.jsonl").write_text('{"text": "x"}\n{"text": ' + "[" * 10**7)
    (tmp_path / "wide.jsonl").write_text('{"text": "x", "n": [' + "0," * 10**6 + "0]}\n")
    (tmp_path / "keys.jsonl").write_text(json.dumps({f"key {i}": i for i in range(10**5)}))
    found = read(tmp_path, "members.txt.gz", "rows.txt.zst", "long.txt", "deep.jsonl", "wide.jsonl", "keys.jsonl")
    assert (found["members.txt.gz"], found["rows.txt.zst"], found["long.txt"]) == (20_000, 20_000, 3)
    assert "line 2: not valid JSON" in str(found["deep.jsonl"])
    assert found["wide.jsonl"] == 1
    assert str(found["keys.jsonl"]).startswith('keys.jsonl, line 1: no field "text"; the record has "key 0", "key 1", ')
    assert " and 99980 more; " in str(found["keys.jsonl"])


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("a.txt.gz", gzip.compress(b"x" * 1000)[:-4], "broken gzip data (Truncated compressed stream)"),
        ("a.txt.gz", gzip.compress(b"x\n") + b"garbage", "broken gzip data"),
        ("a.txt.gz", gzip.compress(b"x\n")[:-8] + zlib.crc32(b"y\n").to_bytes(4, "little") + bytes(4), "broken gzip"),
        ("a.txt.zst", zstandard.ZstdCompressor().compress(b"x" * 1000)[:-4], "broken zstd data"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\xff" + b"\xff" * 40, "broken zstd data"),
    ],
    ids=["torn gzip", "a tail", "another checksum", "torn zstd", "a window of exabytes"],
)
def test_packed_data_that_is_not_whole_is_refused(tmp_path, name, data, line):
    """Torn, followed by something else, with a wrong checksum, or of a window that no memory holds."""
    (tmp_path / name).write_bytes(data)
    outcome = call("encode", name, "--model", "fake", "--dry-run", folder=tmp_path).check()
    assert outcome.code == 4
    assert f"penstock: {name}: {line}" in outcome.err


def test_what_is_no_file_is_refused_by_its_name(tmp_path):
    """A folder, a socket, links in a circle, links to nowhere, and devices."""
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "nowhere.txt").symlink_to("none")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    (tmp_path / "random.jsonl").symlink_to("/dev/urandom")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket.txt"))
        for name, line in {
            "folder.txt": "folder.txt is a directory; name files or a glob such as folder.txt/*.jsonl",
            "loop.txt": "loop.txt: cannot be read (Too many levels of symbolic links)",
            "nowhere.txt": "nowhere.txt: no such file",
            "null.txt": "null.txt holds no records",
            "zero.parquet": "zero.parquet: broken parquet data (",
            "random.jsonl": "random.jsonl, line ",
            "socket.txt": "socket.txt: cannot be read (No such device or address)",
        }.items():
            outcome = call("encode", name, "--model", "fake", "--dry-run", folder=tmp_path).check()
            assert outcome.code == 4
            assert outcome.err.startswith(f"penstock: {line}")


def test_a_pipe_is_read_like_a_file(tmp_path):
    """By its name and as standard input, in a process of its own."""
    lines = b"".join(b"%s %d\n" % (SECRET.encode(), i) for i in range(1000))
    os.mkfifo(tmp_path / "pipe.txt")
    writer = threading.Thread(target=(tmp_path / "pipe.txt").write_bytes, args=(lines,))
    writer.start()
    outcome = run("encode", "pipe.txt", "--model", "fake", "--dry-run", "--json", folder=tmp_path).check()
    writer.join()
    assert json.loads(outcome.out)["rows"] == 1000
    (tmp_path / "lines").write_bytes(lines)
    with (tmp_path / "lines").open("rb") as stdin:
        outcome = run("encode", "-", "--model", "fake", "--dry-run", "--json", folder=tmp_path, stdin=stdin.fileno())
    assert json.loads(outcome.check().out)["rows"] == 1000


def test_a_file_without_permission_is_refused(tmp_path):
    """Of a user who may not read it."""
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "a.txt").chmod(0)
    if os.access(tmp_path / "a.txt", os.R_OK):
        pytest.skip("this user may read everything")
    outcome = call("encode", "a.txt", "--model", "fake", "--dry-run", folder=tmp_path).check()
    assert outcome.err == "penstock: a.txt: no permission to read it; chmod or chown it\n"
