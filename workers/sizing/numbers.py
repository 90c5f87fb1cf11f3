"""The numbers that weights can be kept in, and the bytes that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.sizing.blueprint import Tensor
from workers.widths import NUMBER_BYTES, quantised_bytes


@dataclass(frozen=True)
class Numbers:
    """One choice of --precision and --quantize."""

    precision: str
    quantize: str | None = None

    def __str__(self) -> str:
        return self.quantize or self.precision

    def weigh(self, tensor: Tensor, shape: tuple[int, ...]) -> float:
        """Return the bytes of a tensor, or of a part of it that has this shape."""
        count = math.prod(shape)
        if tensor.number_bytes:
            return count * tensor.number_bytes
        if self.quantize is None or not tensor.is_linear:
            return count * NUMBER_BYTES[self.precision]
        return quantised_bytes(self.quantize, count, shape[0])
