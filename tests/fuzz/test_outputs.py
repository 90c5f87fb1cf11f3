"""Outputs: whatever is named and however full the disk is, the whole result is there or what was there before."""

from __future__ import annotations

import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from producer.writers import ResultInfo, check_out, write_results
from tasks.errors import UsageError
from tasks.ports import Computed
from tasks.tables import encode_result, input_table
from tests.fuzz.cases import fuzz
from tests.fuzz.commands import SECRET, check_line, leftovers
from tests.fuzz.mutations import value

EXTENSIONS = [".npy", ".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", "/"]
DIM = 16


def job(rng: random.Random) -> tuple[list[pa.Table], ResultInfo]:
    """Return the results of a few chunks."""
    tables, first = [], 0
    for n_rows in rng.choices([1, 7, 300], k=rng.choice([1, 3])):
        encoded = Computed(
            values=np.random.default_rng(first).random((n_rows, DIM), np.float32),
            n_tokens=np.ones(n_rows, np.int32),
            truncated=np.zeros(n_rows, bool),
            errors=["it failed" if rng.random() < 0.1 else None for _ in range(n_rows)],
            padded_tokens=n_rows,
            tokenise_s=0.0,
            model_s=0.0,
        )
        ids = [f"{rng.random()}" for _ in range(n_rows)]
        tables.append(encode_result(input_table(first, ids, [SECRET] * n_rows), encoded, "float32"))
        first += n_rows
    return tables, ResultInfo(first, DIM, "float32", {}, {"job": "encode-0123"})


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_disk_that_is_full_at_any_byte_leaves_what_was_there(tmp_path):
    """A limit on the size of files says the same as a full disk, at the same moments."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def attempt(rng: random.Random) -> bool:
        out = tmp_path / f"{rng.getrandbits(32)}"
        out.mkdir()
        target = f"{out}/result{rng.choice(EXTENSIONS)}"
        if rng.random() < 0.5:
            write_results(*job(rng), target, overwrite=False)
        before = content(out)
        tables, info = job(rng)
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.choice([0, 1, 100, rng.randrange(40_000)]), most[1]))
        try:
            write_results(tables, info, target, overwrite=True)
        except UsageError as exc:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
            check_line(exc)
            assert content(out) == before
            return True
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        check_whole(target, tables, info)
        assert not leftovers(out)
        return False

    fuzz("outputs, full disks", 2, attempt)


def test_any_name_is_written_or_refused_before_the_work(tmp_path, monkeypatch):
    """What check_out lets pass can be written; nothing else changes, whatever the name."""

    def attempt(rng: random.Random) -> bool:
        here = tmp_path / f"{rng.getrandbits(32)}"
        (here / "folder").mkdir(parents=True)
        (here / "folder" / "mine.txt").write_text("mine")
        (here / "there.npy").write_text("there")
        (here / "loop").symlink_to("loop")
        monkeypatch.chdir(here)
        before = content(tmp_path)
        place = rng.choice(["", "folder/", "there.npy/", "loop/", "none/", "file://", here.as_uri() + "/", f"{here}/"])
        name = value(rng).lstrip("/").replace("../", "./").replace("s3:", "file:").replace("\n", "_")  # stays here
        out = f"{place}{name}{rng.choice(EXTENSIONS)}"
        tables, info = job(rng)
        try:
            check_out(out, overwrite=False)
        except UsageError as exc:
            check_line(exc)
            assert content(tmp_path) == before
            return True
        assert write_results(tables, info, out, overwrite=False)
        assert not leftovers(tmp_path)
        assert before.items() < content(tmp_path).items()
        shutil.rmtree(here)
        return False

    fuzz("outputs, names", 4, attempt)


def check_whole(target: str, tables: list[pa.Table], info: ResultInfo) -> None:
    """Fail unless the output holds all rows."""
    if target.endswith(".npy"):
        assert np.load(target).shape == (info.n_rows, DIM)
    elif target.endswith(".parquet"):
        assert pq.read_table(target)["row"].to_pylist() == [row for table in tables for row in table["row"].to_pylist()]
    elif target.endswith("/"):
        assert (Path(target) / "manifest.json").is_file()
