"""The ceiling: how many tokens a second there would be if the machine did nothing but the model's matrix products."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workers.bench.encoding.work import Work
from workers.bench.ways import LOAD_S, Setup
from workers.engines.packed_linear import PackedLinear, has_slow_products
from workers.engines.precision import DTYPES

#: Tokens that are multiplied at a time: from what stays in a CPU's cache to what fills a GPU. The fastest counts.
TOKENS = (256, 1024, 4096, 16384)
#: Seconds for each of them.
MEASURE_S = 0.7
#: The kernels: those that torch itself chooses, and those that penstock takes on CPUs where they are faster.
TORCH, ONEDNN = "torch", "oneDNN"


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


def kernels(setup: Setup) -> tuple[str, ...]:
    """Return the kernels that are tried: whatever an engine may multiply with on these devices."""
    has_both = setup.precision == "fp32" and setup.devices[0] == "cpu" and has_slow_products()
    return (TORCH, ONEDNN) if has_both else (TORCH,)


def measure(work: Work, setup: Setup) -> dict[str, float]:
    """Return, for each kernel, the FLOP/s of the linear layers' products.

    They are computed in as many processes at once as the model would have.
    """
    tried = kernels(setup)
    context = multiprocessing.get_context("spawn")
    arguments = [(work, setup, device, tried) for device in setup.devices]
    with context.Pool(setup.processes, _join, (context.Barrier(setup.processes),)) as pool:
        found = np.sum(pool.starmap(_multiply, arguments, chunksize=1), axis=0)  # (n_kernels, n_sizes)
    return {kernel: float(rates.max()) for kernel, rates in zip(tried, found, strict=True)}


#: In each process: where all wait for each other, so that they multiply at the same time.
_joined: list[Any] = []


def _join(barrier: Any) -> None:
    _joined.append(barrier)


@torch.inference_mode()
def _multiply(work: Work, setup: Setup, device: str, tried: Sequence[str]) -> list[list[float]]:
    """Return the FLOP/s of this process for each kernel and number of tokens."""
    torch.set_num_threads(setup.threads)
    return [_rates(work, kernel, device, DTYPES[setup.precision]) for kernel in tried]


def _rates(work: Work, kernel: str, device: str, dtype: torch.dtype) -> list[float]:
    # Each layer's weights are its own, as in the model: together they do not fit into a cache.
    linears = [torch.nn.Linear(*shape, bias=False, device=device, dtype=dtype) for shape in work.linears]
    layers = [PackedLinear(linear) for linear in linears] if kernel == ONEDNN else linears
    a_token = 2 * sum(n_in * n_out for n_in, n_out in work.linears)
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


def _once(layers: Sequence[Any], inputs: dict[int, torch.Tensor], device: str) -> None:
    for layer in layers:
        layer(inputs[layer.in_features])
    if device != "cpu":
        torch.cuda.synchronize()
