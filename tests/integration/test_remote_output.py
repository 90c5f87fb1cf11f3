"""Results in object storage, against a server that speaks S3."""

from __future__ import annotations

import errno
import io
import json
import socket
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer import drafts, remote_outputs, shards
from producer.writers import ResultInfo, check_out, write_results
from tasks.errors import DamagedObject, OutputExists, StoreUnavailable, UsageError
from tasks.ports import Computed
from tasks.tables import encode_result, input_table
from tests.scores import Scored, chunks, info_of

#: Bytes that make an upload of two parts; S3 takes no part but the last below 5 MiB.
TWO_PARTS = remote_outputs.PART_BYTES + 1


#: A prefix whose characters mean something in URLs, and are only characters in keys.
FOLDER = "my results/é%20#1?"


@pytest.fixture(autouse=True)
def _drafts(s3, monkeypatch, tmp_path):
    """Use a temporary folder that can be looked at."""
    (tmp_path / "drafts").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "drafts"))


@pytest.fixture(name="bucket")
def _bucket(make_bucket):
    """Return a fresh bucket."""
    return make_bucket("results")


def job(n_rows: int, *, dim: int = 3, failed: bool = True) -> tuple[list[pa.Table], ResultInfo, np.ndarray]:
    """Build a job in chunks of 2 rows with an error in row 1, what they are together, and their vectors."""
    vectors = np.random.default_rng(0).standard_normal((n_rows, dim), dtype=np.float32)
    tables = []
    for first in range(0, n_rows, 2):
        numbers = range(first, min(first + 2, n_rows))
        encoded = Computed(
            values=vectors[first : first + 2],
            n_tokens=np.ones(len(numbers), np.int32),
            truncated=np.zeros(len(numbers), bool),
            errors=["No tokens." if failed and row == 1 else None for row in numbers],
        )
        inputs = input_table(first, [f"é{row}" for row in numbers], [""] * len(numbers))
        tables.append(encode_result(inputs, encoded, "float32"))
    if failed:
        vectors[1] = np.nan
    return tables, ResultInfo(n_rows, dim, "float32", {}, {"model": "MiniLM"}), vectors


def content(bucket) -> dict[str, bytes]:
    """Return every object of the bucket with its bytes."""
    return {item.key: item.get()["Body"].read() for item in bucket.objects.all()}


def drafts_left(tmp_path: Path) -> list[Path]:
    """Return what is left in the temporary folder."""
    return list((tmp_path / "drafts").iterdir())


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.arrow", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst"])
def test_an_object_is_what_the_local_file_would_be(bucket, tmp_path, name):
    """Each format is uploaded byte for byte, a .npy with its list of errors, and no draft stays behind."""
    tables, info, _ = job(5)
    local = write_results(tables, info, f"{tmp_path}/{name}", overwrite=False)
    check_out(f"s3://results/{FOLDER}/{name}", overwrite=False)
    written = write_results(tables, info, f"s3://results/{FOLDER}/{name}", overwrite=False)
    assert written == [f"s3://results/{FOLDER}/{Path(path).name}" for path in local]
    assert content(bucket) == {f"{FOLDER}/{Path(path).name}": Path(path).read_bytes() for path in local}
    assert drafts_left(tmp_path) == []


@pytest.mark.parametrize("name", ["x.trec", "x.run.gz", "x.jsonl.zst", "x.parquet", "x.npy"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_an_object_with_scores_is_what_the_local_file_would_be(bucket, tmp_path, name, top_k):
    """With the list of errors beside it where it needs one; that of an older object goes."""
    if name == "x.npy" and top_k:
        with pytest.raises(UsageError, match="--top-k cannot go with it"):
            check_out(f"s3://results/{name}", operation="score", top_k=top_k, overwrite=False)
        return
    pairs = [Scored(query, f"d{doc}", None if doc == 1 else doc / 7) for query in "qr" for doc in range(4)]
    for found in (pairs, [pair for pair in pairs if pair.score is not None]):
        tables, info = chunks(found, [3]), info_of(found)
        folder = tmp_path / f"{len(found)}"
        folder.mkdir()
        local = write_results(tables, info, f"{folder}/{name}", top_k=top_k, overwrite=False)
        check_out(f"s3://results/{name}", operation="score", top_k=top_k, overwrite=True)
        write_results(tables, info, f"s3://results/{name}", top_k=top_k, overwrite=True)
        assert content(bucket) == {Path(path).name: Path(path).read_bytes() for path in local}
    assert drafts_left(tmp_path) == []


def test_the_best_pairs_are_shards_below_the_prefix(bucket, monkeypatch):
    """As many as there are, with a manifest that says so."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    pairs = [Scored(query, f"d{doc}", doc / 7) for query in "qrs" for doc in range(5)]
    write_results(chunks(pairs, [4, 9]), info_of(pairs), "s3://results/best/", top_k=2, overwrite=False)
    manifest = json.loads(content(bucket)["best/manifest.json"])
    assert (manifest["rows"], [shard["rows"] for shard in manifest["shards"]]) == (6, [3, 3])
    rows = [pq.read_table(io.BytesIO(content(bucket)[f"best/{shard['rows_file']}"])) for shard in manifest["shards"]]
    assert pa.concat_tables(rows)["row"].to_pylist() == [4, 3, 9, 8, 14, 13]


def test_a_run_that_cannot_be_leaves_the_old_object(bucket, tmp_path):
    """A query that comes back is noticed before anything is uploaded."""
    good = [Scored("q", "d", 0.5)]
    write_results(chunks(good), info_of(good), "s3://results/x.trec", overwrite=False)
    before = content(bucket)
    bad = [Scored(query, "d", 0.5) for query in "qrq"]
    with pytest.raises(UsageError, match="comes back at row 2"):
        write_results(chunks(bad), info_of(bad), "s3://results/x.trec", overwrite=True)
    assert content(bucket) == before
    assert drafts_left(tmp_path) == []


def test_a_large_file_is_uploaded_in_parts(bucket):
    """S3's tag of an object names the number of its parts."""
    tables, info, vectors = job(2, dim=TWO_PARTS // 8, failed=False)
    write_results(tables, info, "s3://results/x.npy", overwrite=False)
    assert bucket.Object("x.npy").e_tag.endswith('-2"')
    np.testing.assert_array_equal(np.load(io.BytesIO(content(bucket)["x.npy"])), vectors)


def test_an_existing_object_is_replaced_only_when_asked(bucket):
    """Overwriting a .npy with errors by one without removes the old list of errors."""
    write_results(*job(3)[:2], "s3://results/x.npy", overwrite=False)
    before = content(bucket)
    tables, info, vectors = job(3, failed=False)
    with pytest.raises(OutputExists, match=r"s3://results/x\.npy exists already"):
        check_out("s3://results/x.npy", overwrite=False)
    with pytest.raises(OutputExists, match="--overwrite"):
        write_results(tables, info, "s3://results/x.npy", overwrite=False)
    assert content(bucket) == before
    check_out("s3://results/x.npy", overwrite=True)
    write_results(tables, info, "s3://results/x.npy", overwrite=True)
    assert list(content(bucket)) == ["x.npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(content(bucket)["x.npy"])), vectors)


@pytest.mark.parametrize("out", ["s3://results/", f"s3://results/{FOLDER}/"])
def test_shards_are_objects_below_the_prefix(bucket, tmp_path, monkeypatch, out):
    """Vectors, rows, errors and the manifest, which is the last to be written; no draft stays behind."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    tables, info, vectors = job(7)
    check_out(out, overwrite=False)
    written = write_results(tables, info, out, overwrite=False)
    objects = {f"s3://results/{key}": data for key, data in content(bucket).items()}
    assert sorted(written) == sorted(objects)
    assert written[-1] == f"{out}manifest.json"
    manifest = json.loads(objects[f"{out}manifest.json"])
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]
    parts = [np.load(io.BytesIO(objects[f"{out}{shard['vectors']}"])) for shard in manifest["shards"]]
    np.testing.assert_array_equal(np.concatenate(parts), vectors)
    rows = [pq.read_table(io.BytesIO(objects[f"{out}{shard['rows_file']}"])) for shard in manifest["shards"]]
    assert pa.concat_tables(rows)["row"].to_pylist() == list(range(7))
    assert json.loads(objects[f"{out}errors.jsonl"]) == {"row": 1, "id": "é1", "error": "No tokens."}
    assert drafts_left(tmp_path) == []


def test_the_local_disk_holds_one_shard_at_a_time(bucket, monkeypatch):
    """A shard is removed here once it is uploaded."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 2)
    upload, held = remote_outputs.Prefix.upload, []

    def counted(self, path):
        held.append(len(list(path.parent.glob("*.parquet"))))
        upload(self, path)

    monkeypatch.setattr(remote_outputs.Prefix, "upload", counted)
    write_results(*job(6)[:2], "s3://results/all/", overwrite=False)
    assert held == [1, 1] * 3 + [0, 0]  # the list of errors and the manifest come last


def test_overwriting_shards_leaves_none_of_the_old_and_all_that_is_foreign(bucket, monkeypatch):
    """Shards beyond the new ones and the list of errors go, an object that penstock did not write stays."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 1)
    write_results(*job(4)[:2], "s3://results/all/", overwrite=False)
    bucket.put_object(Key="all/README.md", Body=b"mine")
    with pytest.raises(OutputExists, match="--overwrite"):
        check_out("s3://results/all/", overwrite=False)
    monkeypatch.setattr(shards, "SHARD_ROWS", 100)
    write_results(*job(4, failed=False)[:2], "s3://results/all/", overwrite=True)
    names = ["README.md", "manifest.json", "rows-00000.parquet", "vectors-00000.npy"]
    assert sorted(content(bucket)) == [f"all/{name}" for name in names]


def test_shards_that_are_not_complete_are_removed(bucket, tmp_path, monkeypatch):
    """Rows that are missing at the end, or Ctrl-C, leave no object and no draft."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 2)
    tables, info, _ = job(6)
    with pytest.raises(DamagedObject, match="has 6 rows, its results have 4"):
        write_results(tables[:-1], info, "s3://results/all/", overwrite=False)
    upload = remote_outputs.Prefix.upload

    def interrupted(self, path):
        upload(self, path)
        if path.name == "vectors-00001.npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(remote_outputs.Prefix, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(tables, info, "s3://results/all/", overwrite=False)
    assert content(bucket) == {}
    assert drafts_left(tmp_path) == []


def test_old_shards_have_no_manifest_once_new_ones_replace_them(bucket, monkeypatch):
    """An overwrite that fails half-way does not leave a manifest over a mixture."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 2)
    write_results(*job(6)[:2], "s3://results/all/", overwrite=False)
    tables, info, _ = job(6, failed=False)
    with pytest.raises(DamagedObject):
        write_results(tables[:-1], info, "s3://results/all/", overwrite=True)
    assert "all/manifest.json" not in content(bucket)


def test_a_single_object_is_untouched_when_its_results_are_damaged(bucket, tmp_path):
    """The upload starts when the local file is whole."""
    write_results(*job(4)[:2], "s3://results/x.parquet", overwrite=False)
    before = content(bucket)
    tables, info, _ = job(4, failed=False)
    with pytest.raises(DamagedObject):
        write_results(tables[:-1], info, "s3://results/x.parquet", overwrite=True)
    assert content(bucket) == before
    assert drafts_left(tmp_path) == []


@pytest.mark.parametrize("name", ["x.npy", "all/"])
def test_a_missing_bucket_is_noticed_before_the_job(name):
    """One line names the output."""
    with pytest.raises(StoreUnavailable, match=r"^--out s3://nowhere/[^\n]+ 404 [^\n]+$"):
        check_out(f"s3://nowhere/{name}", overwrite=True)


@pytest.mark.parametrize("name", ["x.npy", "all/"])
def test_a_bucket_that_vanishes_leaves_no_draft(bucket, tmp_path, name):
    """A store that refuses the upload is one line, and the local files are gone."""
    tables, info, _ = job(3)

    def vanishing():
        yield from tables
        bucket.objects.delete()
        bucket.delete()

    with pytest.raises(StoreUnavailable, match=r"^--out s3://results/[^\n]+$"):
        write_results(vanishing(), info, f"s3://results/{name}", overwrite=False)
    assert drafts_left(tmp_path) == []
    bucket.create()


@pytest.mark.parametrize("name", ["x.npy", "all/"])
def test_a_store_that_does_not_answer_is_noticed_before_the_job(monkeypatch, name):
    """Nobody listens at the endpoint."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match=r"^--out s3://results/[^\n]*: the store failed [^\n]+$"):
            check_out(f"s3://results/{name}", overwrite=False)


def test_an_unknown_extension_is_refused_without_asking_the_store(monkeypatch):
    """A typing error needs no network to be seen."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"Known are \.npy"):
        check_out("s3://results/x.csv", overwrite=False)


def test_a_full_temporary_folder_is_named_with_its_remedy(bucket, tmp_path, monkeypatch):
    """The disk that is full is not where the output goes, so the message says which it is."""

    def full(path: Path, _mode: str):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(drafts.Path, "open", full)
    tables, info, _ = job(3)
    with pytest.raises(UsageError, match=rf"temporary folder {tmp_path}/drafts .*TMPDIR.* is full"):
        write_results(tables, info, "s3://results/x.npy", overwrite=False)
    assert content(bucket) == {}
