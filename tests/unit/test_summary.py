"""What a finished job tells, to people and to scripts."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from producer.summary import print_summary, summary
from tasks.options import ScoreOptions
from tasks.records import STAGES, read_status

FIELDS = {
    "state": "done",
    "rows": "20000",
    "rows_done": "20000",
    "recorded": "10",
    "announced": "10",
    "tokens": "180000",
    "padded_tokens": "200000",
    "first_claim_ms": "1000",
    "last_record_ms": "31000",
    "model_s": "47.0",
    "idle_s": "3.0",
}


@pytest.fixture
def shown(make_spec):
    """Return a function that prints the summary of a job of which the ledger has these fields."""

    def show(spec=None, **fields):
        status = read_status(
            make_spec(job="encode-0001", **(spec or {})), {**FIELDS, **{name: str(fields[name]) for name in fields}}
        )
        text = io.StringIO()
        print_summary(summary(status, out=["v.npy"], seconds=31.0, workers=2), Console(file=text, width=80))
        return [line.rstrip() for line in text.getvalue().splitlines()]

    return show


def test_a_person_sees_a_few_lines(shown):
    """One for each thing, aligned, and short enough for a terminal."""
    assert shown() == [
        "job      encode-0001 (done)",
        "rows     20,000 of 20,000; 0 truncated, 0 failed",
        "tokens   180,000; 10.0% padding",
        "seconds  read 0.0  tokenise 0.0  model 47.0  write 0.0  (summed over slots)",
        "device   94.0% in the model",
        "speed    6,000 tokens/s over 30.0 s, 2 workers",
        "written  v.npy",
    ]


def test_pairs_are_told_with_documents_a_second(shown):
    """By which rerankers are compared; a pair is one document read."""
    lines = shown(spec={"options": ScoreOptions()})
    assert lines[1] == "pairs    20,000 of 20,000; 0 truncated, 0 failed"
    assert lines[5] == "speed    667 documents/s, 6,000 tokens/s over 30.0 s, 2 workers"


def test_rows_that_needed_no_model_have_a_line(shown):
    """And what went through the model is told instead of its padding, which nobody knows then."""
    lines = shown(duplicate_rows=791, cached_rows=12000, padded_tokens=70000)
    assert lines[2] == "reused   791 duplicates, 12,000 (60.0%) from the cache"
    assert lines[3] == "tokens   180,000; 70,000 through the model, padding included"
    assert shown(duplicate_rows=791)[2] == "reused   791 duplicates, 0 from the cache"


def test_a_job_from_the_cache_alone_used_no_device(shown):
    """No line divides by zero."""
    lines = shown(cached_rows=20000, padded_tokens=0, model_s=0)
    assert "reused   0 duplicates, 20,000 (100.0%) from the cache" in lines
    assert "tokens   180,000; 0 through the model, padding included" in lines
    assert "device   0.0% in the model" in lines


def test_a_job_without_rows_or_receipts_says_little(shown):
    """Nothing was done, and nothing is known of the device."""
    lines = shown(rows=0, rows_done=0, tokens=0, padded_tokens=0, model_s=0, idle_s=0, last_record_ms=1000)
    assert "tokens   0; 0.0% padding" in lines
    assert not [line for line in lines if line.startswith(("reused", "device"))]


def test_a_script_gets_every_number(make_spec):
    """Under the names that the ledger has for them."""
    status = read_status(make_spec(), {**FIELDS, "duplicate_rows": "791", "cached_rows": "12000"})
    result = summary(status, out=["a", "b"], seconds=None, workers=2)
    assert (result["duplicate_rows"], result["cached_rows"]) == (791, 12000)
    assert list(result["stage_seconds"]) == list(STAGES)
    assert (result["out"], result["seconds"]) == (["a", "b"], None)
    assert summary(dataclasses.replace(status, work_s=0.0), out=[], seconds=1, workers=0)["tokens_per_second"] is None
