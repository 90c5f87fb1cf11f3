"""The numbers that weights can be kept in, and the bytes that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.sizing.blueprint import NUMBER_BYTES, Tensor

#: Bytes of a scale: one a row of int8, one a block of int4.
SCALE_BYTES = 4
#: Numbers that share a scale in int4.
BLOCK = 64


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
        if self.quantize == "int8":
            return count + shape[0] * SCALE_BYTES
        return count / 2 + math.ceil(count / BLOCK) * SCALE_BYTES
