"""The tensors of a model, wherever its parts are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def is_whole(model: torch.nn.Module) -> bool:
    """Whether all of a model's weights are on one device, and nowhere else."""
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    return len(devices) < 2 and not any(isinstance(one, DTensor) or one.is_meta for one in parameters)  # noqa: PLR2004


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all of its parts. Of one that is parted among ranks, each rank must ask for it at a time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fetched(module: torch.nn.Module, name: str) -> Any:
    """Return all of a module's own tensor of this name; None if it has none.

    accelerate keeps some in another place, and puts them into their module only while that computes.
    """
    tensor = getattr(module, name, None)
    if tensor is None or not tensor.is_meta:
        return tensor if tensor is None else whole(tensor)
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    with align_module_device(module, "cpu"):
        return getattr(module, name).clone()


def whole_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and all numbers of each tensor of a model, one at a time, in the order of their names."""
    for name, tensor in sorted(model.state_dict().items()):
        parent, _, own = name.rpartition(".")
        yield name, fetched(model.get_submodule(parent), own) if tensor.is_meta else whole(tensor)


def own_parameters(model: torch.nn.Module) -> int:
    """Return how many of a model's parameters this process holds."""
    return sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in model.parameters())
