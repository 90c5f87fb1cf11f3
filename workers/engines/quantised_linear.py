"""Linear layers whose weights are kept in fewer bits than they are computed with.

Their numbers lie in plain buffers, so moving, copying and fingerprinting a model work as ever.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from workers.engines.packed_linear import has_slow_products, multiply
from workers.widths import INT4_BLOCK

#: Steps on either side of zero in which a row of weights, or of activations, is counted.
STEPS = 127
#: Fine steps in a coarse one; half as many on either side fit eight bits.
FINER = 2 * STEPS
#: Four bits as values that normally distributed weights need alike often: https://arxiv.org/abs/2305.14314
FOUR_BITS = "nf4"


class QuantisedLinear(torch.nn.Module):
    """A ``torch.nn.Linear`` for inference: (..., in_features) -> (..., out_features)."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Only says dtype and device, as some models ask for. Not persistent: nothing depends on it.
        self.register_buffer("weight", torch.empty(0, dtype=linear.weight.dtype), persistent=False)

    def restored(self) -> torch.Tensor:
        """Return the weight in the numbers that the model computes with, (out_features, in_features)."""
        raise NotImplementedError

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply and add, by a weight that lives only for this call."""
        if rows.dtype == torch.float32 and rows.device.type == "cpu" and has_slow_products():
            return multiply(rows, self.restored(), self.bias, self.out_features)
        return torch.nn.functional.linear(rows, self.restored(), self.bias)


class Int8Linear(QuantisedLinear):
    """Weights in eight bits, each row of them with a scale of its own."""

    steps: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scale = step_of(weight)
        self.register_buffer("steps", (weight / scale).round_().to(torch.int8))  # (out_features, in_features)
        self.register_buffer("scale", scale)  # (out_features, 1) float32

    def restored(self) -> torch.Tensor:
        """Return the weight in the numbers that the model computes with, (out_features, in_features)."""
        weight = torch.empty_like(self.steps, dtype=self.weight.dtype)
        return torch.mul(self.steps, self.scale, out=weight)  # multiplied in fp32: steps can be too small for fp16


class DynamicInt8Linear(Int8Linear):
    """The same, which also brings its input to integers, row by row, for a CPU's products of integers.

    A number of the input becomes two of eight bits, a coarse one and what that leaves. With the coarse one alone this
    was 1.5 to 2 times as fast, but the least cosine of MiniLM's vectors 0.970 instead of 0.9955.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
        # In the fingerprint: such slots give other values than those that restore their weights.
        self.register_buffer("dynamic", torch.ones((), dtype=torch.bool))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply and add."""
        flat = rows.reshape(-1, self.in_features)
        scale = step_of(flat)
        fine = flat / scale
        coarse = fine.round()
        fine.sub_(coarse).mul_(FINER).round_()
        product = _int_mm(fine, self.steps).float().mul_(1 / FINER).add_(_int_mm(coarse, self.steps))
        product.mul_(scale).mul_(self.scale.t())
        if self.bias is not None:
            product.add_(self.bias)
        return product.view(*rows.shape[:-1], self.out_features)


def _int_mm(rows: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Multiply integers: (n_rows, n) and (m, n) -> (n_rows, m) int32."""
    return torch._int_mm(rows.to(torch.int8), steps.t())  # noqa: SLF001 - the only such product that torch has


class Int4Linear(QuantisedLinear):
    """Weights in four bits, each 64 of them with a scale of their own, by bitsandbytes."""

    packed: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear)
        packed, state = four_bits().quantize_4bit(
            linear.weight.detach().contiguous(), blocksize=INT4_BLOCK, quant_type=FOUR_BITS
        )
        self.register_buffer("packed", packed)  # (n / 2, 1) uint8
        self.register_buffer("scale", state.absmax)  # (n / 64,) float32

    def restored(self) -> torch.Tensor:
        """Return the weight in the numbers that the model computes with, (out_features, in_features)."""
        functions = four_bits()
        state = functions.QuantState(
            absmax=self.scale,
            shape=torch.Size((self.out_features, self.in_features)),
            dtype=self.weight.dtype,
            blocksize=INT4_BLOCK,
            quant_type=FOUR_BITS,
        )
        weight: torch.Tensor = functions.dequantize_4bit(self.packed, state)
        return weight


def step_of(rows: torch.Tensor) -> torch.Tensor:
    """Return the size of a step when each row's largest number is 127 of them.

    Args:
        rows: (n_rows, n) float32.

    Returns:
        (n_rows, 1) float32; of a row that is not finite, a number that is not.
    """
    step = rows.abs().amax(dim=-1, keepdim=True) / STEPS
    return step.clamp_min(torch.finfo(torch.float32).tiny)  # of a row of zeros


def four_bits() -> Any:
    """Return the functions of bitsandbytes.

    It warns at import that a package is missing which would fetch faster kernels for single rows from the hub.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    finally:
        logger.setLevel(level)
    return functional
