"""``penstock report`` of real runs: whatever state a job is in, one page tells what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from producer import Client
from producer.commands import report as command
from producer.runs import Run
from tasks.errors import JobFailed, OutputExists, UnknownJob
from tests.conftest import wait_until


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return an embedded run that the command finds."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    for name in ("PENSTOCK_BROKER_URL", "PENSTOCK_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Run.at(tmp_path / "state", "one")


def embedded(run: Run, **settings: object) -> Client:
    """Start a run with two slots."""
    return Client.embedded("fake:faults=1,limit=5,ms_per_row=1", 2, run=run, **settings)


def numbers(capsys: pytest.CaptureFixture[str]) -> dict:
    """Return what the command printed last."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_finished_run_with_failed_rows_is_told_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Every chunk's receipt, every failed row by its id, and sums as the ledger has them."""
    texts = [(f"<b>{i}", "!raise" if i % 50 == 49 else f"{i} " * (1 + i % 9)) for i in range(400)]
    with embedded(run, chunk_rows=20) as client:
        job = client.encode(texts)
        status = job.wait(timeout_s=60)
    command.report(job.id, as_json=True)
    told = numbers(capsys)
    assert (told["receipts"], told["failed_rows"], told["unreadable_results"]) == (20, 8, 0)
    assert told["out"] == str(Path(f"{job.id}.html").resolve())
    assert len(told["slots"]) <= 2
    assert 0 < told["idle_share"] < 1
    assert 0 < told["span_seconds"] < status.work_s + 2
    page = Path(told["out"]).read_text(encoding="utf-8")
    assert [i for i in range(400) if f'<td class="wide">&lt;b&gt;{i}</td>' in page] == list(range(49, 400, 50))
    assert "<b>" not in page
    assert page.count("<svg ") == 5
    with pytest.raises(OutputExists):
        command.report(job.id)
    command.report(job.id, overwrite=True)


def test_a_running_job_has_what_is_recorded_so_far(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """While it goes on, another command makes the page."""
    with Client.embedded("fake:ms_per_row=50", 1, run=run, chunk_rows=1) as client:
        job = client.encode([f"text {i}" for i in range(500)])
        wait_until(lambda: job.status().recorded >= 3, "some chunks are done")
        command.report(job.id, out="page.html", as_json=True)
        assert not job.status().is_over
        job.cancel()
    told = numbers(capsys)
    assert told["state"] == "running"
    assert 3 <= told["receipts"] < 500
    assert "the job goes on, and a later report has more" in Path("page.html").read_text(encoding="utf-8")


def test_a_failed_job_says_why(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """And what its chunks did before."""
    with embedded(run, chunk_rows=2) as client:
        job = client.encode(["a", "b", "!raise", "d"], on_error="fail")
        with pytest.raises(JobFailed):
            job.wait(timeout_s=60)
    command.report(job.id, out="page.html", as_json=True)
    assert numbers(capsys)["state"] == "failed"
    assert "1 rows of chunk 1 failed" in Path("page.html").read_text(encoding="utf-8")


def test_a_job_of_a_cluster_is_reported_from_its_broker_and_store(
    valkey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that nobody has begun."""
    store = f"file://{tmp_path}/store"
    with Client(valkey, store) as client:
        job = client.encode(["one", "two"], model="fake")
    command.report(job.id, out="page.html", broker=valkey, store=store, as_json=True)
    told = numbers(capsys)
    assert (told["state"], told["receipts"], told["chunks"]) == ("running", 0, 1)
    assert "no result yet" in Path("page.html").read_text(encoding="utf-8")


def test_an_unknown_job_leaves_no_page(tmp_path: Path) -> None:
    """Nothing is written before all is read."""
    with pytest.raises(UnknownJob):
        command.report("encode-0000")
    assert not list(tmp_path.glob("*.html"))
