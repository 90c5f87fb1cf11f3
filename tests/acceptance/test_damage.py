"""Results that are damaged after they were recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.acceptance.conftest import Cluster, Shell, fake_vectors, texts


def hurt(store: Path, job: str, chunk: int, damage: str) -> Path:
    """Damage the result of a chunk."""
    (result,) = store.glob(f"jobs/{job}/result/{chunk:08d}-*.arrow")
    content = result.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        result.unlink()
    elif damage == "torn":
        result.write_bytes(content[:middle])
    else:
        result.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return result


def test_damaged_results_are_computed_again_while_they_are_collected(cluster: Cluster) -> None:
    """Only their chunks, under new tokens; lines name the objects, and the file is as without the damage."""
    shell, store = cluster.shell, cluster.shell.folder / "shared"
    shell.write("corpus.txt", texts(60))
    cluster.start_worker("fake", processes=1)
    job = shell.json("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 10, "--out", "reference.npy")["job"]
    damages = {1: "missing", 2: "torn", 5: "altered"}
    hurt_ones = {chunk: hurt(store, job, chunk, damage) for chunk, damage in damages.items()}
    done = shell.run("collect", job, "--out", "v.npy")
    lines = [line for line in done.stderr.splitlines() if "computed again" in line]
    assert len(lines) == 3
    for line, (chunk, result) in zip(lines, hurt_ones.items(), strict=True):
        assert f"chunk {chunk} is computed again" in line
        assert result.name in line
    np.testing.assert_array_equal(np.load(shell.folder / "v.npy"), np.load(shell.folder / "reference.npy"))
    assert len(list(store.glob(f"jobs/{job}/result/*.arrow"))) == 6 + 2  # the torn and the altered one lie there still
    assert "computed again" not in shell.run("collect", job, "--out", "v.npy", "--overwrite").stderr
    status = shell.json("status", job)
    assert (status["state"], status["rows_done"], status["chunks_done"]) == ("done", 60, 6)


def test_an_embedded_collect_starts_workers_for_a_damaged_result(shell: Shell) -> None:
    """It has none of its own otherwise; nothing is left behind."""
    shell.write("corpus.txt", texts(60))
    job = shell.json("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 10, "--workers", 1)["job"]
    (run,) = (shell.folder / "state" / "penstock" / "runs").iterdir()
    hurt(run / "store", job, 2, "torn")
    done = shell.run("collect", job, "--out", "v.npy")
    assert "chunk 2 is computed again" in done.stderr
    np.testing.assert_array_equal(np.load(shell.folder / "v.npy"), fake_vectors(texts(60)))
    assert not run.exists()


def test_an_input_that_is_gone_too_is_named_and_leaves_the_job_as_it_is(cluster: Cluster) -> None:
    """Only the corpus has those rows: one line says so, and the same command with --new begins anew."""
    shell, store = cluster.shell, cluster.shell.folder / "shared"
    shell.write("corpus.txt", texts(20))
    cluster.start_worker("fake", processes=1)
    command = ("encode", "corpus.txt", "--model", "fake", "--chunk-rows", 10)
    job = shell.json(*command, "--out", "reference.npy")["job"]
    hurt(store, job, 1, "missing")
    (store / f"jobs/{job}/input/00000001.arrow").unlink()
    done = shell.run("collect", job, "--out", "v.npy", code=1)
    assert "00000001.arrow is missing or damaged too" in done.stderr
    assert shell.json("status", job)["state"] == "done"
    assert not (shell.folder / "v.npy").exists()
    assert shell.json(*command, "--new", "--out", "v.npy")["job"] != job
    np.testing.assert_array_equal(np.load(shell.folder / "v.npy"), np.load(shell.folder / "reference.npy"))
