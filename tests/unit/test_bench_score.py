"""The bench of scoring: its plan and pairs, its figures and table, and that it notices scores that are not the same."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from producer.bench_pairs import copy_pairs
from producer.candidates import read_candidates
from producer.texts import read_texts
from tasks.errors import BadInput, Permanent, UsageError
from tests.fuzz.commands import call
from workers.bench import plan, showing
from workers.bench.figures import Outcome
from workers.bench.plan import CROSS_ENCODER, PENSTOCK, Contender
from workers.bench.rounds import Bench
from workers.bench.scoring import agreement, article, pairs
from workers.bench.scoring import plan as scoring_plan
from workers.bench.scoring.figures import summarise
from workers.bench.scoring.layout import LAYOUT
from workers.bench.scoring.plan import NAIVE, ScorePlan
from workers.bench.scoring.subject import ScoreSubject
from workers.bench.watching import Watched

ALONE = Contender(NAIVE, 1, 2)
SEVERAL = Contender(NAIVE, 2, 1)
SMALL = Contender(CROSS_ENCODER, 1, 2, batch_size=8)
LARGE = Contender(CROSS_ENCODER, 1, 2, batch_size=64)
OURS = Contender(PENSTOCK, 2, 1)


def read(**changes):
    """Read a plan with some options."""
    return ScorePlan.read(json.dumps({"model": "a/b", "out": "bench.json", **changes}))


def result(runs, n_pairs=100):
    """Return the JSON of a bench with these runs."""
    return {
        "model": "a/b",
        "kind": "causal reranker",
        "machine": {"cores": 2, "devices": ["cpu"]},
        "pairs": {"name": "d.jsonl", "queries": 1, "documents": 100, "pairs": n_pairs, "mean_tokens": 150.0},
        "published": article.figures(),
        "contenders": summarise(runs, n_pairs),
    }


RUNS = {
    ALONE: [Outcome(seconds=20.0, device_use=0.3, largest_difference=0.0, equal_ranks=1.0), Outcome(seconds=40.0)],
    SMALL: [Outcome(seconds=4.0), Outcome(seconds=8.0)],
    LARGE: [Outcome(seconds=5.0), Outcome(seconds=10.0)],
    OURS: [
        Outcome(seconds=1.0, peak_bytes=1_234_000_000, device_use=0.97, largest_difference=6e-8, equal_ranks=0.9),
        Outcome(seconds=2.0, device_use=0.97, largest_difference=5e-8, equal_ranks=1.0),
    ],
}


def test_those_who_are_compared_are_the_articles_rows_and_their_rivals(monkeypatch):
    """One process is always there, as the others are compared with it."""
    for module in (plan, scoring_plan):
        monkeypatch.setattr(module, "cores", lambda: 4)
    found = scoring_plan.contenders(read(processes=[4, 2]), "fp32", [16, 8])
    assert [contender.label for contender in found] == [
        "one pair at a time 1 x 4",
        "one pair at a time 2 x 2",
        "one pair at a time 4 x 1",
        "CrossEncoder 1 x 4, batch 16",
        "CrossEncoder 1 x 4, batch 8",
        "penstock 2 x 2",
        "penstock 4 x 1",
    ]
    subject = ScoreSubject(read())
    assert [contender.label for contender in found if subject.is_reference(contender)] == ["one pair at a time 1 x 4"]


def test_a_template_is_found_by_name_by_file_or_by_the_models_id(tmp_path):
    """Of a model that nobody knows there is none; a cross-encoder needs none."""
    assert read(model="Qwen/Qwen3-Reranker-0.6B@main").find_template().name == "qwen3-reranker"
    assert read(template="lychee-rerank").find_template().name == "lychee-rerank"
    assert read().find_template() is None
    with pytest.raises(UsageError, match="--template nobodys: there is none of this name"):
        read(template="nobodys")
    with pytest.raises(UsageError, match=r"own\.toml: it cannot be read"):
        read(template=str(tmp_path / "own.toml"))


def test_speed_up_is_to_one_pair_at_a_time_and_the_ratio_to_the_best_batch_size():
    """Each within its round: a machine that is half as fast in one makes no difference."""
    rows = {row["label"]: row for row in summarise(RUNS, 100)}
    ours = rows[OURS.label]
    assert ours["seconds"] == {"median": 1.5, "least": 1.0, "most": 2.0}
    assert ours["documents_per_s"] == {"median": 75, "least": 50, "most": 100}
    assert ours["speedup"] == {"median": 20, "least": 20, "most": 20}
    assert ours["ratio"] == {"median": 4, "least": 4, "most": 4}
    assert (ours["largest_difference"], ours["equal_ranks"]) == (6e-8, 0.9)
    assert rows[SMALL.label]["ratio"]["median"] == 1.0
    assert rows[LARGE.label]["ratio"]["median"] == 0.8
    assert rows[ALONE.label]["speedup"]["median"] == 1.0


def test_several_processes_are_compared_with_one_even_if_they_are_slower():
    """The fastest of all loops would be another base."""
    rows = summarise({ALONE: [Outcome(seconds=2.0)], SEVERAL: [Outcome(seconds=1.0)], OURS: [Outcome(seconds=0.5)]}, 10)
    assert [row["speedup"]["median"] for row in rows] == [1.0, 2.0, 4.0]
    assert [row["ratio"] for row in rows] == [None] * 3


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_the_articles_figures_below_and_breaks_no_number(width):
    """On a narrow terminal too."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(showing.table(result(RUNS), LAYOUT, width))
    shown = captured.get()
    assert "d.jsonl: 1 query, 100 documents to score, 150 tokens each" in shown
    headings, lines = showing.cells(result(RUNS), LAYOUT)
    assert lines[3] == [OURS.label, "1.5 s", "75.0", "97%", "20.00", "4.00", "1,234 MB", "6.0e-08", "90%"]
    assert lines[4] == ["article, 1 process", "12.0 min", "1.4", "28%", "1.00", "-", "-", "-", "-"]
    words = Counter(word for line in [headings, *lines] for cell in line for word in cell.split())
    assert words <= Counter(shown.split())
    assert article.SOURCE in shown


def test_a_contender_that_failed_is_a_line_of_the_table():
    """With its reason; the article's figures stay below."""
    lines = showing.markdown(result({**RUNS, SEVERAL: [Outcome(error="it was killed")] * 2}), LAYOUT).splitlines()
    assert "| one pair at a time 2 x 1 | failed: it was killed |" in "\n".join(lines)
    assert lines[-3].startswith("| article, 8 processes | - | 6.1 | 85% | 4.50 |")
    assert lines[-1].endswith(article.SOURCE)
    assert {line.count("|") for line in lines[:-2]} == {10}


def test_made_up_pairs_are_always_the_same(tmp_path):
    """One query, as in the article, and as many documents as pairs."""
    pairs.make_up(tmp_path, 30)
    found = pairs.read(tmp_path)
    assert (set(found.query_ids), len(set(found.doc_ids)), len(found.pairs)) == ({"1"}, 30, 30)
    assert {pair.query for pair in found.pairs} == {pairs.QUERY}
    pairs.make_up(tmp_path, 30)
    assert pairs.read(tmp_path) == found


QUERIES = [{"id": "a", "text": "first"}, {"id": "b", "text": "second"}, {"id": "c", "text": "third"}]
DOCS = [{"id": str(n), "text": f"document {n}"} for n in range(5)]


def copy(folder, candidates, most):
    """Copy the first pairs, and read them as contenders do: query id, document id and texts."""
    opened = None if candidates is None else read_candidates(candidates)
    copy_pairs(read_texts("query", QUERIES), read_texts("document", DOCS), opened, most, folder)
    found = pairs.read(folder)
    return list(zip(found.query_ids, found.doc_ids, strict=True)), found.pairs


def test_the_first_pairs_are_copied_in_the_order_of_their_scores(tmp_path):
    """By query as they stand, then in the order of the candidates; each pair once."""
    ids, texts = copy(tmp_path, [("c", ["4"]), ("a", ["3", "1", "3"]), ("z", ["0"]), ("b", ["0"])], 3)
    assert ids == [("a", "3"), ("a", "1"), ("b", "0")]
    assert texts == [("first", "document 3"), ("first", "document 1"), ("second", "document 0")]
    assert len((tmp_path / "docs.jsonl").read_text().splitlines()) == 3


def test_without_candidates_every_query_meets_every_document(tmp_path):
    """As far as pairs are wanted."""
    ids, _ = copy(tmp_path, None, 7)
    assert ids == [("a", "0"), ("a", "1"), ("a", "2"), ("a", "3"), ("a", "4"), ("b", "0"), ("b", "1")]
    assert len(copy(tmp_path, None, 100)[0]) == 15


@pytest.mark.parametrize(
    ("candidates", "line"),
    [
        ([("a", ["7"])], "--docs: there is no document with the id '7', which --candidates names"),
        ([("z", ["0"])], "--candidates: no candidate is of one of the queries"),
    ],
)
def test_candidates_of_nothing_are_an_error(tmp_path, candidates, line):
    """Which says what is not there."""
    with pytest.raises(BadInput, match=line):
        copy(tmp_path, candidates, 10)


SCORES = np.random.default_rng(0).random(40)
QUERY_IDS, DOC_IDS = ["a"] * 20 + ["b"] * 20, [f"{n:02}" for n in range(40)]


def test_scores_that_differ_by_rounding_agree():
    """And how far they differ is told."""
    assert agreement.check("x", SCORES + 5e-5, SCORES, "fp32") == pytest.approx(5e-5)
    assert agreement.check("x", 1000 * SCORES + 5e-2, 1000 * SCORES, "fp32") == pytest.approx(5e-2)
    assert agreement.check("x", SCORES + 0.01, SCORES, "bf16") == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda found: found[::-1], "x gave other scores than one pair at a time: 40 of 40 differ by more than 0.0001"),
        (lambda found: np.roll(found, 1), "The speeds do not compare"),
        (lambda found: found[:-1], r"shape \(39,\), not \(40,\)"),
        (lambda found: found[:, None], r"shape \(40, 1\), not \(40,\)"),
        (
            lambda found: np.where(np.arange(40) == 7, np.nan, found),
            "1 of 40 differ by more than 0.0001, pair 7 by nan",
        ),
        (lambda found: found + 0.01, "40 of 40"),
    ],
)
def test_scores_that_are_not_the_same_are_an_error(spoil, line):
    """Another order, pairs that are missing, no numbers, another prompt."""
    with pytest.raises(Permanent, match=line):
        agreement.check("x", spoil(SCORES), SCORES, "fp32")


def test_equal_ranks_are_those_of_the_first_ten_of_each_query():
    """Two that changed places are two of ten; what is below does not count."""
    assert agreement.equal_ranks(SCORES, SCORES, QUERY_IDS, DOC_IDS) == 1.0
    order = np.argsort(-SCORES[:20])
    swapped = SCORES.copy()
    swapped[order[[0, 1]]] = SCORES[order[[1, 0]]]
    assert agreement.equal_ranks(swapped, SCORES, QUERY_IDS, DOC_IDS) == pytest.approx(0.9)
    swapped = SCORES.copy()
    swapped[order[[15, 16]]] = SCORES[order[[16, 15]]]
    assert agreement.equal_ranks(swapped, SCORES, QUERY_IDS, DOC_IDS) == 1.0


def bench(folder, monkeypatch, run_task):
    """Return a bench whose contenders are run by a function, and its contenders."""
    subject = ScoreSubject(read(max_pairs=30, rounds=2))
    subject.prepare(folder)
    found = Bench(subject, folder, say=lambda _: None, doing=lambda _: None)
    monkeypatch.setattr(found, "_run_task", run_task)
    monkeypatch.setattr(found, "_run_penstock", run_task)
    return found


def test_the_first_run_of_one_pair_at_a_time_is_what_the_others_are_checked_against(tmp_path, monkeypatch):
    """It comes first in the first round, whatever the order of the others."""
    ran = []

    def run_task(contender, folder):
        ran.append(contender)
        scores = SCORES[:30] + (0.1 if contender == LARGE else 0.0)
        np.save(folder / "values.npy", scores)
        return Watched(0, 3.0, [], []), {"began": 1.0, "ended": 2.0, "padded_tokens": 10, "model_share": 0.5}

    runs = bench(tmp_path, monkeypatch, run_task)._run_rounds([OURS, LARGE, SMALL, SEVERAL, ALONE])
    assert ran[0] == ALONE
    assert len(ran) == 10
    assert [outcome.error for outcome in runs[OURS]] == [None, None]
    assert (runs[SMALL][0].largest_difference, runs[SMALL][0].equal_ranks) == (0.0, 1.0)
    assert all("gave other scores than one pair at a time" in outcome.error for outcome in runs[LARGE])


def test_without_one_pair_at_a_time_there_is_no_bench(tmp_path, monkeypatch):
    """It ends at once, with the reason."""

    def run_task(contender, folder):
        return Watched(1, 3.0, [], []), {"error": "MemoryError in load"}

    with pytest.raises(Permanent, match="nothing to check the others against: MemoryError in load"):
        bench(tmp_path, monkeypatch, run_task)._run_rounds([OURS, ALONE])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", "b.txt", "--model", "a/b"], "--out b.txt: the figures are JSON"),
        (["--out", "b.json"], "No model is named: give --model MODEL, a cross-encoder or a causal reranker."),
        (["--out", "b.json", "--model", "fake"], "--model fake: no peer can run it; name a real one."),
        (["--out", "b.json", "--model", "a/b", "--docs", "d.jsonl"], "Give --queries and --docs together"),
        (["--out", "b.json", "--model", "a/b", "--candidates", "d.jsonl"], "Give --queries and --docs together"),
        (["--out", "b.json", "--model", "a/b", "--queries", "no.jsonl", "--docs", "d.jsonl"], "no.jsonl: no such file"),
        (["--out", "b.json", "--model", "a/b", "--template", "nobodys"], "--template nobodys: there is none of this"),
        (["--out", "b.json", "--model", "a/b", "--template", "own.toml"], "own.toml: it cannot be read"),
        (["--out", "b.json", "--model", "a/b", "--processes", "0"], "bench: processes.0: Input should be greater"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(tmp_path, capfd, monkeypatch, arguments, line):
    """In one line, before anything runs."""
    monkeypatch.delenv("PENSTOCK_MODEL", raising=False)
    (tmp_path / "d.jsonl").write_text('{"text": "a document"}\n')
    outcome = call("bench", "score", *arguments, folder=tmp_path)
    assert outcome.code in {2, 4}
    said = outcome.err + capfd.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "b.json").exists()
