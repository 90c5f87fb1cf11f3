"""`penstock encode` without a broker: one command, nothing left behind."""

from __future__ import annotations

import gzip
import json
import signal
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import Shell, texts, tree, wait_until

#: The fake engine, slow enough to be caught at work.
SLOW = "fake:ms_per_row=5"


def runs_of(shell: Shell) -> list[Path]:
    """Return the state folders that are left."""
    return list((Path(shell.environment["XDG_STATE_HOME"]) / "penstock" / "runs").glob("*"))


def test_the_vectors_come_in_the_order_of_the_rows_whatever_the_number_of_slots(shell: Shell) -> None:
    """One and three slots write the same file, and the summary counts every row."""
    corpus = shell.write("corpus.txt", texts(500))
    outs = []
    for workers in (1, 3):
        out = shell.folder / f"{workers}.npy"
        result = shell.json(
            "encode", corpus, "--model", "fake:dim=8", "--out", out, "--workers", workers, "--chunk-rows", 20
        )
        outs.append(np.load(out))
        assert (result["state"], result["rows"], result["chunks"]) == ("done", 500, 25)
        assert (result["failed_rows"], result["workers"], result["out"]) == (0, workers, str(out))
    assert outs[0].shape == (500, 8)
    np.testing.assert_array_equal(outs[0], outs[1])
    assert len(np.unique(outs[0], axis=0)) == 500


def test_ids_and_kept_fields_reach_the_parquet_file(shell: Shell) -> None:
    """A record's id and fields stand beside its vector; a missing id is the row number."""
    records = [{"id": "a", "text": "one two", "year": 1999}, {"text": "three", "year": None}]
    with gzip.open(shell.folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    shell.run("encode", "corpus.jsonl.gz", "--model", "fake", "--out", "v.parquet", "--keep-fields", "year")
    table = pq.read_table(shell.folder / "v.parquet")
    assert table["id"].to_pylist() == ["a", "1"]
    assert table["year"].to_pylist() == [1999, None]
    assert table["n_tokens"].to_pylist() == [2, 1]
    assert table.schema.metadata[b"penstock.model"] == b"fake"


def test_a_report_is_written_before_the_run_goes(shell: Shell) -> None:
    """Whatever else is in the way of it is said before anything starts."""
    corpus = shell.write("corpus.txt", texts(60))
    command = ("encode", corpus, "--model", "fake", "--out", "v.npy", "--report", "report.html")
    result = shell.json(*command)
    assert result["job"] in (shell.folder / "report.html").read_text()
    assert runs_of(shell) == []
    refused = shell.run("encode", corpus, "--model", "fake", "--out", "r.npy", "--report", "./r.npy", code=2)
    assert "--report ./r.npy: that is --out" in refused.stderr
    refused = shell.run(*command, "--out", "other.npy", code=2)
    assert "--report report.html exists already" in refused.stderr
    refused = shell.run(*command[:-1], "no/such/folder/report.html", "--overwrite", code=2)
    assert "--report no/such/folder/report.html: there is no folder" in refused.stderr


def test_stdin_is_an_input(shell: Shell) -> None:
    """A dash reads standard input."""
    assert shell.json("encode", "-", "--model", "fake", "--out", "v.npy", stdin="one\ntwo\n")["rows"] == 2


def test_without_out_the_results_wait_for_collect(shell: Shell) -> None:
    """The state folder stays until the job is collected, and jobs and status know it."""
    shell.write("corpus.txt", texts(10))
    job = shell.json("encode", "corpus.txt", "--model", "fake")["job"]
    assert [entry["job"] for entry in shell.json("jobs")] == [job]
    assert shell.json("status", job)["rows_done"] == 10
    assert len(runs_of(shell)) == 1
    shell.run("collect", job, "--out", "v.jsonl")
    assert len((shell.folder / "v.jsonl").read_text().splitlines()) == 10
    assert runs_of(shell) == []


def test_the_same_command_on_a_job_that_is_done_starts_no_workers(shell: Shell) -> None:
    """There is nothing for them to do."""
    shell.write("corpus.txt", texts(10))
    command = ("encode", "corpus.txt", "--model", "fake", "--workers", 1)
    assert shell.json(*command)["workers"] == 1
    (log,) = [run / "worker.log" for run in runs_of(shell)]
    log.unlink()
    again = shell.json(*command)
    assert again["state"] == "done"
    assert not log.exists()


def test_dry_run_counts_and_submits_nothing(shell: Shell) -> None:
    """Rows, chunks, bytes and estimates, and no state folder."""
    shell.write("corpus.txt", texts(50))
    found = shell.json("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 20, "--dry-run")
    assert (found["rows"], found["chunks"]) == (50, 3)
    assert found["bytes"] == sum(map(len, texts(50)))
    assert runs_of(shell) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.jsonl", b'{"text":"a"}\n{"text":\n', "c.jsonl, line 2: not valid JSON"),
        ("c.jsonl", b'{"text":"a"}\n{"txt":"b"}\n', 'c.jsonl, line 2: no field "text"'),
        ("c.txt", b"fine\n\xff\n", "c.txt, line 2: not UTF-8"),
        ("c.txt", b"", "c.txt is empty"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_submitted(shell: Shell, name: str, content: bytes, says: str) -> None:
    """Exit code 4, the file and the line, no output, no state folder."""
    (shell.folder / name).write_bytes(content)
    done = shell.run("encode", name, "--model", "fake", "--out", "v.npy", code=4)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (shell.folder / "v.npy").exists()
    assert runs_of(shell) == []


def test_bad_input_far_into_the_corpus_fails_the_job(shell: Shell) -> None:
    """What only shows after chunks were sent ends the job, and leaves neither output nor state."""
    shell.write("c.jsonl", [json.dumps({"text": text}) for text in texts(5000)] + ["{"])
    done = shell.run("encode", "c.jsonl", "--model", "fake", "--out", "v.npy", code=4)
    assert "c.jsonl, line 5001: not valid JSON" in done.stderr
    assert not (shell.folder / "v.npy").exists()
    assert runs_of(shell) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "/no/such/folder"), "no such folder"),
        (("--model", "fake", "--out", "v.xyz"), "no format has that extension"),
        (("--model", "fake", "--out", "taken.npy"), "exists already"),
        (("--model", "fake", "--prompt", "a", "--prompt-name", "b"), "not both"),
        (("--model", "fake", "--detach"), "--detach needs a cluster"),
        ((), "No model is named"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_remedy(shell: Shell, arguments: tuple[str, ...], says: str) -> None:
    """Exit code 2, before anything is started."""
    shell.write("corpus.txt", ["a"])
    shell.write("taken.npy", [""])
    done = shell.run("encode", "corpus.txt", *arguments, code=2)
    assert says in done.stderr
    assert runs_of(shell) == []


def test_a_prompt_that_the_model_lacks_fails_the_job_by_name(shell: Shell) -> None:
    """What only the engine knows comes back as the job's reason."""
    shell.write("corpus.txt", ["a"])
    done = shell.run("encode", "corpus.txt", "--model", "fake", "--prompt-name", "query", code=1)
    assert "no prompt named 'query'" in done.stderr


def test_an_interrupted_run_leaves_no_process_and_goes_on_with_the_same_command(shell: Shell) -> None:
    """Ctrl-C ends server and slots; the same command encodes only what is left."""
    shell.write("corpus.txt", texts(400))
    command = ("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 20, "--workers", 2)
    first = shell.start(*command)
    wait_until(lambda: len(results_of(shell)) >= 3, "a few chunks have results")
    family = tree(first.pid)
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    wait_until(lambda: not any(alive(process) for process in family), "all its processes are gone")
    before = set(results_of(shell))
    result = shell.json(*command)
    assert (result["rows_done"], result["chunks_done"], result["state"]) == (400, 20, "done")
    assert before <= set(results_of(shell))
    assert len(results_of(shell)) <= 20 + 2  # at most the chunks in work were done again


def test_sigterm_cleans_up_as_ctrl_c_does(shell: Shell) -> None:
    """A service manager's stop leaves no process and no draft, and the same command goes on."""
    shell.write("corpus.txt", texts(400))
    command = ("encode", "corpus.txt", "--model", SLOW, "--chunk-rows", 20, "--workers", 2, "--out", "v.npy")
    first = shell.start(*command)
    wait_until(lambda: results_of(shell), "a chunk has a result")
    family = tree(first.pid)
    first.terminate()
    assert first.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: not any(alive(process) for process in family), "all its processes are gone")
    assert shell.json(*command)["rows_done"] == 400
    assert {path.name for path in shell.folder.iterdir()} == {"000-encode.log", "corpus.txt", "state", "v.npy"}
    assert runs_of(shell) == []


def test_kill_minus_nine_of_the_command_ends_server_and_slots(shell: Shell) -> None:
    """Nobody is left behind when the command cannot clean up."""
    shell.write("corpus.txt", texts(2000))
    process = shell.start("encode", "corpus.txt", "--model", SLOW, "--workers", 2, "--chunk-rows", 50)
    wait_until(lambda: results_of(shell), "a chunk has a result")
    family = tree(process.pid)
    assert len(family) >= 6  # the command, the server and its guard, a node, two slots
    process.kill()
    wait_until(lambda: not any(alive(member) for member in family), "all its processes are gone")


def test_the_same_command_twice_at_once_is_refused(shell: Shell) -> None:
    """The second one says that the first is running."""
    shell.write("corpus.txt", texts(2000))
    command = ("encode", "corpus.txt", "--model", SLOW, "--workers", 1, "--chunk-rows", 50)
    shell.start(*command)
    wait_until(lambda: results_of(shell), "a chunk has a result")
    assert "running already" in shell.run(*command, code=2).stderr


def results_of(shell: Shell) -> list[Path]:
    """Return the chunk results that are in the store, whole."""
    return [file for run in runs_of(shell) for file in run.glob("store/jobs/*/result/*.arrow")]


def alive(process: psutil.Process) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
