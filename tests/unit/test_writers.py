"""Results as files and folders, on a local disk."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from producer import drafts, result_formats, shards
from producer.writers import ResultInfo, check_kept, check_out, write_results
from tasks.errors import DamagedObject, OutputExists, StoreUnavailable, UsageError
from tasks.ports import Computed
from tasks.tables import encode_result, input_table

FILES = ["x.npy", "x.parquet", "x.arrow", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst"]
OUTPUTS = [*FILES, "shards/"]
ROW_FILES = [name for name in FILES if name != "x.npy"]
DTYPES = ["float32", "float16"]

KEPT_TYPES = {"year": "int64", "score": "float64", "is_new": "bool", "title": "string", "tags": "json"}
KEPT_ROWS: list[list[Any]] = [
    [2**62, 0.1, True, "naïve 日本", {"a": [1, None]}],
    [None, 2**53 + 2, None, None, None],
    [-3, None, False, "", "text"],
    [0, 1e300, True, 'quo"te\n', 7],
]
METADATA = {"model": "MiniLM", "revision": "", "job": "j-1", "options": '{"pooling": "mean"}'}
ERROR = "Row 2 has no tokens."


def chunk(first_row: int, vectors: np.ndarray, *, errors: dict[int, str] | None = None, kept: bool = False) -> pa.Table:
    """Build a chunk result as a worker does; errors and kept values go by row number."""
    numbers = range(first_row, first_row + len(vectors))
    inputs = input_table(
        first_row,
        [f"é-{row}-🦉" for row in numbers],
        ["" for _ in numbers],
        [json.dumps(KEPT_ROWS[row % 4], ensure_ascii=False) for row in numbers] if kept else None,
    )
    encoded = Computed(
        values=vectors,
        n_tokens=np.array([row + 2 for row in numbers], np.int32),
        truncated=np.array([row % 3 == 1 for row in numbers]),
        errors=[(errors or {}).get(row) for row in numbers],
    )
    return encode_result(inputs, encoded, vectors.dtype.name)


def job(
    sizes: tuple[int, ...] = (2, 3, 1),
    dim: int = 3,
    dtype: str = "float32",
    *,
    kept: bool = False,
    failed: bool = True,
) -> tuple[list[pa.Table], ResultInfo, np.ndarray]:
    """Build chunks of these sizes with an error in row 2, what they are together, and all their vectors."""
    vectors = np.random.default_rng(0).standard_normal((sum(sizes), dim)).astype(dtype)
    starts = np.cumsum([0, *sizes[:-1]])
    errors = {2: ERROR} if failed else {}
    tables = [
        chunk(int(start), vectors[start : start + size], errors=errors, kept=kept)
        for start, size in zip(starts, sizes, strict=True)
    ]
    if failed:
        vectors[2] = np.nan
    info = ResultInfo(len(vectors), dim, dtype, KEPT_TYPES if kept else {}, METADATA)  # type: ignore[arg-type]
    return tables, info, vectors


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of rows back, whatever its format."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".arrow":
        return pa.ipc.open_file(path).read_all().to_pylist()
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is written ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROW_FILES)
def test_every_row_comes_back_with_its_vector_and_columns(tmp_path, name, dtype):
    """Several chunks, one with an error row, in each format of rows."""
    tables, info, vectors = job(dtype=dtype)
    out = f"{tmp_path}/{name}"
    assert write_results(tables, info, out, overwrite=False) == [out]
    rows = read_rows(tmp_path / name)
    assert [row["row"] for row in rows] == list(range(6))
    assert [row["id"] for row in rows] == [f"é-{row}-🦉" for row in range(6)]
    assert [row["n_tokens"] for row in rows] == [2, 3, 4, 5, 6, 7]
    assert [row["truncated"] for row in rows] == [False, True, False, False, True, False]
    assert [row["error"] for row in rows] == [None, None, ERROR, None, None, None]
    assert rows[2]["vector"] is None
    for index in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(np.array(rows[index]["vector"], dtype), vectors[index])


@pytest.mark.parametrize("name", ROW_FILES)
def test_kept_fields_are_columns_of_their_own(tmp_path, name):
    """Each kept type comes back as it went in; json is JSON text in Arrow and a value in JSON."""
    tables, info, _ = job(kept=True)
    write_results(tables, info, f"{tmp_path}/{name}", overwrite=False)
    rows = read_rows(tmp_path / name)
    for row, values in zip(rows, [*KEPT_ROWS, *KEPT_ROWS[:2]], strict=True):
        assert list(row)[6:] == list(KEPT_TYPES)
        assert [row["year"], row["score"], row["is_new"], row["title"]] == values[:4]
        tags = row["tags"] if "jsonl" in name or row["tags"] is None else json.loads(row["tags"])
        assert tags == values[4]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_schema_has_the_types_and_the_metadata(tmp_path, name, dtype):
    """A reader sees the Arrow types of all columns and how the vectors were made."""
    tables, info, _ = job(kept=True, dtype=dtype)
    path = tmp_path / name
    write_results(tables, info, str(path), overwrite=False)
    schema = pq.read_schema(path) if name == "x.parquet" else pa.ipc.open_file(path).schema
    assert {field.name: str(field.type) for field in schema} == {
        "row": "int64",
        "id": "string",
        "vector": f"fixed_size_list<{schema.field('vector').type.value_field.name}: "
        f"{'float' if dtype == 'float32' else 'halffloat'}>[3]",
        "n_tokens": "int32",
        "truncated": "bool",
        "error": "string",
        "year": "int64",
        "score": "double",
        "is_new": "bool",
        "title": "string",
        "tags": "string",
    }
    written = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert {key: value for key, value in written.items() if key.startswith("penstock.")} == {
        f"penstock.{key}": value for key, value in METADATA.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_can_be_mapped_and_names_its_error_rows_beside_it(tmp_path, dtype):
    """The vectors are (n_rows, dim) with NaN in the row that the side file names."""
    tables, info, vectors = job(dtype=dtype)
    out = str(tmp_path / "x.npy")
    assert write_results(tables, info, out, overwrite=False) == [out, f"{out}.errors.jsonl"]
    mapped = np.load(out, mmap_mode="r")
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(mapped, vectors)
    assert read_rows(tmp_path / "x.npy.errors.jsonl") == [{"row": 2, "id": "é-2-🦉", "error": ERROR}]


def test_npy_without_errors_has_no_side_file_not_even_an_old_one(tmp_path):
    """Overwriting a file with errors by one without removes the list of the old errors."""
    out = str(tmp_path / "x.npy")
    write_results(*job()[:2], out, overwrite=False)
    assert write_results(*job(failed=False)[:2], out, overwrite=True) == [out]
    assert list(tree(tmp_path)) == ["x.npy"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_no_rows_are_a_whole_file(tmp_path, name):
    """A job without rows gives an output that can be read."""
    info = ResultInfo(0, 3, "float32", {}, METADATA)
    write_results([], info, f"{tmp_path}/{name}", overwrite=False)
    if name == "x.npy":
        assert np.load(tmp_path / name).shape == (0, 3)
    elif name == "shards/":
        assert json.loads((tmp_path / "shards/manifest.json").read_text())["shards"] == []
    else:
        assert read_rows(tmp_path / name) == []


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("dim", [0, 3])
def test_chunks_of_errors_need_no_vectors_of_the_right_type(tmp_path, name, dim):
    """A chunk that was given up has nulls of any dimension; a job of such chunks may have dimension 0."""
    given_up = dict.fromkeys(range(9), "Given up.")
    first = chunk(0, np.ones((2, 3), np.float32), errors={} if dim else given_up)
    tables = [first, chunk(2, np.zeros((2, 1), np.float16), errors=given_up)]
    write_results(tables, ResultInfo(4, dim, "float32", {}, {}), f"{tmp_path}/{name}", overwrite=False)
    if name in ROW_FILES:
        vectors = [row["vector"] for row in read_rows(tmp_path / name)]
        assert vectors == ([[1.0] * 3] * 2 if dim else [None] * 2) + [None] * 2
    else:
        path = tmp_path / ("x.npy" if name == "x.npy" else "shards/vectors-00000.npy")
        np.testing.assert_array_equal(np.load(path), np.array([[1.0] * dim] * 2 + [[np.nan] * dim] * 2))


def test_parquet_row_groups_are_bounded_by_rows(tmp_path, monkeypatch):
    """Small chunks are gathered into a row group, a large one is cut."""
    monkeypatch.setattr(result_formats, "ROW_GROUP_ROWS", 5)
    tables, info, _ = job((2, 2, 2, 11, 1))
    write_results(tables, info, str(tmp_path / "x.parquet"), overwrite=False)
    meta = pq.read_metadata(tmp_path / "x.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [4, 2, 5, 5, 2]


def test_parquet_row_groups_are_bounded_by_bytes_and_vectors_have_no_dictionary(tmp_path, monkeypatch):
    """A row group ends when it has its bytes; the vectors' column is plain zstd without statistics."""
    monkeypatch.setattr(result_formats, "ROW_GROUP_BYTES", 1)
    tables, info, _ = job((2, 3, 1))
    write_results(tables, info, str(tmp_path / "x.parquet"), overwrite=False)
    meta = pq.read_metadata(tmp_path / "x.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [2, 3, 1]
    vector = meta.row_group(0).column(2)
    assert vector.path_in_schema.startswith("vector.")
    assert not vector.has_dictionary_page
    assert not vector.is_stats_set
    assert vector.compression == "ZSTD"


def test_numbers_in_jsonl_are_as_short_as_float32_allows(tmp_path):
    """0.1 is 0.1, not the double next to it; what JSON cannot say is null, and -0.0 keeps its sign."""
    vectors = np.array([[0.1, -0.0, 1.0], [np.inf, -np.inf, np.nan], [3.4028235e38, 1e-45, 1 / 3]], np.float32)
    info = ResultInfo(3, 3, "float32", {}, {})
    write_results([chunk(0, vectors)], info, str(tmp_path / "x.jsonl"), overwrite=False)
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    expected = '{"row": 0, "id": "é-0-🦉", "vector": [0.1, -0.0, 1], "n_tokens": 2, "truncated": false, '
    assert lines[0] == expected + '"error": null}'
    assert '"vector": [null, null, null]' in lines[1]
    assert '"vector": [3.4028235e+38, 1e-45, 0.33333334]' in lines[2]


def test_the_same_results_are_the_same_gzip_bytes(tmp_path):
    """Neither a time nor a file name gets into the file."""
    tables, info, _ = job()
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_results(tables, info, f"{tmp_path}/{name}", overwrite=False)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)  # RFC 1952: MTIME, none


@st.composite
def results(draw) -> tuple[list[pa.Table], list[dict[str, Any]], ResultInfo]:
    """Draw chunks, the rows in them, and what they are together."""
    dim = draw(st.integers(1, 4))
    dtype, width = draw(st.sampled_from([("float32", 32), ("float16", 16)]))
    number = st.floats(width=width, allow_nan=False, allow_infinity=False)
    text = st.text(st.characters(codec="utf-8"), max_size=8)
    row = st.fixed_dictionaries(
        {
            "id": text,
            "vector": st.none() | st.lists(number, min_size=dim, max_size=dim),
            "n_tokens": st.integers(0, 2**31 - 1),
            "truncated": st.booleans(),
            "int": st.none() | st.integers(-(2**63), 2**63 - 1),
            "str": st.none() | text,
        }
    )
    chunks = draw(st.lists(st.lists(row, max_size=4), max_size=4))
    info = ResultInfo(sum(map(len, chunks)), dim, dtype, {"int": "int64", "str": "string"}, {})
    tables, first_row = [], 0
    for rows in chunks:
        tables.append(drawn_chunk(first_row, rows, info))
        first_row += len(rows)
    return tables, [row for rows in chunks for row in rows], info


def drawn_chunk(first_row: int, rows: list[dict[str, Any]], info: ResultInfo) -> pa.Table:
    """Build the chunk result of drawn rows; those without a vector have an error."""
    kept = [json.dumps([row["int"], row["str"]]) for row in rows]
    inputs = input_table(first_row, [row["id"] for row in rows], [""] * len(rows), kept)
    vectors = np.array([row["vector"] or [0] * info.dim for row in rows], info.vector_dtype)
    encoded = Computed(
        values=vectors.reshape(len(rows), info.dim),
        n_tokens=np.array([row["n_tokens"] for row in rows], np.int32),
        truncated=np.array([row["truncated"] for row in rows], bool),
        errors=[None if row["vector"] else "failed" for row in rows],
    )
    return encode_result(inputs, encoded, info.vector_dtype)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.arrow"])
@given(drawn=results())
def test_whatever_is_written_is_read_back(tmp_path_factory, name, drawn):
    """Every bit of every number and character survives, in any cut into chunks."""
    tables, rows, info = drawn
    path = tmp_path_factory.mktemp("drawn") / name
    write_results(tables, info, str(path), overwrite=False)
    read = read_rows(path)
    assert [row["row"] for row in read] == list(range(len(rows)))
    for got, row in zip(read, rows, strict=True):
        assert (got["vector"] is None) == (row["vector"] is None) == (got["error"] == "failed")
        if row["vector"] is not None:
            assert (
                np.array(got["vector"], info.vector_dtype).tobytes()
                == np.array(row["vector"], info.vector_dtype).tobytes()
            )
        assert {key: got[key] for key in row if key != "vector"} == {key: row[key] for key in row if key != "vector"}


# --- a folder of shards ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_shards_are_in_lockstep_and_the_manifest_says_which_rows_they_have(tmp_path, monkeypatch, dtype):
    """Chunks smaller and larger than a shard are cut at its borders, vectors and rows alike."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    tables, info, vectors = job((2, 3, 9), dtype=dtype, kept=True)
    out = f"{tmp_path}/shards/"
    written = write_results(tables, info, out, overwrite=False)
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text(encoding="utf-8"))
    assert [shard["first_row"] for shard in manifest["shards"]] == [0, 4, 8, 12]
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 4, 2]
    assert manifest == {
        "rows": 14,
        "dim": 3,
        "dtype": dtype,
        "metadata": METADATA,
        "shards": manifest["shards"],
    }
    for number, shard in enumerate(manifest["shards"]):
        assert shard["vectors"] == f"vectors-{number:05}.npy"
        assert shard["rows_file"] == f"rows-{number:05}.parquet"
        first, end = shard["first_row"], shard["first_row"] + shard["rows"]
        np.testing.assert_array_equal(
            np.load(tmp_path / "shards" / shard["vectors"], mmap_mode="r"), vectors[first:end]
        )
        rows = pq.read_table(tmp_path / "shards" / shard["rows_file"])
        assert rows["row"].to_pylist() == list(range(first, end))
        assert rows.column_names == ["row", "id", "n_tokens", "truncated", "error", *KEPT_TYPES]
        assert rows.schema.metadata[b"penstock.model"] == b"MiniLM"
    assert read_rows(tmp_path / "shards/errors.jsonl") == [{"row": 2, "id": "é-2-🦉", "error": ERROR}]
    assert sorted(written) == sorted(f"{out}{name}" for name in tree(tmp_path / "shards"))
    assert written[-1] == f"{out}manifest.json"


def test_shards_are_bounded_by_the_bytes_of_their_vectors(tmp_path, monkeypatch):
    """Long vectors make short shards."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 4 * 2)
    tables, info, _ = job((5,))
    write_results(tables, info, f"{tmp_path}/shards/", overwrite=False)
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [2, 2, 1]


def test_an_existing_folder_takes_shards_without_a_slash(tmp_path):
    """An empty folder is an output; nothing but shards is in it, or beside it, afterwards."""
    (tmp_path / "there").mkdir()
    write_results(*job(failed=False)[:2], str(tmp_path / "there"), overwrite=False)
    assert sorted(tree(tmp_path)) == [
        "there/manifest.json",
        "there/rows-00000.parquet",
        "there/vectors-00000.npy",
    ]


def test_overwriting_a_folder_leaves_none_of_its_old_shards(tmp_path, monkeypatch):
    """More and smaller shards of an older result do not stay beside the new ones."""
    out = f"{tmp_path}/shards/"
    monkeypatch.setattr(shards, "SHARD_ROWS", 1)
    write_results(*job()[:2], out, overwrite=False)
    monkeypatch.setattr(shards, "SHARD_ROWS", 100)
    written = write_results(*job(failed=False)[:2], out, overwrite=True)
    assert len(written) == 3
    assert sorted(tree(tmp_path)) == [
        "shards/manifest.json",
        "shards/rows-00000.parquet",
        "shards/vectors-00000.npy",
    ]


def test_the_old_folder_is_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    """Between the two renames of an overwrite, a fault undoes the first one."""
    out = f"{tmp_path}/shards/"
    write_results(*job()[:2], out, overwrite=False)
    before = tree(tmp_path)
    rename = Path.replace

    def fail_for_draft(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp") and self.is_dir():
            raise OSError(errno.EIO, "broken", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_draft)
    with pytest.raises(OSError, match="broken"):
        write_results(*job(failed=False)[:2], out, overwrite=True)
    assert tree(tmp_path) == before


# --- all or nothing ---


def broken_off(tables: list[pa.Table], fault: BaseException) -> Iterator[pa.Table]:
    """Yield the tables but the last one, then fail."""
    yield from tables[:-1]
    raise fault


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), StoreUnavailable("gone")])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_interrupted_write_leaves_nothing(tmp_path, name, fault):
    """Neither the output nor its draft is there after Ctrl-C or a fault of the store."""
    tables, info, _ = job()
    with pytest.raises(type(fault)):
        write_results(broken_off(tables, fault), info, f"{tmp_path}/{name}", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), StoreUnavailable("gone")])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_interrupted_overwrite_keeps_the_old_output(tmp_path, name, fault):
    """What was there is there still, byte by byte, the list of errors included."""
    out = f"{tmp_path}/{name}"
    write_results(*job()[:2], out, overwrite=False)
    before = tree(tmp_path)
    tables, info, _ = job(failed=False)
    with pytest.raises(type(fault)):
        write_results(broken_off(tables, fault), info, out, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables[:-1], "has 6 rows, its results have 5"),
        (lambda tables: [*tables, chunk(6, np.ones((1, 3), np.float32))], "has 6 rows, its results have 7"),
        (lambda tables: [tables[0], tables[0], *tables[1:]], "Rows 0 to 1 of the results are not in order"),
        (lambda tables: [tables[1], tables[0], tables[2]], "Rows 0 to 1 of the results are not in order"),
        (lambda tables: [*tables[:2], chunk(5, np.ones((1, 2), np.float32))], "vectors of fixed_size_list"),
    ],
    ids=["too few", "too many", "doubled", "out of order", "other vectors"],
)
def test_results_that_are_not_the_jobs_are_refused(tmp_path, monkeypatch, name, change, message):
    """Rows too few, too many, doubled or out of order, or of another dimension, make no output."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 2)
    tables, info, _ = job()
    with pytest.raises(DamagedObject, match=message):
        write_results(change(tables), info, f"{tmp_path}/{name}", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_results_without_the_kept_fields_are_refused(tmp_path, name):
    """A chunk that lost its kept column, or has other fields in it, is damaged."""
    tables, info, _ = job(kept=True)
    for damaged in (job()[0], [tables[0].set_column(6, "kept", pa.array(["[1]", "[2]"])), *tables[1:]]):
        with pytest.raises(DamagedObject, match="lacks the kept fields year, score"):
            write_results(damaged, info, f"{tmp_path}/{name}", overwrite=False)


def test_a_kept_value_of_another_type_is_refused_without_showing_it(tmp_path):
    """A text in a column of ints is neither cut nor converted, nor is it in the message."""
    tables, _, _ = job(kept=True)
    info = ResultInfo(6, 3, "float32", KEPT_TYPES | {"title": "int64"}, {})
    with pytest.raises(DamagedObject, match="kept field title is int64") as caught:
        write_results(tables, info, str(tmp_path / "x.parquet"), overwrite=False)
    assert "naïve" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, name):
    """After a power cut, what has the name is whole."""
    forced = []
    path = tmp_path / name
    monkeypatch.setattr(os, "fsync", lambda number: forced.append((os.fstat(number).st_ino, path.exists())))
    write_results(*job()[:2], str(path), overwrite=False)
    assert (path.stat().st_ino, False) in forced


class FullDisk(io.FileIO):
    """A file on a disk with no room beyond a few bytes."""

    room_bytes = 0

    def write(self, data: Any) -> int:
        """Take what fits."""
        if self.tell() + memoryview(data).nbytes > self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return super().write(data)


@pytest.mark.parametrize("room_bytes", [0, 20_000])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_is_one_line_that_names_the_output(tmp_path, monkeypatch, name, room_bytes):
    """Whether nothing fits or the middle does not, no draft is left."""
    monkeypatch.setattr(FullDisk, "room_bytes", room_bytes)
    monkeypatch.setattr(drafts.Path, "open", lambda path, mode: io.BufferedWriter(FullDisk(path, mode)))
    tables, info, _ = job((100, 100, 100), dim=64)
    with pytest.raises(UsageError, match="the disk is full") as caught:
        write_results(tables, info, f"{tmp_path}/{name}", overwrite=False)
    assert f"{tmp_path}/{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_one_chunk_is_in_memory_at_a_time(tmp_path, monkeypatch, name):
    """When the next chunk is asked for, at most the one before is still there."""
    monkeypatch.setattr(result_formats, "ROW_GROUP_BYTES", 1)
    seen: list[weakref.ref[pa.Table]] = []
    most_alive = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal most_alive
        for number in range(20):
            table = chunk(number, np.ones((1, 3), np.float32))
            seen.append(weakref.ref(table))
            most_alive = max(most_alive, sum(ref() is not None for ref in seen))
            yield table

    write_results(tables(), ResultInfo(20, 3, "float32", {}, {}), f"{tmp_path}/{name}", overwrite=False)
    assert most_alive <= 2


# --- before a job ---


@pytest.mark.parametrize("name", ["x.csv", "x", "x.npz", "x.npy.bak", ""])
def test_an_unknown_extension_is_refused_with_those_known(tmp_path, monkeypatch, name):
    """The message lists what can be written."""
    monkeypatch.chdir(tmp_path)
    out = f"y/{name}" if name else "y"
    with pytest.raises(UsageError, match=r"\.npy, \.parquet, \.arrow, \.jsonl, \.jsonl\.gz, \.jsonl\.zst") as caught:
        check_out(out, overwrite=True)
    assert not isinstance(caught.value, OutputExists)


@pytest.mark.parametrize("name", FILES)
def test_an_existing_file_is_replaced_only_when_asked(tmp_path, name):
    """Neither the check before the job nor the writing touches it without overwrite."""
    (tmp_path / name).write_bytes(b"old")
    out = f"{tmp_path}/{name}"
    tables, info, _ = job()
    with pytest.raises(OutputExists, match="--overwrite"):
        check_out(out, overwrite=False)
    with pytest.raises(OutputExists, match="--overwrite"):
        write_results(tables, info, out, overwrite=False)
    assert (tmp_path / name).read_bytes() == b"old"
    check_out(out, overwrite=True)
    write_results(tables, info, out, overwrite=True)
    assert (tmp_path / name).read_bytes() != b"old"


def test_a_link_stays_a_link_to_the_file_that_is_replaced(tmp_path):
    """An output behind a symbolic link is written where the link points."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.npy").symlink_to(tmp_path / "disk" / "y.npy")
    write_results(*job(failed=False)[:2], str(tmp_path / "x.npy"), overwrite=False)
    assert (tmp_path / "x.npy").is_symlink()
    assert np.load(tmp_path / "disk" / "y.npy").shape == (6, 3)


def test_a_folder_with_shards_is_replaced_only_when_asked(tmp_path):
    """A folder that penstock wrote can be overwritten."""
    out = f"{tmp_path}/shards"
    write_results(*job()[:2], f"{out}/", overwrite=False)
    for name in (out, f"{out}/"):
        with pytest.raises(OutputExists, match="--overwrite"):
            check_out(name, overwrite=False)
        check_out(name, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_replaced(tmp_path, overwrite):
    """--overwrite does not delete what penstock did not write."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"other files, such as thesis\.tex"):
        check_out(f"{tmp_path}/home/", overwrite=overwrite)


def test_the_current_folder_and_a_mounted_one_are_refused(tmp_path, monkeypatch):
    """A rename cannot replace them; the message names a folder inside."""
    monkeypatch.chdir(tmp_path)
    for out in (".", "/"):
        with pytest.raises(UsageError, match="Name a folder in it: "):
            check_out(out, overwrite=True)


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    """A slash after the name of a file is an error of the user's."""
    (tmp_path / "x.npy").touch()
    with pytest.raises(UsageError, match="not a folder"):
        check_out(f"{tmp_path}/x.npy/", overwrite=True)


@pytest.mark.parametrize("name", ["x.npy", "shards/"])
def test_a_missing_parent_folder_is_named_with_its_remedy(tmp_path, name):
    """The command that makes it can be copied from the message."""
    with pytest.raises(UsageError, match=f"mkdir -p '{tmp_path}/my results'"):
        check_out(f"{tmp_path}/my results/{name}", overwrite=False)


@pytest.mark.parametrize("name", ["x.npy", "shards/"])
def test_a_parent_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch, name):
    """It would fail after the work otherwise."""
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(UsageError, match="may not write to the folder"):
        check_out(f"{tmp_path}/{name}", overwrite=False)


@pytest.mark.parametrize("out", ["ftp://host/x.npy", "s3://bucket", "s3:///x.npy", "redis://host/x.npy"])
def test_a_url_without_an_object_store_is_refused(out):
    """The message lists the schemes."""
    with pytest.raises(UsageError, match="file://, s3://, gs://, az://"):
        check_out(out, overwrite=False)


def test_a_file_url_is_a_local_path(tmp_path):
    """Percent signs are decoded, files and folders alike."""
    (tmp_path / "my results").mkdir()
    out = f"file://{tmp_path}/my%20results/"
    assert write_results(*job(failed=False)[:2], f"{out}x.npy", overwrite=False) == [f"{out}x.npy"]
    write_results(*job(failed=False)[:2], f"{out}shards/", overwrite=False)
    assert len(tree(tmp_path / "my results")) == 4


@pytest.mark.parametrize(
    "out", [f"{'x' * 240}.npy", f"{'x' * 300}.npy", "x\0.npy", "loop/x.npy", "file:///%00", "file://["]
)
def test_what_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch, out):
    """A name may fit while that of the draft beside it does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"nothing can be written there \(.+\)\. Choose another name\.$") as caught:
        check_out(out, overwrite=False)
    assert "\n" not in str(caught.value)


def test_the_name_of_an_object_may_be_too_long_for_the_file_that_is_uploaded(monkeypatch):
    """Object storage takes four times as much."""
    with pytest.raises(UsageError, match="File name too long"):
        check_out(f"s3://bucket/{'x' * 300}.npy", overwrite=False)


@pytest.mark.parametrize("out", ["file://host/x.npy", "file://x.npy"])
def test_a_file_url_on_another_host_is_refused(out):
    """Two slashes make the first folder a host; the message shows three."""
    with pytest.raises(UsageError, match="file:///PATH"):
        check_out(out, overwrite=False)


def test_a_free_name_passes_the_check_and_is_not_made(tmp_path):
    """Looking leaves no trace."""
    (tmp_path / "empty").mkdir()
    for name in [*OUTPUTS, "empty", "empty/"]:
        check_out(f"{tmp_path}/{name}", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_kept_fields_may_not_have_the_name_of_a_result_column(tmp_path):
    """The check before the job and the writing say which."""
    check_kept(["kept", "text", "ID"])
    with pytest.raises(UsageError, match="--keep-fields id,error"):
        check_kept(["title", "id", "error"])
    with pytest.raises(UsageError, match="--keep-fields vector"):
        write_results([], ResultInfo(0, 3, "float32", {"vector": "json"}, {}), f"{tmp_path}/x.npy", overwrite=False)
