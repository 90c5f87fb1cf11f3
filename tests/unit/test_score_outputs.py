"""A scoring job's results as files and folders."""

from __future__ import annotations

import gzip
import json
import resource
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

from producer import shards
from producer.demands import Demands
from producer.writers import check_out, demands_of, write_results
from tasks.errors import DamagedObject, OutputExists, StoreUnavailable, UsageError
from tests.scores import METADATA, Scored, chunk, chunks, info_of

RUNS = [f"x{plain}{packed}" for plain in (".trec", ".run") for packed in ("", ".gz", ".zst")]
LINES = ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"]
TABLES = ["x.parquet", "x.arrow"]
OUTPUTS = [*RUNS, *LINES, *TABLES, "x.npy", "shards/"]

#: Two queries over three chunks, with a tie, an error, and a query of which nothing is left.
PAIRS = [
    Scored("q1", "d1", 0.1),
    Scored("q1", "d2", None),
    Scored("q1", "d9", 0.5),
    Scored("q1", "d10", 0.5),
    Scored("é", "日本", -0.0),
    Scored("é", "d1", 1e-45),
    Scored("q3", "d1", None),
]
CUTS = [2, 5]
RUN = """\
q1 Q0 d10 1 0.5 penstock
q1 Q0 d9 2 0.5 penstock
q1 Q0 d1 3 0.1 penstock
é Q0 d1 1 1e-45 penstock
é Q0 日本 2 -0.0 penstock
"""
ERRORS = [
    {"row": 1, "query_id": "q1", "doc_id": "d2", "error": "it failed"},
    {"row": 6, "query_id": "q3", "doc_id": "d1", "error": "it failed"},
]


def write(pairs: list[Scored], out: Path | str, name: str = "", top_k: int | None = None) -> list[str]:
    """Write the results of a job."""
    return write_results(chunks(pairs, CUTS), info_of(pairs, name), str(out), top_k=top_k, overwrite=True)


def text_of(path: Path) -> str:
    """Return what is in a file, unpacked."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return data.decode()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of lines."""
    return [json.loads(line) for line in text_of(path).split("\n")[:-1]]


def read_table(path: Path) -> pa.Table:
    """Read a table back."""
    return pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- runs and lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_ranks_ties_by_id_and_the_shortest_scores(tmp_path, name):
    """Pairs with an error are not in it, but in the list beside it."""
    out = str(tmp_path / name)
    assert write(PAIRS, out) == [out, f"{out}.errors.jsonl"]
    assert text_of(tmp_path / name) == RUN
    assert lines_of(tmp_path / f"{name}.errors.jsonl") == ERRORS


def test_a_run_without_errors_has_no_list_not_even_an_old_one(tmp_path):
    """It would be about another file."""
    write(PAIRS, tmp_path / "x.trec")
    assert write([pair for pair in PAIRS if pair.score is not None], tmp_path / "x.trec") == [f"{tmp_path}/x.trec"]
    assert list(tree(tmp_path)) == ["x.trec"]


@pytest.mark.parametrize(
    ("name", "tag"), [("", "penstock"), ("bm25+qwen", "bm25+qwen"), ("my job", "penstock"), ("a\u00a0b", "penstock")]
)
def test_the_tag_of_a_run_is_the_jobs_name_if_that_is_one_word(tmp_path, name, tag):
    """White space of any kind would make it two fields."""
    write(PAIRS[:1], tmp_path / "x.run", name)
    assert text_of(tmp_path / "x.run") == f"q1 Q0 d1 1 0.1 {tag}\n"


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\tb", "a\n", "\r", "a\u00a0b", "\u2028", "\x1c", "a\0"])
@pytest.mark.parametrize("column", ["query_id", "doc_id"])
def test_an_id_that_a_run_cannot_say_is_refused_with_its_row(tmp_path, column, bad):
    """Readers would see other fields or another line; nothing is written, and the formats that can are named."""
    good = [Scored("q", f"d{row}", 0.5) for row in range(3)]
    rest = Scored(bad, "d", 0.5) if column == "query_id" else Scored("q", bad, 0.9)
    with pytest.raises(UsageError, match=rf"Row 3 has a {column} .* Collect as \.jsonl or \.parquet") as caught:
        write([*good, rest], tmp_path / "x.trec")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == {}
    write([*good, rest], tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", LINES)
def test_a_line_a_query_has_its_ranked_list_and_its_errors(tmp_path, name):
    """A query of which nothing is left has a line too."""
    out = str(tmp_path / name)
    assert write(PAIRS, out) == [out]
    assert text_of(tmp_path / name).split("\n")[1:] == [
        '{"query_id": "é", "results": [{"doc_id": "d1", "score": 1e-45}, {"doc_id": "日本", "score": -0.0}]}',
        '{"query_id": "q3", "results": [], "errors": [{"doc_id": "d1", "error": "it failed"}]}',
        "",
    ]
    assert lines_of(tmp_path / name)[0] == {
        "query_id": "q1",
        "results": [{"doc_id": "d10", "score": 0.5}, {"doc_id": "d9", "score": 0.5}, {"doc_id": "d1", "score": 0.1}],
        "errors": [{"doc_id": "d2", "error": "it failed"}],
    }


def test_a_cut_list_keeps_its_errors(tmp_path):
    """What failed may have been among the best."""
    write(PAIRS, tmp_path / "x.jsonl", top_k=1)
    assert [(len(line["results"]), len(line.get("errors", []))) for line in lines_of(tmp_path / "x.jsonl")] == [
        (1, 1),
        (1, 0),
        (0, 1),
    ]
    write(PAIRS, tmp_path / "x.trec", top_k=1)
    assert text_of(tmp_path / "x.trec") == "q1 Q0 d10 1 0.5 penstock\né Q0 d1 1 1e-45 penstock\n"
    assert lines_of(tmp_path / "x.trec.errors.jsonl") == ERRORS


@given(
    scores=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    ids=st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=20, max_size=20, unique=True),
)
def test_every_bit_of_a_score_and_every_id_is_read_back(tmp_path_factory, scores, ids):
    """From lines and from runs alike, where a run can say the ids."""
    pairs = [Scored("q", doc, score) for doc, score in zip(ids, scores, strict=False)]
    folder = tmp_path_factory.mktemp("drawn")
    wanted = {pair.doc: np.float32(pair.score).tobytes() for pair in pairs}
    write(pairs, folder / "x.jsonl")
    (line,) = lines_of(folder / "x.jsonl")
    assert {item["doc_id"]: np.float32(item["score"]).tobytes() for item in line["results"]} == wanted
    try:
        write(pairs, folder / "x.trec")
    except UsageError:
        assert any(pair.doc.split() != [pair.doc] or "\0" in pair.doc for pair in pairs)
        return
    fields = [line.split() for line in (folder / "x.trec").read_text(encoding="utf-8").splitlines()]
    assert {doc: np.float32(score).tobytes() for _, _, doc, _, score, _ in fields} == wanted


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_all_pairs_in_the_order_of_the_job(tmp_path, name):
    """With the types of the columns and how they were made; a query may come back after another."""
    pairs = [*PAIRS, Scored("q1", "d7", 1.0)]
    write(pairs, tmp_path / name)
    table = read_table(tmp_path / name)
    assert {field.name: str(field.type) for field in table.schema} == {
        "row": "int64",
        "query_id": "string",
        "doc_id": "string",
        "score": "float",
        "n_tokens": "int32",
        "truncated": "bool",
        "error": "string",
    }
    assert table["row"].to_pylist() == list(range(8))
    rows = table.select(["query_id", "doc_id", "score"]).to_pylist()
    assert [(*row.values(),) for row in rows] == [
        (query, doc, None if score is None else float(np.float32(score))) for query, doc, score in pairs
    ]
    assert table["error"].to_pylist() == [None if pair.score is not None else "it failed" for pair in pairs]
    for key, value in METADATA.items():
        assert table.schema.metadata[f"penstock.{key}".encode()].decode() == value


@pytest.mark.parametrize("name", TABLES)
def test_a_cut_table_has_the_best_pairs_of_each_query_ranked(tmp_path, name):
    """Each with its number in the job."""
    write(PAIRS, tmp_path / name, top_k=2)
    assert read_table(tmp_path / name)["row"].to_pylist() == [3, 2, 5, 4]


def test_npy_has_the_scores_in_order_and_the_list_of_errors(tmp_path):
    """One number a pair, NaN where there is none."""
    out = str(tmp_path / "x.npy")
    assert write(PAIRS, out) == [out, f"{out}.errors.jsonl"]
    scores = np.load(out, mmap_mode="r")
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array([pair.score for pair in PAIRS], np.float32))
    assert lines_of(tmp_path / "x.npy.errors.jsonl") == ERRORS


def test_shards_have_all_columns_in_parquet(tmp_path, monkeypatch):
    """A score is a column as any other; there is nothing to be mapped into memory."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    out = f"{tmp_path}/shards/"
    written = write(PAIRS, out)
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text(encoding="utf-8"))
    assert manifest == {
        "rows": 7,
        "metadata": METADATA,
        "shards": [
            {"rows_file": "rows-00000.parquet", "first_row": 0, "rows": 3},
            {"rows_file": "rows-00001.parquet", "first_row": 3, "rows": 3},
            {"rows_file": "rows-00002.parquet", "first_row": 6, "rows": 1},
        ],
    }
    tables = [read_table(tmp_path / "shards" / shard["rows_file"]) for shard in manifest["shards"]]
    assert pa.concat_tables(tables).drop_columns("row").equals(pa.concat_tables(chunks(PAIRS)).drop_columns("row"))
    assert lines_of(tmp_path / "shards/errors.jsonl") == ERRORS
    assert sorted(written) == sorted(f"{out}{name}" for name in tree(tmp_path / "shards"))


def test_shards_of_a_cut_job_have_as_many_rows_as_there_are(tmp_path, monkeypatch):
    """Their number is known when they are written."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    write(PAIRS, f"{tmp_path}/shards/", top_k=2)
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"] == 4
    assert [(shard["first_row"], shard["rows"]) for shard in manifest["shards"]] == [(0, 3), (3, 1)]
    tables = [read_table(tmp_path / "shards" / shard["rows_file"]) for shard in manifest["shards"]]
    assert pa.concat_tables(tables)["row"].to_pylist() == [3, 2, 5, 4]


# -- all or nothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTPUTS)
def test_no_pairs_are_a_whole_output(tmp_path, name):
    """It is there, and empty."""
    write([], f"{tmp_path}/{name}")
    if name == "x.npy":
        assert np.load(tmp_path / name).shape == (0,)
    elif name in TABLES:
        assert len(read_table(tmp_path / name)) == 0
    elif name == "shards/":
        assert json.loads((tmp_path / "shards/manifest.json").read_text())["shards"] == []
    else:
        assert text_of(tmp_path / name) == ""


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "x.npy"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), StoreUnavailable("gone")])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, name, fault, top_k):
    """Byte by byte, the list of errors included; or nothing."""
    tables = chunks(PAIRS, CUTS)

    def broken_off() -> Iterator[pa.Table]:
        yield from tables[:-1]
        raise fault

    out = f"{tmp_path}/{name}"
    for before in ({}, None):
        if before is None:
            write(PAIRS[:4], out)
            before = tree(tmp_path)  # noqa: PLW2901 - the second time
        with pytest.raises(type(fault)):
            write_results(broken_off(), info_of(PAIRS), out, top_k=top_k, overwrite=True)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "x.npy"])
def test_results_that_are_not_the_jobs_are_refused(tmp_path, name, top_k):
    """Pairs too few, doubled or of another type make no output, ranked or not."""
    tables = chunks(PAIRS, CUTS)
    other = tables[2].set_column(3, "score", pa.array([0.5, 0.5], pa.float64()))
    for damaged, message in (
        (tables[:-1], "has 7 rows, its results have 5"),
        ([tables[0], *tables], "Rows 0 to 1 of the results are not in order"),
        ([*tables[:2], other], "A chunk has scores of double, the job has scores of float"),
    ):
        with pytest.raises(DamagedObject, match=message):
            write_results(damaged, info_of(PAIRS), f"{tmp_path}/{name}", top_k=top_k, overwrite=False)
        assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", [*RUNS, *LINES])
def test_a_query_that_comes_back_leaves_no_file(tmp_path, name):
    """Its pairs would be two rankings."""
    with pytest.raises(UsageError, match="comes back at row 7"):
        write([*PAIRS, Scored("q1", "d7", 1.0)], tmp_path / name)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(("n_scores", "n_errors"), [(150, 10), (10, 60)])
def test_a_run_and_its_list_of_errors_are_replaced_together(tmp_path, n_scores, n_errors):
    """A disk that takes one of them and not the other leaves the old two."""
    write(PAIRS, tmp_path / "x.trec")
    before = tree(tmp_path)
    pairs = [Scored("q", f"d{i}", 0.5 if i < n_scores else None) for i in range(n_scores + n_errors)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
    try:
        with pytest.raises(UsageError, match="the disk is full"):
            write(pairs, tmp_path / "x.trec")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before


# -- before a job ------------------------------------------------------------------------------------------------------


def test_an_extension_is_refused_with_those_that_the_operation_has(tmp_path):
    """Vectors have no rankings, and no .txt is written of anything."""
    with pytest.raises(UsageError, match=r"Known are \.npy, \.parquet, \.arrow, [^ ]+, [^ ]+, [^ ]+ for encode"):
        check_out(f"{tmp_path}/vectors.trec", overwrite=False)
    with pytest.raises(UsageError, match=r"Known are \.trec, \.trec\.gz, .*\.run, .*\.jsonl, .*\.npy for score"):
        check_out(f"{tmp_path}/scores.txt", operation="score", overwrite=False)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_free_name_passes_the_check_and_a_taken_one_does_not(tmp_path, name):
    """As with vectors."""
    out = f"{tmp_path}/{name}"
    check_out(out, operation="score", overwrite=False)
    assert tree(tmp_path) == {}
    write(PAIRS, out)
    with pytest.raises(OutputExists):
        check_out(out, operation="score", overwrite=False)


@pytest.mark.parametrize(
    ("out", "operation", "top_k", "message"),
    [
        ("x.npy", "score", 3, r"\.npy has the scores of all pairs .* Write \.trec"),
        ("s3://bucket/x.npy", "score", 3, r"\.npy has the scores of all pairs"),
        ("x.trec", "score", 0, "--top-k 0: keep at least 1"),
        ("x/", "score", -1, "--top-k -1: keep at least 1"),
        ("x.parquet", "encode", 3, "--top-k is for scoring jobs"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(out, operation, top_k, message):
    """In one line, before anything is done."""
    with pytest.raises(UsageError, match=message):
        check_out(out, operation=operation, top_k=top_k, overwrite=False)
    with pytest.raises(UsageError, match="keep at least 1"):
        write_results([chunk(0, PAIRS)], info_of(PAIRS), "x.trec", top_k=0, overwrite=False)


@pytest.mark.parametrize(
    ("out", "top_k", "demands"),
    [
        ("x.trec", None, Demands(is_ranked=True, has_plain_ids=True)),
        ("s3://bucket/x.run.gz", 3, Demands(is_ranked=True, has_plain_ids=True)),
        ("x.jsonl", None, Demands(is_ranked=True)),
        ("x.parquet", None, Demands()),
        ("s3://bucket/x.arrow", 3, Demands(is_ranked=True)),
        ("x.npy", None, Demands()),
        ("x/", None, Demands()),
        ("s3://bucket/x/", 3, Demands(is_ranked=True)),
    ],
)
def test_what_an_output_demands_of_pairs_is_known_before(out, top_k, demands):
    """By its extension, and by the cut."""
    assert demands_of(out, top_k) == demands
