"""A bench of scoring with tiny models: that all contenders score the same pairs, and what the command writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from tasks.errors import UsageError
from tasks.ports import Pair
from tasks.templates import names, read_template
from tests.tiny_causal import LINES, tiny_causal
from tests.tiny_models import tiny_cross_encoder
from workers.bench.plan import CROSS_ENCODER
from workers.bench.scoring import peers
from workers.bench.scoring.peers import ScoreSetup
from workers.bench.scoring.plan import NAIVE
from workers.bench.scoring.prompts import chat_template, prompt_ids
from workers.bench.scoring.survey import survey
from workers.engines.prompts import Prompts

PAIRS = [Pair(query, " ".join(LINES[i:])) for query in LINES[2:4] for i in range(4)]
#: What Jinja or a template could take for something else.
ODD = Pair("What is {query} in {{ braces }}?\n", 'A "quote", a \\ and {% a tag %} in {document}; ends with a break\n')


@pytest.fixture(scope="session")
def causal(tmp_path_factory):
    """Return the folder of a causal language model."""
    return tiny_causal(tmp_path_factory.mktemp("bench") / "qwen2")


def setup(model, template=None, *, processes=1, batch_size=3, instruction=None):
    """Return how a peer scores with a model."""
    found = template and read_template(template)
    return ScoreSetup(model, ("cpu",) * processes, 1, "fp32", batch_size, template=found, instruction=instruction)


@pytest.mark.parametrize("template", names())
@pytest.mark.parametrize("instruction", [None, "Find a {thing}.\n"])
def test_everybody_asks_alike(causal, template, instruction):
    """sentence-transformers' messages, the loop's prompts and the engine's are the same tokens."""
    found, tokenizer = read_template(template), AutoTokenizer.from_pretrained(causal)
    ours = Prompts(tokenizer, found, instruction)
    tokenizer.chat_template = chat_template(tokenizer, found, instruction)
    for pair in [*PAIRS, ODD]:
        ids = prompt_ids(tokenizer, found, pair, instruction, 10**6)
        messages = [{"role": role, "content": text} for role, text in pair._asdict().items()]
        assert ids == ours.prepare([pair], 10**6).rows[0].ids.tolist()
        prompt = "".join(found.render(*pair, instruction))
        first = tokenizer.bos_token if found.adds_special_tokens else ""
        assert tokenizer.apply_chat_template(messages, tokenize=False) == first + prompt


def test_what_is_too_long_loses_the_documents_end(causal):
    """As in the engine, so that scores compare."""
    found, tokenizer = read_template("qwen3-reranker"), AutoTokenizer.from_pretrained(causal)
    pair = Pair("short", " ".join(LINES * 9))
    ids = prompt_ids(tokenizer, found, pair, None, 200)
    assert len(ids) == 200
    assert ids == Prompts(tokenizer, found, None).prepare([pair], 200).rows[0].ids.tolist()


@pytest.mark.parametrize("template", ["qwen3-reranker", "mxbai-rerank-v2", "bge-reranker-v2-gemma"])
def test_the_cross_encoder_gives_the_scores_of_one_pair_at_a_time(causal, template):
    """By each formula, with a template as messages."""
    alone = peers.run(NAIVE, setup(causal, template), PAIRS)
    batched = peers.run(CROSS_ENCODER, setup(causal, template), PAIRS)
    assert alone.values.shape == (len(PAIRS),)
    assert np.ptp(alone.values) > 1e-3
    assert batched.values == pytest.approx(alone.values, abs=1e-4)
    assert alone.began < alone.ended


def test_several_processes_give_the_scores_of_one_in_order(tmp_path):
    """Each has its share; a classifier is its own loop with batches of one."""
    model = tiny_cross_encoder(tmp_path / "model")
    alone = peers.run(NAIVE, setup(model), PAIRS)
    assert np.ptp(alone.values) > 1e-3
    for name, processes in ((NAIVE, 2), (CROSS_ENCODER, 1)):
        assert peers.run(name, setup(model, processes=processes), PAIRS).values == pytest.approx(alone.values, abs=1e-5)


def test_the_survey_counts_tokens_and_tries_sizes_as_far_as_there_are_pairs(tmp_path, causal):
    """Both kinds of model are named."""
    found = survey(setup(causal, "lychee-rerank"), PAIRS)
    assert (found["kind"], found["sample_rows"], set(found["batch_seconds"])) == ("causal reranker", 8, {"4", "8"})
    tokenizer = AutoTokenizer.from_pretrained(causal)
    ids = [prompt_ids(tokenizer, read_template("lychee-rerank"), pair, None, 10**6) for pair in PAIRS]
    assert found["lengths"] == list(map(len, ids))
    found = survey(setup(tiny_cross_encoder(tmp_path / "model", limit=16)), PAIRS)
    assert (found["kind"], max(found["lengths"])) == ("cross-encoder", 16)


def test_a_causal_model_without_a_template_is_an_error_that_names_the_option(causal):
    """Nobody can guess how it is asked."""
    with pytest.raises(UsageError, match="no known template: give --template"):
        survey(setup(causal), PAIRS)


@pytest.mark.timeout(900)
def test_a_bench_prints_the_articles_table_for_this_machine(tmp_path, causal):
    """Everybody gives the same scores, and the figures of the article stand below."""
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"id": f"q{n}", "text": LINES[n]}) + "\n" for n in range(2)))
    (tmp_path / "d.txt").write_text("\n".join(pair.document for pair in PAIRS) + "\n")
    command = [
        *(sys.executable, "-P", "-m", "producer.cli", "bench", "score", "--model", causal),
        *("--template", "lychee-rerank", "--instruction", "Find the road.", "--queries", "q.jsonl", "--docs", "d.txt"),
        *("--max-pairs", "12", "--processes", "1", "--rounds", "1", "--out", "bench.json"),
    ]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in found["contenders"]] == [NAIVE, CROSS_ENCODER, CROSS_ENCODER, "penstock"]
    for row in found["contenders"]:
        assert row["errors"] == []
        assert row["documents_per_s"]["median"] > 0
        assert row["largest_difference"] < 1e-4
    assert found["contenders"][0]["speedup"]["median"] == 1.0
    counted = {name: found["pairs"][name] for name in ("name", "queries", "documents", "pairs")}
    assert counted == {"name": "d.txt", "queries": 2, "documents": 8, "pairs": 12}
    assert found["kind"] == "causal reranker"
    assert "penstock 1 x " in done.stdout
    assert "article, 8 processes" in done.stdout
    assert "round 1 of 1: one pair at a time 1 x " in done.stderr
    assert (tmp_path / "bench.svg").read_text().startswith("<?xml")
    assert list((tmp_path / "tmp").glob("penstock-bench-*")) == []
