"""Linear layers on a CPU whose weights are laid out once for oneDNN's kernels.

torch sends fp32 matrix products to MKL, which keeps to 256-bit vectors on CPUs that are not Intel's; oneDNN, which
torch brings along too, uses the 512 bits that they have, and packs the weights once instead of at every call: 220
GFLOP/s instead of 97 on one core of an AMD EPYC (Zen 5). The kind of CPU decides, not a measurement, so that slots on
machines of one kind give the same bits.

oneDNN keeps what it makes for each number of rows and each size of weights: 0.3 MB for good, and as much again or more
for those that its cache holds (``workers.planning`` makes that small). So above 256 rows there are only a few numbers,
to which rows are filled up; below, that would cost 5 to 7 % of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from workers.batching import bucket_length
from workers.machine import cpu_vendor

log = logging.getLogger(__name__)

#: Rows that are not filled up; then the step between the numbers to which they are, doubled with each doubling of them.
EXACT_ROWS, ROWS_STEP = 256, 16
#: Largest difference of a vector's numbers, relative to the largest of them, that another order of sums explains.
TOLERANCE = 1e-4

_ONEDNN: Any = torch.ops.mkldnn


class PackedLinear(torch.nn.Module):
    """A ``torch.nn.Linear`` for inference in fp32 on a CPU: (..., in_features) -> (..., out_features)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        #: Only says dtype and device, as some models ask for; the numbers are in the packed copy.
        self.weight = torch.empty(0, dtype=linear.weight.dtype)
        self._packed = _ONEDNN._reorder_linear_weight(linear.weight.detach(), None)  # noqa: SLF001 - as inductor does

    def unpack(self) -> torch.nn.Parameter:
        """Return the weight as it was before: (out_features, in_features)."""
        return torch.nn.Parameter(self._packed.to_dense(), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply and add."""
        return multiply(rows, self._packed, self.bias, self.out_features)


def multiply(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    """Multiply and add by oneDNN, in fp32 on a CPU: (..., in_features) -> (..., out_features).

    Args:
        rows: (..., in_features).
        weight: (out_features, in_features), packed or not.
        bias: (out_features,), if there is one.
        out_features: which a packed weight does not tell.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    n_rows = len(flat)
    missing = bucket_length(n_rows, ROWS_STEP) - n_rows if n_rows > EXACT_ROWS else 0
    if missing:  # else it would be a copy
        flat = torch.nn.functional.pad(flat, (0, 0, 0, missing))
    product: torch.Tensor = _ONEDNN._linear_pointwise(flat, weight, bias, "none", [], "")  # noqa: SLF001
    return product[:n_rows].view(*rows.shape[:-1], out_features)


@torch.inference_mode()
def pack_linears(model: torch.nn.Module, sample: Callable[[], torch.Tensor]) -> bool:
    """Replace a model's linear layers where that is faster, and changes nothing but rounding.

    Args:
        model: in fp32 on the CPU, for inference only. Each old layer's weight is freed once it is packed, so that no
            more than one layer is there twice.
        sample: runs the model on some rows and returns their vectors.

    Returns:
        Whether they were replaced.
    """
    if not has_slow_products():
        return False
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and child.weight.dtype == torch.float32
    ]
    if not places:
        return False
    try:
        before = sample()
        packed: dict[torch.nn.Linear, PackedLinear] = {}  # as two places may have the same one
        for parent, name, child in places:
            if child not in packed:
                packed[child] = PackedLinear(child)
                child.register_parameter("weight", None)
            setattr(parent, name, packed[child])
        after = sample()
        is_same = bool((after - before).abs().max() <= TOLERANCE * before.abs().max())
    except Exception as exc:  # noqa: BLE001 - a build without oneDNN, or whatever a model does with its layers
        log.info("Linear layers stay as they are: %s", type(exc).__name__, extra={"action": "pack"})
        is_same = False
    if not is_same:
        for parent, name, child in places:
            _put_back(parent, name, child)
    return is_same


def _put_back(parent: torch.nn.Module, name: str, linear: torch.nn.Linear) -> None:
    """Put an old layer back, with its weight as it was, to the bit."""
    packed = getattr(parent, name)
    if isinstance(packed, PackedLinear):
        linear.register_parameter("weight", packed.unpack())
        setattr(parent, name, linear)


def has_slow_products() -> bool:
    """Whether this CPU has wide vectors that torch's own matrix products in fp32 do not use."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu_vendor() != "GenuineIntel"
