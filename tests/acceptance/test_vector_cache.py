"""`penstock encode --cache`: a second job takes its vectors from the first, whatever happens to the cache."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from tests.acceptance.conftest import Shell, texts

MODEL = "fake:dim=8"


@pytest.fixture
def encode(shell: Shell):
    """Return a function that encodes 600 texts and 60 of them again, and returns the summary and the vectors."""
    corpus = shell.write("corpus.txt", [*texts(600), *texts(60)])

    def run(cache: object, *options: object) -> tuple[dict, np.ndarray]:
        out = shell.folder / "v.npy"
        arguments = (corpus, "--model", MODEL, "--workers", 2, "--chunk-rows", 330, "--new", "--overwrite")
        result = shell.json("encode", *arguments, "--out", out, "--cache", cache, *options)
        return result, np.load(out)

    return run


def test_a_second_job_computes_nothing(shell: Shell, encode) -> None:
    """It takes every row from the folder, and another model takes none; people see how much it was."""
    first, computed = encode("cache")
    again, cached = encode("cache")
    np.testing.assert_array_equal(computed, cached)
    assert first["tokens"] == again["tokens"] > 0
    assert again["padded_tokens"] == 0
    assert again["cached_rows"] + again["duplicate_rows"] == 660
    other, _ = encode("cache", "--model", "fake:dim=9")
    assert other["cached_rows"] + other["duplicate_rows"] <= 60  # of its own
    corpus = shell.folder / "corpus.txt"
    shown = shell.run("encode", corpus, "--model", MODEL, "--workers", 1, "--new", "--cache", "cache").stderr
    assert "%) from the cache" in shown


def test_a_cache_in_redis_serves_as_well(encode, valkey: str) -> None:
    """The same with a server."""
    _, computed = encode(valkey)
    again, cached = encode(valkey)
    np.testing.assert_array_equal(computed, cached)
    assert again["cached_rows"] + again["duplicate_rows"] == 660


def test_a_cache_that_does_not_work_stops_nothing(shell: Shell, encode) -> None:
    """A server that is not there, and values that are damaged: the vectors are the same."""
    _, computed = encode("cache")
    without, vectors = encode(f"unix://{shell.folder}/nothing.sock")
    np.testing.assert_array_equal(computed, vectors)
    assert without["cached_rows"] == 0
    database = sqlite3.connect(shell.folder / "cache" / "vectors.sqlite", isolation_level=None)
    database.execute("UPDATE vectors SET value = zeroblob(length(value)) WHERE id % 2")
    database.close()
    mended, vectors = encode("cache")
    np.testing.assert_array_equal(computed, vectors)
    assert 0 < mended["cached_rows"] < 400
    assert encode("cache")[0]["padded_tokens"] == 0


def test_a_wrong_cache_is_one_line(shell: Shell, encode) -> None:
    """Before anything is loaded, with the exit code of a wrong option."""
    corpus = shell.folder / "corpus.txt"
    done = shell.run("encode", corpus, "--model", MODEL, "--out", "x.npy", "--cache", corpus, code=2)
    assert done.stderr.splitlines()[-1] == f"penstock: --cache {corpus}: it is a file; name a folder."
