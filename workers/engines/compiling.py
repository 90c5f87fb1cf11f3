"""``torch.compile`` for the transformer of a model.

Compiled once for batches of any number and length of rows, and once more for a single row, before the first chunk is
taken: a recompilation takes half a minute, which in the middle of a chunk would look like a hang.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from tasks.errors import UsageError
from workers.engines.packed_linear import has_slow_products
from workers.engines.probing import probe

log = logging.getLogger(__name__)


@torch.library.custom_op("penstock::linear", mutates_args=())
def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by oneDNN. The compiler leaves it alone, where it would put a call of MKL."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # noqa: SLF001
    return product


@_linear.register_fake
def _(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG001 - its shape
    return rows.new_empty((*rows.shape[:-1], weight.shape[0]))


class OpaqueLinear(torch.nn.Linear):
    """A linear layer whose product the compiler does not choose."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply and add: (..., in_features) -> (..., out_features)."""
        product: torch.Tensor = _linear(rows, self.weight, self.bias)
        return product


def compile_model(model: SentenceTransformer) -> None:
    """Compile a model's transformer, in place.

    Raises:
        UsageError: the model has none, or there is no working compiler.
    """
    first: Any = model[0]
    if not isinstance(first, Transformer):
        raise UsageError(f"--compile is for transformers; this model begins with {type(first).__name__}. Leave it out.")
    if model.device.type == "cpu" and has_slow_products():
        for module in first.model.modules():
            if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32:
                module.__class__ = OpaqueLinear  # the weights stay where they are
    started = time.perf_counter()
    # The method and not the module: a wrapped module would rename its weights, and ST calls the method.
    first.model.forward = torch.compile(first.model.forward, dynamic=True)
    try:
        probe(model)
    except RuntimeError as exc:  # all of dynamo's and inductor's errors are
        raise UsageError(_explain(exc)) from exc
    log.info("Model compiled", extra={"action": "load", "seconds": round(time.perf_counter() - started, 1)})


def _explain(exc: RuntimeError) -> str:
    if "compiler" in str(exc).lower() and "found" in str(exc).lower():
        return "--compile needs a C++ compiler: install g++, or name one in CXX, or leave the option out."
    reason = str(exc).strip().split("\n", 1)[0]
    return f"--compile: this model cannot be compiled here ({type(exc).__name__}: {reason}). Leave the option out."
