"""Slots over two CUDA devices. Not yet run: `make test-gpu` where there are two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_causal import tiny_causal
from tests.tiny_models import tiny_decoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

#: Largest difference of a value in fp32 between one device and several.
TOLERANCE = 1e-4
PATIENCE_S = 240


@pytest.fixture(params=["decoder", "causal"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A random model of each kind."""
    return (tiny_decoder if request.param == "decoder" else tiny_causal)(tmp_path / request.param)


def run(kind: str, model: str, folder: Path) -> Any:
    """Run a slot on CUDA devices in a process of its own: of all kinds, and ``none`` for one device."""
    operation = "score" if "causal" in model else "encode"
    out = folder / f"{kind}.npz"
    environment = {**os.environ, "PENSTOCK_TEST_DEVICE": "cuda"}
    command = [sys.executable, "-m", "tests.sharded", kind, model, operation, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return np.load(out)


@pytest.mark.parametrize("kind", ["auto", "tensor", "fsdp"])
def test_two_gpus_give_what_one_gives(model: str, tmp_path: Path, kind: str) -> None:
    """And the fingerprint is the same, so that they may share a job."""
    one, two = run("none", model, tmp_path), run(kind, model, tmp_path)
    np.testing.assert_allclose(two["values"], one["values"], atol=TOLERANCE, rtol=0)
    assert two["weights"] == one["weights"]
    if kind != "auto":
        assert two["own"] < 0.8 * one["own"]


def test_layers_lie_on_both_devices(tmp_path: Path) -> None:
    """The article's first GPU was full, and the others idle."""
    model = tiny_decoder(tmp_path / "decoder", hidden=256, layers=8)
    devices = run("auto", model, tmp_path)["devices"]
    assert set(devices.tolist()) == {"cuda:0", "cuda:1"}
