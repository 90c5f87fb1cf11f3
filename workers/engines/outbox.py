"""Vectors on their way from the device: on a GPU they are copied while the next batch computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

#: Batches whose vectors may be under way; a GPU is never waited for before it has the next ones.
UNDER_WAY = 2


class Outbox:
    """The batches of one call whose vectors have not arrived.

    Args:
        device: ``cpu`` or ``cuda``.
        deliver: takes the row numbers of a batch and their vectors, (n_rows, dim) float32.
    """

    def __init__(self, device: str, deliver: Callable[[np.ndarray, np.ndarray], None]) -> None:
        self._is_cpu = device == "cpu"
        self._deliver = deliver
        self._under_way: list[tuple[np.ndarray, torch.Tensor, torch.cuda.Event]] = []

    def send(self, rows: np.ndarray, vectors: torch.Tensor) -> None:
        """Send the vectors of a batch, (n_rows, dim) on the device. Does not wait for the GPU to compute them."""
        if self._is_cpu:
            self._deliver(rows, vectors.float().numpy())
            return
        host = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(vectors.float(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._under_way.append((rows, host, event))
        while len(self._under_way) > UNDER_WAY:
            self._receive()

    def empty(self) -> None:
        """Wait for all that is under way."""
        while self._under_way:
            self._receive()

    def _receive(self) -> None:
        rows, host, event = self._under_way.pop(0)
        event.synchronize()
        self._deliver(rows, host.numpy())
