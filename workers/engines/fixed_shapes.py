"""Batches of fixed shapes: a row's vector has the same bits whatever other rows are there and wherever it stands.

Matrix products choose their kernels, and with them the order of their sums, by the shapes of the matrices. So a row
goes through the model in a shape that depends on its own length alone: padded to the next of a few lengths, in a batch
of as many rows as that length always has, filled up with repetitions. What is left is the place in the batch; each
shape is run twice, turned by one row, before it is trusted, and rows go alone where the place matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workers.batching import bucket_length

#: Tokens of a batch, by device. Not what probing finds: that may differ from one day to the next. Few, because batches
#: that a chunk's rows of one length do not fill are filled up.
CPU_TOKENS, GPU_TOKENS = 256, 4096

#: Runs rows, padded to a length in tokens: (n_rows,) row numbers -> (n_rows, dim).
Forward = Callable[[np.ndarray, int], np.ndarray]


class FixedShapes:
    """The shapes of one model on one device.

    Args:
        device: ``cpu`` or ``cuda``.
        most: tokens of a row that the model takes; no row is padded beyond.
        can_pad: whether batches can be padded to any length; if not, rows go alone, as long as they are.
        probe: runs rows of the engine's own, the same in all processes, by which a shape is tried.
    """

    def __init__(self, device: str, most: int, probe: Forward, *, can_pad: bool) -> None:
        self._tokens = CPU_TOKENS if device == "cpu" else GPU_TOKENS
        self._most = most
        self._can_pad = can_pad
        self._probe = probe
        self._n_rows: dict[int, int] = {}

    def plan(self, lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Group rows by the length that they are padded to.

        Args:
            lengths: (n_rows,) tokens of each row.

        Returns:
            Arrays of row numbers, each with its length in tokens, longest first. Together they hold every row once.
        """
        padded = lengths.astype(np.int64)
        if self._can_pad:
            padded = np.array([min(bucket_length(int(n)), self._most) for n in lengths], np.int64)
        batches = []
        for length in sorted(set(padded.tolist()), reverse=True):
            rows = np.flatnonzero(padded == length)
            n_rows = self._rows_of(length)
            batches += [(rows[start : start + n_rows], length) for start in range(0, len(rows), n_rows)]
        return batches

    def run(self, rows: np.ndarray, length: int, forward: Forward) -> np.ndarray:
        """Run a batch of the plan. Returns (n_rows, dim)."""
        if length not in self._n_rows:
            self._n_rows[length] = self._find_rows(length)
        n_rows = self._n_rows[length]
        if n_rows == 1:
            return np.concatenate([forward(rows[i : i + 1], length) for i in range(len(rows))])
        return forward(np.resize(rows, n_rows), length)[: len(rows)]

    def cost(self, n_rows: int, length: int) -> int:
        """Return the padded tokens that a batch of the plan costs."""
        return length * (n_rows if self._n_rows.get(length) == 1 else self._rows_of(length))

    def _rows_of(self, length: int) -> int:
        return max(1, self._tokens // max(1, length)) if self._can_pad else 1

    def _find_rows(self, length: int) -> int:
        """Return how many rows a batch of this length has: one, if a row's bits depend on its place."""
        rows = np.arange(self._rows_of(length))
        if len(rows) == 1:
            return 1
        turned = self._probe(np.roll(rows, 1), length)
        straight = self._probe(rows, length)
        return len(rows) if np.array_equal(np.roll(straight, 1, axis=0), turned, equal_nan=True) else 1
