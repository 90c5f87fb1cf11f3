"""State folders of embedded runs: found again whatever happened to them, and gone when nobody needs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer

from producer import Client
from producer.commands import jobs as commands
from producer.commands.options import client_of
from producer.commands.remove import remove_jobs
from producer.job import Job
from producer.runs import Run, runs
from tasks.errors import JobFailed, UnknownJob, UsageError
from tasks.settings import Settings


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands find runs."""
    state = tmp_path / "state"
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(state))
    for name in ("PENSTOCK_BROKER_URL", "PENSTOCK_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    return state


def encode_in(run: Run, *texts: str, store_url: str | None = None, **options: object) -> str:
    """Make a job in a run and wait for its end, whatever it is. Returns its id."""
    with Client.embedded("fake:faults=1", 1, run=run, store_url=store_url) as client:
        job = client.encode(texts or ["one"], **options)
        try:
            job.wait(timeout_s=30)
        except JobFailed:
            assert job.status().state == "failed"
        return job.id


def damage_data(run: Run) -> None:
    """Spoil what the private server reads at its start."""
    for file in (run.folder / "broker" / "appendonlydir").glob("*.aof"):
        file.write_bytes(b"nonsense" * 1000)


def test_a_job_that_another_command_cancels_leaves_no_folder(state_dir: Path) -> None:
    """Whoever runs the server drops it at its own end."""
    run = Run.at(state_dir, "one")
    with Client.embedded(run=run) as owner:
        job = owner.encode(["one"], model="fake")
        with client_of(job.id, None, None) as guest:
            assert not guest.is_owner
            guest.job(job.id).cancel()
        assert run.jobs() == [job.id]
    assert not run.folder.exists()


def test_a_job_that_another_command_makes_keeps_the_folder(state_dir: Path) -> None:
    """What is on the disk counts, not what the owner knew at its start."""
    run = Run.at(state_dir, "one")
    with Client.embedded(run=run), Client.embedded(run=run) as guest:
        job = guest.encode(["one"], model="fake")
    assert run.jobs() == [job.id]


def test_a_failed_job_stays_reachable_when_another_takes_its_place(state_dir: Path, tmp_path: Path) -> None:
    """`jobs` lists it, and so it can be shown, retried and removed."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("!raise\n")
    run = Run.at(state_dir, "one")
    found = []
    for _ in range(2):
        with Client.embedded("fake:faults=1", 1, run=run) as client:
            job = client.encode(corpus, on_error="fail")
            with pytest.raises(JobFailed):
                job.wait(timeout_s=30)
            found.append(job.id)
    assert run.jobs() == found
    assert found[0] != found[1]


@pytest.mark.parametrize("note", [None, '{"jobs": ["enc'], ids=["missing", "torn"])
def test_a_run_whose_note_is_lost_is_found_by_its_ledger(state_dir: Path, note: str | None) -> None:
    """The note is only there to find a run without opening it, and is written again."""
    run = Run.at(state_dir, "one")
    job = encode_in(run)
    file = run.folder / "run.json"
    file.unlink()
    if note is not None:
        file.write_text(note)
    with client_of(job, None, None) as client:
        assert client.job(job).status().state == "done"
    assert run.jobs() == [job]
    with pytest.raises(UnknownJob):
        client_of("encode-0000", None, None).__enter__()


def test_a_run_whose_server_cannot_start_hides_no_other_run(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what to do with it, and `penstock remove` can do that."""
    broken, whole = Run.at(state_dir, "broken"), Run.at(state_dir, "whole")
    lost, kept = encode_in(broken), encode_in(whole)
    damage_data(broken)
    found = [job.id for _, client in commands.open_clients(Settings.load()) for job in client.jobs()]
    assert found == [kept]
    (said,) = capsys.readouterr().err.splitlines()
    assert str(broken.folder) in said
    assert "does not start: " in said
    assert "penstock remove" in said
    assert ":M " not in said
    remove_jobs([lost], None, dry_run=True)
    assert broken.folder.exists()
    remove_jobs([lost], None, dry_run=False)
    assert list(runs(state_dir)) == [whole]


def test_a_run_whose_ledger_is_lost_is_rebuilt_when_it_is_opened(state_dir: Path) -> None:
    """Its store has all that is needed."""
    run = Run.at(state_dir, "one")
    job = encode_in(run, "one", "two")
    shutil.rmtree(run.folder / "broker" / "appendonlydir")
    with client_of(job, None, None) as client:
        assert client.job(job).status().state == "done"
        assert client.job(job).vectors().shape == (2, 32)
    assert not run.folder.exists()


def test_the_store_of_a_run_goes_before_that_of_the_environment(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs live there; another one named for them is refused."""
    run, other = Run.at(state_dir, "one"), (tmp_path / "other").as_uri()
    job = encode_in(run)
    with pytest.raises(UsageError, match="leave out --store"):
        client_of(job, None, other).__enter__()
    monkeypatch.setenv("PENSTOCK_STORE_URL", other)
    with client_of(job, None, other) as client:
        assert client.store.url == run.own_store_url
        assert client.job(job).vectors().shape == (1, 32)


def test_what_a_run_has_in_a_store_elsewhere_goes_with_its_folder(state_dir: Path, tmp_path: Path) -> None:
    """Nobody would find it again."""
    run, elsewhere = Run.at(state_dir, "one"), tmp_path / "elsewhere"
    job = encode_in(run, store_url=elsewhere.as_uri())
    assert list(elsewhere.rglob(f"*{job}*"))
    with client_of(job, None, None) as client:
        assert client.job(job).vectors().shape == (1, 32)
    assert not run.folder.exists()
    assert not list(elsewhere.rglob("*.arrow")) + list(elsewhere.rglob("*.json"))


def test_collect_says_by_its_exit_code_that_rows_failed(state_dir: Path, tmp_path: Path) -> None:
    """As `encode`, `wait` and `retry` do; all rows are written."""
    job = encode_in(Run.at(state_dir, "one"), "one", "!raise")
    with pytest.raises(typer.Exit) as caught:
        commands.collect(job, str(tmp_path / "v.jsonl"))
    assert caught.value.exit_code == 1
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2


def test_a_job_that_failed_is_not_collected_though_all_its_chunks_are_done(state_dir: Path, tmp_path: Path) -> None:
    """Whoever said --on-error fail wants no such file."""
    job = encode_in(Run.at(state_dir, "one"), "one", "!raise", on_error="fail")
    with pytest.raises(JobFailed, match="penstock retry"):
        commands.collect(job, str(tmp_path / "v.jsonl"))
    assert not (tmp_path / "v.jsonl").exists()


def test_a_retry_without_failed_rows_changes_nothing(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says so."""
    job = encode_in(Run.at(state_dir, "one"))
    commands.retry(job)
    assert capsys.readouterr().out == f"{job}: nothing failed; it is done\n"


def test_ctrl_c_during_a_retry_says_how_to_come_back(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And then the job runs, which another retry follows."""
    job = encode_in(Run.at(state_dir, "one"), "one", "!raise")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Client, "start_workers", lambda *_, **__: None)
        patched.setattr(Job, "wait", interrupt)
        with pytest.raises(typer.Exit) as caught:
            commands.retry(job)
    assert caught.value.exit_code == 130
    assert f"`penstock wait {job}` comes back" in capsys.readouterr().err
    with pytest.raises(typer.Exit) as caught:
        commands.retry(job)
    assert caught.value.exit_code == 1
    assert f"{job}: followed; it is done" in capsys.readouterr().out


def test_a_removal_that_fails_prints_no_totals(capsys: pytest.CaptureFixture[str]) -> None:
    """Only why."""
    with pytest.raises(UnknownJob):
        remove_jobs(["encode-0000"])
    assert capsys.readouterr().out == ""
