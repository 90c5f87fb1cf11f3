"""Quantised weights with real commands: a job, and what `penstock verify` says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import Shell
from tests.tiny_models import tiny_bert


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_verify_tells_what_quantised_weights_save_and_cost(shell: Shell, tmp_path: Path, quantize: str) -> None:
    """With the job's own option it passes; without, the model is not the job's."""
    model = tiny_bert(tmp_path / "model", hidden=64)
    (shell.folder / "texts.txt").write_text("".join(f"the river rose {i}\n" for i in range(40)), encoding="utf-8")
    job = shell.json("encode", "texts.txt", "--model", model, "--quantize", quantize, "--workers", 1)["job"]
    verdict = shell.json("verify", job, "--quantize", quantize, "--sample", 20)
    full = verdict["beside_fp32"]
    assert verdict["passes"]
    assert verdict["same_weights"]
    assert verdict["tolerance"] == 0.01
    assert verdict["weight_bytes"] < 0.6 * full["weight_bytes"]
    assert full["largest"] > verdict["largest"]
    assert 0.5 < full["least_cosine"] <= full["mean_cosine"]
    plain = shell.json("verify", job, "--sample", 20, code=1)
    assert not plain["same_weights"]
    assert "beside_fp32" not in plain
