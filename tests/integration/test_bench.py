"""A bench of real processes with a tiny model: what is in the file and on the screen, not how fast anything is."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from sentence_transformers import SentenceTransformer

from tasks.errors import Permanent
from tests.conftest import wait_until
from tests.tiny_models import WORDS, tiny_bert
from workers.bench.encoding import ceiling, peers
from workers.bench.encoding.figures import Corpus
from workers.bench.encoding.work import Work
from workers.bench.plan import SENTENCE_TRANSFORMERS, Contender
from workers.bench.ways import Setup

TEXTS = [" ".join(WORDS[: 1 + i * 7 % len(WORDS)] * (1 + i % 4)) for i in range(40)]


@pytest.mark.timeout(900)
def test_a_bench_runs_everybody_and_writes_figures_and_plot(tmp_path):
    """penstock, sentence-transformers at two batch sizes, a pool of threads, one peer that is not installed."""
    model = tiny_bert(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS) + "\n")
    command = [
        *(sys.executable, "-P", "-m", "producer.cli", "bench", "encode", "--corpus", "corpus.txt", "--model", model),
        *("--peers", "sentence-transformers,threads,ray", "--processes", "2", "--rounds", "1", "--out", "bench.json"),
    ]
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "ray.py").write_text("raise ModuleNotFoundError('no', name='ray')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "block"), "TMPDIR": str(tmp_path / "block")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one peer failed

    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in found["contenders"]}
    assert list(rows) == ["penstock", "sentence-transformers", "threads", "ray", "ceiling"]
    assert len(found["contenders"]) == 6
    assert rows["ray"]["errors"] == ["ray is not installed"]
    for name in ("penstock", "sentence-transformers", "threads"):
        row = rows[name]
        assert row["errors"] == []
        assert row["tokens_per_s"]["median"] > 0
        assert row["ratio"]["median"] > 0
        assert row["peak_bytes"] > 10**7
        assert 0 <= row["padding"] < 1
    assert rows["ceiling"]["tokens_per_s"]["median"] > 0
    assert found["corpus"]["rows"] == len(TEXTS)
    assert found["machine"]["versions"]["torch"]
    assert set(found["batch_sizes"]["fp32"]["batch_seconds"]) == {"4", "8", "16", "32"}  # there are 40 rows

    assert "penstock 2 x 1" in done.stdout
    assert "failed: ray is not installed" in done.stdout
    assert "round 1 of 1: penstock 2 x 1:" in done.stderr
    assert (tmp_path / "bench.svg").read_text().startswith("<?xml")
    assert [path.name for path in (tmp_path / "block").iterdir() if path.name.startswith("penstock-bench")] == []


@pytest.mark.parametrize(
    ("has_slow_products", "precision", "kernels"),
    [(True, "fp32", ("torch", "oneDNN")), (True, "fp16", ("torch",)), (False, "fp32", ("torch",))],
)
def test_the_ceiling_tries_what_an_engine_would_multiply_with(monkeypatch, has_slow_products, precision, kernels):
    """Both kernels where penstock takes oneDNN's: a ceiling that its engine passes would be none."""
    monkeypatch.setattr(ceiling, "has_slow_products", lambda: has_slow_products)
    assert ceiling.kernels(Setup("a/b", ("cpu",), 1, precision, 32)) == kernels


def test_the_ceiling_has_a_figure_for_each_kernel(monkeypatch):
    """Of all processes together."""
    monkeypatch.setattr(ceiling, "has_slow_products", lambda: True)
    found = ceiling.measure(Work([(64, 128), (128, 64)], 0), Setup("a/b", ("cpu",) * 2, 1, "fp32", 32))
    assert list(found) == ["torch", "oneDNN"]
    assert min(found.values()) > 0


def is_alive(process):
    """Whether a process still runs."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", [os.kill, os.killpg])
def test_sigterm_leaves_no_folder_and_no_process(tmp_path, end):
    """Neither of the command nor of what it started, whether it or its whole group is told."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS) + "\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "producer.cli", "bench", "encode", "--corpus", "corpus.txt"),
            *("--model", tiny_bert(tmp_path / "model"), "--rounds", "9", "--out", "bench.json"),
        ],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: any((tmp_path / "tmp").glob("*/run-1/task.json")), "the first run has begun")
        family = psutil.Process(process.pid).children(recursive=True)
        end(process.pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert list((tmp_path / "tmp").glob("penstock-bench-*")) == []
    assert not (tmp_path / "bench.json").exists()
    wait_until(lambda: not any(map(is_alive, family)), "all of it is gone")


def test_a_pool_that_never_comes_to_rest_is_an_error(monkeypatch):
    """Timed while it still loads, it would look slow."""

    class Busy:
        spent = itertools.count(1)

        def __init__(self, pid):
            pass

        def cpu_times(self):
            return next(self.spent), 0, 0, 0

    monkeypatch.setattr(peers, "LOAD_S", 0.1)
    monkeypatch.setattr(peers, "IDLE_S", 0.01)
    monkeypatch.setattr(peers.psutil, "Process", Busy)
    with pytest.raises(Permanent, match="still loading after 0 s"):
        peers._wait_until_idle([1, 2])
    monkeypatch.setattr(Busy, "spent", itertools.repeat(5.0))
    peers._wait_until_idle([1, 2])


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_the_padding_that_is_counted_is_what_the_model_is_fed(tmp_path, batch_size):
    """Without looking into it while it is timed."""
    model = SentenceTransformer(tiny_bert(tmp_path / "model"), device="cpu")
    fed = []
    model[0].register_forward_pre_hook(lambda _, arguments: fed.append(arguments[0]["input_ids"].numel()))
    model.encode(TEXTS, batch_size=batch_size)
    lengths = np.array([len(model.tokenizer(text)["input_ids"]) for text in TEXTS])
    counts = Corpus(lengths, np.array([len(text) for text in TEXTS]))
    assert counts.padded_tokens(Contender(SENTENCE_TRANSFORMERS, 1, 1, batch_size=batch_size)) == sum(fed)
