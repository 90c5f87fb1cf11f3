"""The whole way with a real engine: BM25 finds candidates, `penstock score` orders them, ir_measures reads the run."""

from __future__ import annotations

import json
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ir_measures import nDCG
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.templates import read_template
from tests.acceptance.conftest import Shell
from tests.tiny_causal import tiny_causal

CORPUS = Path(__file__).parents[2] / "examples" / "corpus.jsonl"
RECORDS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
#: Topics of the corpus are what is asked for; documents of the same topic are relevant.
QUERIES = {"weather": "rain and wind on the coast", "cooking": "how to bake bread", "trains": "a train at night"}
TEMPLATE = "qwen3-reranker"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Qwen2 of three layers."""
    return tiny_causal(tmp_path_factory.mktemp("models") / "qwen2")


def write_candidates(shell: Shell, documents: dict[str, str]) -> None:
    """Write queries, and for each of them the run of BM25."""
    shell.write("queries.jsonl", [json.dumps({"id": id_, "text": text}) for id_, text in QUERIES.items()])
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents.values()), show_progress=False), show_progress=False)
    asked = bm25s.tokenize(list(QUERIES.values()), show_progress=False)
    found, scores = index.retrieve(asked, k=20, show_progress=False)
    ids = list(documents)
    shell.write(
        "bm25.trec",
        [
            f"{query} Q0 {ids[place]} {rank} {score:.4f} bm25"
            for query, places, values in zip(QUERIES, found, scores, strict=True)
            for rank, (place, score) in enumerate(zip(places, values, strict=True), 1)
        ],
    )


def score_plainly(folder: str, query: str, document: str) -> float:
    """Score one pair with transformers alone: the whole prompt, the whole output layer."""
    template = read_template(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parts = template.render(query, document, None)
    ids = [token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids])).logits[0, -1]
    labels = [tokenizer.convert_tokens_to_ids(label) for label in (template.positive, template.negative)]
    return float(logits[labels].softmax(0)[0])


def test_candidates_of_bm25_are_reranked_by_a_language_model(shell: Shell, model: str) -> None:
    """Scores are those of the plain loop, and the run is what evaluation tools read."""
    write_candidates(shell, {record["id"]: record["text"] for record in RECORDS})
    asked = ("--queries", "queries.jsonl", "--docs", CORPUS, "--candidates", "bm25.trec")
    how = ("--model", model, "--template", TEMPLATE, "--workers", 2, "--chunk-rows", 7)
    result = shell.json("score", *asked, *how, "--out", "reranked.trec")
    assert (result["rows"], result["failed_rows"]) == (60, 0)
    assert result["padded_tokens"] < result["tokens"]  # what prompts of a query share was computed once
    shell.run("score", *asked, *how, "--out", "pairs.parquet")
    table = pq.read_table(shell.folder / "pairs.parquet")
    pairs = list(zip(table["query_id"].to_pylist(), table["doc_id"].to_pylist(), strict=True))
    chosen = range(0, len(pairs), 6)
    documents = {record["id"]: record["text"] for record in RECORDS}
    expected = [score_plainly(model, QUERIES[query], documents[doc]) for query, doc in (pairs[i] for i in chosen)]
    np.testing.assert_allclose(table["score"].to_numpy()[list(chosen)], expected, atol=1e-4)
    run = list(ir_measures.read_trec_run(str(shell.folder / "reranked.trec")))
    assert sorted((found.query_id, found.doc_id) for found in run) == sorted(pairs)
    qrels = [
        ir_measures.Qrel(query, record["id"], int(record["topic"] == query)) for query in QUERIES for record in RECORDS
    ]
    measured = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)
    assert 0 < measured[nDCG @ 10] <= 1


def test_a_sample_of_a_real_job_is_what_one_pair_at_a_time_gives(shell: Shell, model: str) -> None:
    """By the command that says so; a tolerance of nothing finds the rounding, and exits with 1."""
    write_candidates(shell, {record["id"]: record["text"] for record in RECORDS})
    asked = ("--queries", "queries.jsonl", "--docs", CORPUS, "--candidates", "bm25.trec")
    job = shell.json("score", *asked, "--model", model, "--template", TEMPLATE, "--workers", 1)["job"]
    verdict = shell.json("verify", job, "--template", TEMPLATE, "--sample", 40)
    assert verdict["passes"]
    assert verdict["same_weights"]
    assert 0 < verdict["largest"] < 1e-4
    assert verdict["equal_ranks"] == 1.0
    assert not shell.json("verify", job, "--template", TEMPLATE, "--sample", 40, "--tolerance", 0, code=1)["passes"]
