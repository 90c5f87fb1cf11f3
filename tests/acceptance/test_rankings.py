"""What a scoring job leaves: its state, its page and its rankings, asked for one after the other."""

from __future__ import annotations

import json

from tests.acceptance.conftest import Shell


def test_a_job_with_a_failed_pair_is_told_reported_and_collected(shell: Shell) -> None:
    """Every command speaks of pairs; what failed is named by query and document, and nowhere left out in silence."""
    shell.write("queries.jsonl", [json.dumps({"id": "q1", "text": "red fish"})])
    docs = {"d1": "a red fish", "d2": "!raise it", "d3": "a red bird", "d4": "a blue bird"}
    shell.write("docs.jsonl", [json.dumps({"id": id_, "text": text}) for id_, text in docs.items()])
    inputs = ("--queries", "queries.jsonl", "--docs", "docs.jsonl")
    job = shell.json("score", *inputs, "--model", "fake:faults=1", "--workers", 1, "--name", "mine", code=1)["job"]
    state = shell.run("status", job).stdout
    assert "pairs    4 of 4; 0 truncated, 1 failed" in state
    assert "documents/s" in state
    assert "row 1 (query_id q1, doc_id d2): the engine failed on this row: RuntimeError" in state
    shell.run("report", job, "--out", "page.html")
    assert "1 pairs have no score" in (shell.folder / "page.html").read_text()
    refused = shell.run("collect", job, "--out", "x.npy", "--top-k", 2, code=2)
    assert "--top-k cannot go with it" in refused.stderr
    cut = shell.run("collect", job, "--out", "x.parquet", "--top-k", 2, code=1)
    assert "1 pairs have an error and are in no ranking" in cut.stderr
    result = shell.json("collect", job, "--out", "x.run", "--top-k", 2, code=1)
    assert result["out"] == ["x.run", "x.run.errors.jsonl"]
    assert (shell.folder / "x.run").read_text() == "q1 Q0 d1 1 1 mine\nq1 Q0 d3 2 0.5 mine\n"
    assert json.loads((shell.folder / "x.run.errors.jsonl").read_text())["doc_id"] == "d2"
