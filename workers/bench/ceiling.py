"""The ceiling: how many tokens a second there would be if the machine did nothing but the model's matrix products."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workers.bench.peers import DTYPES, LOAD_S, Setup
from workers.bench.work import Work

#: Tokens that are multiplied at a time: from what stays in a CPU's cache to what fills a GPU. The fastest counts.
TOKENS = (256, 1024, 4096, 16384)
#: Seconds for each of them.
MEASURE_S = 0.7


def work_of(transformer: Any) -> Work:
    """Read from a loaded transformer what it computes. A pooler, which sees one token a row, does not count."""
    linears = [
        (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    config = transformer.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Work(linears, config.num_hidden_layers * config.num_attention_heads * head)


def measure(work: Work, setup: Setup) -> float:
    """Return the FLOP/s of the linear layers' products, in as many processes at once as the model would have."""
    context = multiprocessing.get_context("spawn")
    arguments = [(work, setup, device) for device in setup.devices]
    with context.Pool(setup.processes, _join, (context.Barrier(setup.processes),)) as pool:
        found = pool.starmap(_multiply, arguments, chunksize=1)
    return float(np.sum(found, axis=0).max())


#: In each process: where all wait for each other, so that they multiply at the same time.
_joined: list[Any] = []


def _join(barrier: Any) -> None:
    _joined.append(barrier)


@torch.inference_mode()
def _multiply(work: Work, setup: Setup, device: str) -> Sequence[float]:
    """Return the FLOP/s of this process for each number of tokens."""
    torch.set_num_threads(setup.threads)
    dtype = DTYPES[setup.precision]
    # Each layer's weights are its own, as in the model: together they do not fit into a cache.
    layers = [torch.randn(n_out, n_in, device=device, dtype=dtype) for n_in, n_out in work.linears]
    a_token = 2 * sum(layer.numel() for layer in layers)
    rates = []
    for n_tokens in TOKENS if device != "cpu" else TOKENS[:-1]:
        inputs = {n_in: torch.randn(n_tokens, n_in, device=device, dtype=dtype) for n_in, _ in work.linears}
        _once(layers, inputs, device)
        _joined[0].wait(LOAD_S)
        began, passes = time.perf_counter(), 0
        while time.perf_counter() - began < MEASURE_S:
            _once(layers, inputs, device)
            passes += 1
        rates.append(passes * n_tokens * a_token / (time.perf_counter() - began))
    return rates


def _once(layers: list[torch.Tensor], inputs: dict[int, torch.Tensor], device: str) -> None:
    for layer in layers:
        torch.nn.functional.linear(inputs[layer.shape[1]], layer)
    if device != "cpu":
        torch.cuda.synchronize()
