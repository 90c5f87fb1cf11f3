"""What a model computes, counted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """What a model computes.

    Attributes:
        linears: (inputs, outputs) of each linear layer that every token goes through.
        attention: sum over layers of the width of the heads together.
    """

    linears: list[tuple[int, int]]
    attention: int

    def flops(self, lengths: np.ndarray) -> float:
        """Return the floating-point operations for rows of these lengths, a multiplication and an addition being two.

        Attention costs 4 x length x width a token: the scores, and the sum that they weigh.
        """
        a_token = 2 * sum(n_in * n_out for n_in, n_out in self.linears)
        n_tokens = lengths.astype(np.float64)
        return float(a_token * n_tokens.sum() + 4 * self.attention * (n_tokens**2).sum())
