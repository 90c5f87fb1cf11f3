"""`penstock score`: queries and documents go in, rankings come out, whatever dies in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import TEXT_MARK, Cluster, Shell, tree, wait_until

#: Asks for words that stand in some of the documents.
QUERIES = {f"q{i}": f"which record says number {i * i}{TEXT_MARK}" for i in range(6)}
DOCS = {f"d{i}": f"record number {i}{TEXT_MARK}{i * i}" for i in range(40)}
SLOW = "fake:ms_per_row=50"


@pytest.fixture
def inputs(shell: Shell) -> tuple[object, ...]:
    """Return the options that name queries, documents and, of each query, every second document."""
    for name, found in (("queries", QUERIES), ("docs", DOCS)):
        shell.write(f"{name}.jsonl", [json.dumps({"id": id_, "text": text}) for id_, text in found.items()])
    lines = [f"{query} Q0 {doc} 1 0.5 bm25" for query in QUERIES for doc in list(DOCS)[::2]]
    shell.write("first.trec", lines)
    return ("--queries", "queries.jsonl", "--docs", "docs.jsonl", "--candidates", "first.trec")


def expected_scores(pairs: list[tuple[str, str]]) -> list[float]:
    """Return the share of each query's words that its document has."""
    found = []
    for query, doc in pairs:
        words = QUERIES[query].split()
        found.append(sum(word in DOCS[doc].split() for word in words) / len(words))
    return found


def check_every_pair_once(out: Path) -> None:
    """Every candidate has its score, in the order of the candidates."""
    table = pq.read_table(out)
    pairs = list(zip(table["query_id"].to_pylist(), table["doc_id"].to_pylist(), strict=True))
    assert pairs == [(query, doc) for query in QUERIES for doc in list(DOCS)[::2]]
    np.testing.assert_allclose(table["score"].to_numpy(), expected_scores(pairs), rtol=1e-6)
    assert table["error"].null_count == len(pairs)


def test_one_command_reranks_a_run(shell: Shell, inputs: tuple[object, ...]) -> None:
    """Embedded: the best documents of each query in order, ties by id, and nothing left behind."""
    result = shell.json("score", *inputs, "--model", "fake", "--out", "out.trec", "--top-k", 3)
    assert (result["rows"], result["failed_rows"], result["out"]) == (120, 0, "out.trec")
    lines = [line.split() for line in (shell.folder / "out.trec").read_text().splitlines()]
    assert [(line[0], int(line[3])) for line in lines] == [(q, rank) for q in QUERIES for rank in (1, 2, 3)]
    for query in QUERIES:
        docs = list(DOCS)[::2]
        scores = expected_scores([(query, doc) for doc in docs])
        best = sorted(zip(docs, scores, strict=True), key=lambda each: (-each[1], each[0]))[:3]
        assert [line[2] for line in lines if line[0] == query] == [doc for doc, _ in best]
    assert list((shell.folder / "state").rglob("*.arrow")) == []


def test_the_same_command_goes_on_after_a_kill(shell: Shell, inputs: tuple[object, ...]) -> None:
    """SIGKILL of the whole command in mid-job: the next one finds the job, and does what is missing."""
    command = ("score", *inputs, "--model", SLOW, "--chunk-rows", 5, "--out", "out.parquet")
    first = shell.start(*command)
    results = shell.folder / "state"
    wait_until(lambda: len(list(results.rglob("result/*.arrow"))) > 3, "some chunks are done")
    family = tree(first.pid)
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
    assert len(list(results.rglob("result/*.arrow"))) < 20
    done = shell.run(*command, "--json")
    assert "is continued (running, " in done.stderr
    assert json.loads(done.stdout)["rows_done"] == 120
    check_every_pair_once(shell.folder / "out.parquet")


def test_killing_a_slot_in_mid_chunk_loses_and_doubles_no_pair(cluster: Cluster, inputs: tuple[object, ...]) -> None:
    """Its chunk is scored by another one."""
    shell = cluster.shell
    cluster.start_worker(SLOW, operation="score")
    job = shell.json("score", *inputs, "--model", SLOW, "--chunk-rows", 5, "--detach")["job"]
    wait_until(lambda: cluster.done_chunks(job) >= 2, "the job is under way")
    victim = wait_until(lambda: next((s["pid"] for s in cluster.slots() if s["claim"]), None), "a chunk is in work")
    psutil.Process(victim).kill()
    result = shell.json("wait", job)
    assert (result["state"], result["rows_done"], result["failed_rows"]) == ("done", 120, 0)
    shell.run("collect", job, "--out", "out.parquet")
    check_every_pair_once(shell.folder / "out.parquet")


def test_a_pair_that_ends_its_process_is_the_only_one_without_a_score(cluster: Cluster) -> None:
    """It is found by taking its chunk apart; rankings leave it out and name it beside them."""
    shell = cluster.shell
    shell.write("queries.jsonl", [json.dumps({"id": id_, "text": text}) for id_, text in QUERIES.items()])
    docs = DOCS | {"d7": "!kill the process"}
    shell.write("docs.jsonl", [json.dumps({"id": id_, "text": text}) for id_, text in docs.items()])
    shell.write("first.jsonl", [json.dumps({"query_id": "q1", "doc_ids": list(docs)})])
    cluster.start_worker("fake:faults=1", operation="score")
    inputs = ("--queries", "queries.jsonl", "--docs", "docs.jsonl", "--candidates", "first.jsonl")
    done = shell.run("score", *inputs, "--model", "fake:faults=1", "--out", "out.trec", code=1)
    assert "1 failed" in done.stderr
    assert "5 queries" in done.stderr
    ranked = [line.split()[2] for line in (shell.folder / "out.trec").read_text().splitlines()]
    assert sorted(ranked) == sorted(set(docs) - {"d7"})
    (beside,) = [path for path in shell.folder.glob("out.trec*") if path.name != "out.trec"]
    assert "d7" in beside.read_text()
    assert "SIGKILL" in beside.read_text()


def test_an_encode_worker_takes_no_scoring_job(cluster: Cluster, inputs: tuple[object, ...]) -> None:
    """It serves another queue; the client says which worker is missing."""
    cluster.start_worker("fake")
    done = cluster.shell.run("score", *inputs, "--model", "fake", "--detach")
    assert "no live worker serves fake" in done.stderr
    assert "--operation score" in done.stderr
    cluster.start_worker("fake", operation="score")
    assert cluster.shell.json("wait", done.stdout.strip())["rows_done"] == 120


def test_pairs_keep_their_order(shell: Shell) -> None:
    """Each record has its texts; the scores are a plain array."""
    pairs = [(query, doc) for doc in list(DOCS)[:5] for query in QUERIES]
    lines = [json.dumps({"query": QUERIES[query], "document": DOCS[doc]}) for query, doc in pairs]
    shell.write("pairs.jsonl", lines)
    shell.run("score", "--pairs", "pairs.jsonl", "--model", "fake", "--out", "scores.npy")
    np.testing.assert_allclose(np.load(shell.folder / "scores.npy"), expected_scores(pairs), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        ((), 2, "Nothing to score: give queries and docs, or pairs."),
        (("--queries", "queries.jsonl"), 2, "Nothing to score"),
        (("--pairs", "docs.jsonl", "--docs", "docs.jsonl"), 2, "give pairs alone, or queries and docs"),
        (("--queries", "-", "--docs", "-"), 2, "Standard input can be read once"),
        (("--queries", "queries.jsonl", "--docs", "docs.jsonl", "--top-k", "0"), 2, "--top-k"),
        (("--queries", "queries.jsonl", "--docs", "docs.jsonl", "--template", "none-such"), 2, "none-such"),
        (("--queries", "queries.jsonl", "--docs", "docs.jsonl", "--candidates", "other.trec"), 4, "d99"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    shell: Shell, inputs: tuple[object, ...], options: tuple[str, ...], code: int, line: str
) -> None:
    """Before anything is started."""
    assert inputs
    shell.write("other.trec", ["q1 Q0 d1 1 0.5 bm25", "q1 Q0 d99 2 0.4 bm25"])
    done = shell.run("score", *options, "--model", "fake", "--out", "out.parquet", code=code)
    (said,) = done.stderr.splitlines()
    assert line in said
    assert not (shell.folder / "state").exists()


def test_what_cannot_be_written_is_not_scored(shell: Shell) -> None:
    """A run has no place for some ids, and a ranking needs the pairs of a query together: that is said at once."""
    line = {"query": "a", "document": "b", "doc_id": "d"}
    shell.write("pairs.jsonl", [json.dumps({**line, "query_id": query}) for query in "qrq"])
    shell.write("spaced.jsonl", [json.dumps({"id": "a b", "text": "c"})])
    pairs = ("--pairs", "pairs.jsonl", "--model", "fake")
    for out in (("--out", "x.run"), ("--out", "x.jsonl"), ("--out", "x/", "--top-k", 1)):
        done = shell.run("score", *pairs, *out, code=4)
        assert 'Pair 2, counted from 0: the query "q" comes back' in done.stderr.splitlines()[-1]
    spaced = ("--queries", "spaced.jsonl", "--docs", "spaced.jsonl", "--model", "fake")
    done = shell.run("score", *spaced, "--out", "x.trec", code=4)
    assert 'record 1: the query id "a b" holds white space' in done.stderr
    assert list((shell.folder / "state").glob("*/runs/*")) == []
    shell.run("score", *pairs, "--out", "x.npy")
    shell.run("score", *spaced, "--out", "x.jsonl")
    assert (np.load(shell.folder / "x.npy") == 0).all()


def test_very_many_pairs_need_a_yes(shell: Shell) -> None:
    """A forgotten --candidates is noticed before a week of work."""
    shell.write("many.txt", [str(i) for i in range(3200)])
    done = shell.run("score", "--queries", "many.txt", "--docs", "many.txt", "--model", "fake", code=2)
    assert "That is 10,240,000 pairs. Pass --yes" in done.stderr


def test_a_job_is_verified_before_it_is_collected(shell: Shell, inputs: tuple[object, ...]) -> None:
    """The results of an embedded job stay until then; a damaged comparison exits with 1."""
    job = shell.json("score", *inputs, "--model", "fake")["job"]
    verdict = shell.json("verify", job, "--sample", 50)
    assert verdict["passes"]
    assert (verdict["rows"], verdict["largest"], verdict["equal_ranks"]) == (50, 0.0, 1.0)
    assert verdict["queries"] >= 2
    assert verdict["same_weights"]
    said = shell.run("verify", job, "--seed", verdict["seed"]).stdout
    assert "equal first ten ranks: 100.0%" in said
    shell.run("collect", job, "--out", "out.jsonl", "--top-k", 2)
    lines = [json.loads(line) for line in (shell.folder / "out.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == list(QUERIES)
    assert {len(line["results"]) for line in lines} == {2}
