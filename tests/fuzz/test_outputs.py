"""Outputs: whatever is named and however full the disk is, the whole result is there or what was there before."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from producer.ranking import rank
from producer.writers import ResultInfo, check_out, write_results
from tasks.errors import UsageError
from tasks.ports import Computed
from tasks.tables import encode_result, input_table
from tests.fuzz.cases import fuzz
from tests.fuzz.commands import SECRET, check_line, leftovers
from tests.fuzz.mutations import value
from tests.scores import Scored, chunks, info_of

EXTENSIONS = [".npy", ".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".trec", ".run", ".trec.zst", "/"]
RUNS = (".trec", ".run", ".trec.zst")
DIM = 16


def job(rng: random.Random, extension: str) -> tuple[list[pa.Table], ResultInfo]:
    """Return the results of a few chunks, of an operation that has files with that extension."""
    return scoring_job(rng) if extension in RUNS or rng.random() < 0.5 else encode_job(rng)


def scoring_job(rng: random.Random, ids: Callable[[int], str] = str) -> tuple[list[pa.Table], ResultInfo]:
    """Return scores, with ties, doubles and errors; ids makes an id of a number."""
    pairs = [
        Scored(f"{query}", ids(rng.randrange(200)), rng.choice([None, 0.0, 0.5, rng.random()]))
        for query in range(rng.choice([1, 40]))
        for _ in range(rng.choice([1, 9, 200]))
    ]
    return chunks(pairs, rng.sample(range(1, 8000), 3)), info_of(pairs, rng.choice(["", "a b", "name"]))


def encode_job(rng: random.Random) -> tuple[list[pa.Table], ResultInfo]:
    """Return vectors."""
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
        extension = rng.choice(EXTENSIONS)
        target = f"{out}/result{extension}"
        if rng.random() < 0.5:
            write_results(*job(rng, extension), target, overwrite=False)
        before = content(out)
        tables, info = job(rng, extension)
        top_k = rng.choice([None, 3]) if info.operation == "score" and extension != ".npy" else None
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.choice([0, 1, 100, rng.randrange(40_000)]), most[1]))
        try:
            write_results(tables, info, target, top_k=top_k, overwrite=True)
        except UsageError as exc:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
            check_line(exc)
            assert content(out) == before
            return True
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        check_whole(target, tables, info, top_k)
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
        extension = rng.choice(EXTENSIONS)
        out = f"{place}{name}{extension}"
        tables, info = job(rng, extension)
        top_k = rng.choice([None, None, 0, 1, 10**12])
        try:
            check_out(out, operation=info.operation, top_k=top_k, overwrite=False)
        except UsageError as exc:
            check_line(exc)
            assert content(tmp_path) == before
            return True
        assert write_results(tables, info, out, top_k=top_k, overwrite=False)
        assert not leftovers(tmp_path)
        assert before.items() < content(tmp_path).items()
        shutil.rmtree(here)
        return False

    fuzz("outputs, names", 4, attempt)


def test_any_ids_are_in_a_run_whole_or_refused(tmp_path):
    """A reader of the file sees the very pairs of the job, whatever their ids are."""

    def attempt(rng: random.Random) -> bool:
        target = tmp_path / f"{rng.getrandbits(32)}.trec"
        hostile = [value(rng).encode(errors="replace").decode() for _ in range(rng.choice([1, 3]))]
        tables, info = scoring_job(rng, lambda number: hostile[number] if number < len(hostile) else f"{number}")
        try:
            write_results(tables, info, str(target), overwrite=False)
        except UsageError as exc:
            check_line(exc)
            assert not list(tmp_path.iterdir())
            return True
        best = {(one.query_id, doc) for one in rank(tables, None) for doc in one.best["doc_id"].to_pylist()}
        lines = [line.split() for line in target.read_text(encoding="utf-8").splitlines()]
        assert {(query, doc) for query, _, doc, _, _, _ in lines} == best
        assert len(lines) == len(best)
        for path in tmp_path.iterdir():
            path.unlink()
        return False

    fuzz("outputs, ids", 2, attempt)


def check_whole(target: str, tables: list[pa.Table], info: ResultInfo, top_k: int | None) -> None:
    """Fail unless the output holds all rows."""
    if target.endswith(".npy"):
        assert np.load(target).shape == (info.n_rows, *info.value_shape)
    elif target.endswith((".trec", ".run")):
        lines = [line.split() for line in Path(target).read_text(encoding="utf-8").splitlines()]
        assert [(query, doc) for query, _, doc, _, _, _ in lines] == [
            (one.query_id, doc) for one in rank(tables, top_k) for doc in one.best["doc_id"].to_pylist()
        ]
    elif target.endswith(".parquet") and top_k is None:
        assert pq.read_table(target)["row"].to_pylist() == [row for table in tables for row in table["row"].to_pylist()]
    elif target.endswith("/"):
        assert (Path(target) / "manifest.json").is_file()
