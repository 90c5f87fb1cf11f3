"""Rankings of real jobs, as Python and as those who measure runs see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import nDCG

from producer import Client
from producer.job import Job
from producer.writers import write_results
from tasks.errors import UsageError
from tasks.messages import JobSpec
from tests.scores import Scored, chunks, info_of

WORDS = ["red", "fish", "blue", "bird", "flies", "swims", "high", "low", "over", "under"]
QUERIES = {f"q{i}": " ".join(WORDS[i : i + 4]) for i in range(5)}
DOCS = {f"d{i}": " ".join(WORDS[j] for j in range(10) if i >> j & 1) for i in range(1, 90, 3)} | {"bad": "!raise it"}
MODEL = "fake:faults=1"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An embedded client with two slots that score."""
    state = tmp_path_factory.mktemp("state")
    with Client.embedded(model=MODEL, workers=2, state_dir=state, chunk_rows=7, operation="score") as opened:
        yield opened


@pytest.fixture(scope="module")
def job(client: Client) -> Job:
    """Every query with every document, one of which always fails."""
    submitted = client.score(QUERIES, DOCS, model=MODEL)
    submitted.wait()
    return submitted


def share(query: str, doc: str) -> float:
    """Return the score of the fake model."""
    asked, there = QUERIES[query].split(), set(DOCS[doc].split())
    return float(np.float32(sum(word in there for word in asked) / len(asked)))


def plainly(top_k: int | None = None) -> dict[str, list[tuple[str, float]]]:
    """Rank as one would on paper."""
    good = [doc for doc in DOCS if doc != "bad"]
    return {
        query: sorted(((doc, share(query, doc)) for doc in good), key=lambda item: (-item[1], item[0]))[:top_k]
        for query in QUERIES
    }


def test_rankings_scores_and_files_of_one_job_agree(job: Job, tmp_path: Path) -> None:
    """Whatever chunks its pairs were in."""
    assert job.rankings() == plainly()
    assert job.rankings(top_k=3) == plainly(3)
    scores = job.scores()
    assert (scores.shape, scores.dtype) == ((len(QUERIES) * len(DOCS),), np.dtype("float32"))
    assert np.isnan(scores).sum() == len(QUERIES)
    job.collect(str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), scores)
    job.collect(str(tmp_path / "x.jsonl"), top_k=3)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {
        line["query_id"]: [(item["doc_id"], np.float32(item["score"])) for item in line["results"]] for line in lines
    } == plainly(3)
    assert [[failed["doc_id"] for failed in line["errors"]] for line in lines] == [["bad"]] * len(QUERIES)


def test_a_failed_pair_is_named_by_query_and_document(job: Job) -> None:
    """With its number in the job."""
    first, *_ = job.errors(3)
    assert (first["query_id"], first["doc_id"]) == ("q0", "bad")
    assert first["row"] == len(DOCS) - 1
    assert "RuntimeError" in str(first["error"])


def test_what_another_operation_gives_is_refused(client: Client, job: Job, make_spec: Callable[..., JobSpec]) -> None:
    """In a line that names what there is."""
    with pytest.raises(UsageError, match=r"is of the operation score, and has no vectors: see scores\(\)"):
        job.vectors()
    encoding = Job(client, make_spec())
    for ask in (encoding.scores, encoding.rankings):
        with pytest.raises(UsageError, match=r"is of the operation encode, and has no [a-z]+: see vectors\(\)"):
            ask()
    with pytest.raises(UsageError, match="keep at least 1"):
        job.rankings(top_k=0)


def test_pairs_whose_queries_do_not_stand_together_have_scores_but_no_rankings(client: Client, tmp_path: Path) -> None:
    """The line says what to do."""
    pairs = [{"query_id": f"q{i % 2}", "query": "red", "doc_id": f"d{i}", "document": "red"} for i in range(4)]
    scattered = client.score(pairs=pairs, model=MODEL)
    scattered.wait()
    with pytest.raises(UsageError, match="'q0' begins at row 0, and comes back at row 2"):
        scattered.rankings()
    with pytest.raises(UsageError, match="Sort the pairs by query"):
        scattered.collect(str(tmp_path / "x.trec"))
    assert list(tmp_path.iterdir()) == []
    assert scattered.scores().tolist() == [1.0] * 4


@pytest.mark.parametrize("name", ["x.trec", "x.run.gz"])
def test_a_run_is_read_by_those_who_measure_it(job: Job, tmp_path: Path, name: str) -> None:
    """Every pair with its score, and the ranks in order."""
    job.collect(str(tmp_path / name))
    found: dict[str, list[tuple[str, float]]] = {}
    for line in ir_measures.read_trec_run(str(tmp_path / name)):
        found.setdefault(line.query_id, []).append((line.doc_id, float(np.float32(line.score))))
    assert found == plainly()


def test_a_run_measures_what_its_scores_do(tmp_path: Path) -> None:
    """trec_eval's nDCG of the file is that of the scores, to the last digit that differs between two sums."""
    rng = np.random.default_rng(0)
    scores = rng.permutation(600).astype(np.float32).reshape(20, 30) / np.float32(7)  # (queries, documents), no ties
    grades = rng.integers(0, 4, scores.shape)
    pairs = [Scored(f"q{i}", f"é{j}", float(scores[i, j])) for i in range(20) for j in range(30)]
    write_results(chunks(pairs, range(0, 600, 37)), info_of(pairs), str(tmp_path / "x.run"), overwrite=False)
    discounts = 1 / np.log2(np.arange(2, 12))
    gains = np.take_along_axis(grades, np.argsort(-scores, axis=1), axis=1)[:, :10] @ discounts  # trec_eval: linear
    ideal = -np.sort(-grades, axis=1)[:, :10] @ discounts
    qrels = {f"q{i}": {f"é{j}": int(grades[i, j]) for j in range(30)} for i in range(20)}
    run = ir_measures.read_trec_run(str(tmp_path / "x.run"))
    measured = {found.query_id: found.value for found in ir_measures.iter_calc([nDCG @ 10], qrels, run)}
    assert measured == pytest.approx({f"q{i}": value for i, value in enumerate(gains / ideal)}, abs=1e-6)
