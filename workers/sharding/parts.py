"""What the ranks of a slot run: their part of a model, by orders that all of them get alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.features import to_device
from workers.sharding.crew import Crew, PartName
from workers.sharding.group import Dealing
from workers.sharding.orders import TENSORS, Order
from workers.sharding.tensors import whole_tensors


class Part(ABC):
    """A rank's part of a model.

    Args:
        model: it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def perform(self, order: Order) -> None:
        """Run an order of rank 0's."""
        if order.name == TENSORS.name:
            for _ in whole_tensors(self._model):
                pass
        else:
            self._perform(order)

    @abstractmethod
    def _perform(self, order: Order) -> None:
        """Run an order of this kind of part's own."""


class ForwardPart(Part):
    """A model of sentence-transformers: features of a batch become one tensor.

    Args:
        model: it.
        key: of what it gives.
        device: ``cpu`` or ``cuda``.
        dealing: which rows are whose.
    """

    def __init__(self, model: torch.nn.Module, key: str, device: str, dealing: Dealing) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, FSDPModule) and isinstance(module, PreTrainedModel):
                _begin_at_root(module)
        self._forward: Callable[..., dict[str, Any]] = model.forward
        self._key = key
        self._device = device
        self._dealing = dealing

    def share(self, crew: Crew) -> None:
        """Have the model, whenever it is called, order the other ranks to run the same batch."""

        def forward(features: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
            order, n_rows = _order_of(features), _count_rows(features)
            return {self._key: crew.perform(order, n_rows, lambda: self._run(features))}

        self._model.forward = forward
        self._model.crew = crew  # type: ignore[assignment]  # where crew_of looks

    @torch.inference_mode()
    def _perform(self, order: Order) -> None:
        names, others = order.values["names"], order.values["others"]
        self._run({**dict(zip(names, map(torch.from_numpy, order.arrays), strict=True)), **others})

    def _run(self, features: dict[str, Any]) -> torch.Tensor:
        n_rows = _count_rows(features)
        own = torch.from_numpy(self._dealing.own(n_rows))

        def take(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            value = value[own] if len(own) < n_rows else value
            return to_device(value, self._device) if value.device.type == "cpu" else value

        features = {name: take(value) for name, value in features.items()}
        return self._dealing.together(self._forward(features)[self._key], n_rows)


def _begin_at_root(model: torch.nn.Module) -> None:
    """Have FSDP gather what a model holds besides its layers, though its ``forward`` is called and not the model."""
    forward, is_inside = model.forward, False

    def enter(*arguments: Any, **named: Any) -> Any:
        nonlocal is_inside
        if is_inside:
            return forward(*arguments, **named)
        is_inside = True
        try:
            return model(*arguments, **named)
        finally:
            is_inside = False

    model.forward = enter


def _order_of(features: dict[str, Any]) -> Order:
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in features.items() if name not in tensors}
    arrays: list[np.ndarray] = [tensor.cpu().numpy() for tensor in tensors.values()]
    return Order("forward", arrays, {"names": list(tensors), "others": others})


def _count_rows(features: dict[str, Any]) -> int:
    return len(features["input_ids"])


def open_part(name: PartName, spec: ModelSpec, device: str, settings: Settings) -> Part:
    """Load this rank's part of a model, for ranks other than 0.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
        UsageError: the settings do not go together, or not with this model.
    """
    if name == "causal":
        from workers.sharding.causal import open_causal_part

        return open_causal_part(spec, device, settings)
    from workers.engines.loading import read_part

    return read_part(name, spec, device, settings)
