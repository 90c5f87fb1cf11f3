"""Rank 0 of a sharded slot, without a node: ``python -m tests.sharded KIND MODEL OPERATION OUT [IDLE_S]``.

Two ranks on the CPU, or on GPUs if PENSTOCK_TEST_DEVICE is ``cuda``; KIND may be ``none``. It writes what the engine
made of ``TEXTS``, and what it is, to a .npz file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Pair
from tasks.settings import Settings

WORDS = ("It", "rained", "for", "a", "week", "and", "the", "river", "rose", "above", "the", "road", "to", "the", "mill")
#: Texts of many lengths, more than a batch takes.
TEXTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 2 + (7 * i) % 40)) for i in range(1, 41)]
BUDGET = 256


def settings(kind: str | None, model: str, operation: str, state: Path) -> Settings:
    """Return the settings of a slot."""
    template = {"template": "qwen3-reranker"} if operation == "score" and "causal" in model else {}
    return Settings(
        model=model,
        operation=operation,
        shard=kind,
        devices="cpu,cpu" if kind else "cpu",
        precision="fp32",
        state_dir=state,
        max_batch_tokens=BUDGET,
        **template,
    )


def run(engine: Any, operation: str, *, reproducible: bool = False, some: Sequence[str] = TEXTS) -> np.ndarray:
    """Return the values of some texts, (n_rows, dim), or of pairs of them."""
    if operation == "encode":
        computed = engine.encode(some, EncodeOptions(reproducible=reproducible))
    else:
        pairs = [Pair(TEXTS[i // 10][:60], text) for i, text in enumerate(some)]
        computed = engine.score(pairs, ScoreOptions(reproducible=reproducible))
    assert not any(computed.errors), computed.errors
    return computed.values


def model_of(engine: Any) -> Any:
    """Return an engine's torch module."""
    return engine._causal.model if hasattr(engine, "_causal") else engine._model


def main(kind: str, model: str, operation: str, out: str, idle_s: str = "0") -> None:
    """Load, run, wait, run again."""
    from workers.engines import load_engine
    from workers.planning import RANKS_VARIABLE
    from workers.sharding.tensors import own_parameters

    os.environ[RANKS_VARIABLE] = "2" if kind in {"tensor", "fsdp"} else "1"
    device = os.environ.get("PENSTOCK_TEST_DEVICE", "cpu")
    asked = settings(None if kind == "none" else kind, model, operation, Path(out).parent)
    engine = load_engine(ModelSpec.parse(model, operation), device, asked)
    devices = sorted({str(parameter.device) for parameter in model_of(engine).parameters()})
    own = own_parameters(model_of(engine))
    values = run(engine, operation)
    time.sleep(float(idle_s))
    again = run(engine, operation, reproducible=True)
    np.savez(out, values=values, again=again, own=own, weights=engine.weights, devices=devices)


if __name__ == "__main__":
    main(*sys.argv[1:])
