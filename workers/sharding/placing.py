"""How a model of a sharded slot is loaded: the arguments of ``from_pretrained`` that lay its weights on devices."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import DistributedConfig, PreTrainedModel

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.precision import DTYPES
from workers.memory import DeviceMemory
from workers.sharding.group import planned_ranks
from workers.sharding.spreading import limits_of

#: How transformers says that a family of models cannot be parted so.
_NO_PLAN = re.compile(r"but `(\w+)` has no `(tp|fsdp)_plan`")
#: What a configuration counts that is parted as a whole.
_HEADS = ("num_attention_heads", "num_key_value_heads")


def is_spread(device: str, settings: Settings) -> bool:
    """Whether a model's layers are laid on several devices by one process."""
    return settings.shard == "auto" and device != "cpu" and torch.cuda.device_count() > 1


def placement(spec: ModelSpec, device: str, settings: Settings, dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of ``from_pretrained``; none for a slot on one device.

    Raises:
        UsageError: the devices have no room for the model.
    """
    if (n_ranks := planned_ranks()) > 1:
        sizes = (n_ranks, None) if settings.shard == "tensor" else (None, n_ranks)
        return {"distributed_config": DistributedConfig(tp_size=sizes[0], fsdp_size=sizes[1])}
    if not is_spread(device, settings):
        return {}
    return {"device_map": "sequential", "max_memory": _limits(spec, settings, dtype)}


def _limits(spec: ModelSpec, settings: Settings, dtype: torch.dtype) -> dict[int, int]:
    """Return the bytes of weights for each GPU, by the model's configuration. Not yet run on a GPU."""
    memories = [DeviceMemory(f"cuda:{i}", settings.memory_ratio) for i in range(torch.cuda.device_count())]
    rooms = [memory.room_bytes for memory in memories]
    # Here, because they ask loading what a model is, which asks this module.
    from workers.sizing.drawing import draw
    from workers.sizing.numbers import Numbers
    from workers.sizing.sharing import unit_sizes

    precision = next(name for name, one in DTYPES.items() if one == dtype)
    sizes = unit_sizes(draw(spec, settings), Numbers(precision))
    limits = limits_of(rooms, sizes)
    if limits is None:
        raise _too_large(spec, f"{_gib(sum(rooms))} of room for {_gib(sum(sizes))} of weights")
    return dict(enumerate(limits))


def check_placed(spec: ModelSpec, model: torch.nn.Module, settings: Settings) -> None:
    """Refuse a model that cannot run as it was laid on the devices.

    Raises:
        UsageError: it cannot.
    """
    transformer = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if planned_ranks() > 1:
        if transformer is None:
            raise UsageError(f"--shard {settings.shard}: {spec} has no layers to part among devices. Leave it out.")
        if settings.shard == "tensor":
            _check_heads(spec, transformer)
        else:
            _check_layers(spec, transformer)
    elif settings.shard == "auto":
        _check_spread(spec, transformer)


def _check_spread(spec: ModelSpec, model: Any) -> None:
    """Refuse a model parts of which are not on a named device: each batch would fetch them over the bus."""
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    if elsewhere := sorted({str(place) for place in places.values() if place in {"cpu", "disk"}}):
        raise _too_large(spec, f"no room for layers that would lie in {' and '.join(elsewhere)}")


def _check_heads(spec: ModelSpec, model: Any) -> None:
    """Refuse a model whose attention cannot be parted among the ranks."""
    n_ranks, config = planned_ranks(), model.config.get_text_config()
    for name in _HEADS:
        if (count := getattr(config, name, None)) and count % n_ranks:
            raise UsageError(
                f"--shard tensor: {count} {name} of {spec} cannot be parted among {n_ranks} devices. Name a number of "
                "devices that divides them, or take --shard fsdp or auto."
            )


def _check_layers(spec: ModelSpec, model: torch.nn.Module) -> None:
    """Refuse a model of which FSDP gathers all layers at once, and never lets go of them."""
    if not any(isinstance(module, FSDPModule) for module in model.modules() if module is not model):
        raise _unplanned(spec, "fsdp", type(model).__name__.removeprefix("FSDP"))


def explain(spec: ModelSpec, exc: Exception) -> UsageError | None:
    """Say what an error of loading means for the options, or return None if it is of another kind."""
    if found := _NO_PLAN.search(str(exc)):
        return _unplanned(spec, "tensor" if found[2] == "tp" else "fsdp", found[1])
    if "offload" in str(exc):
        return _too_large(spec, "no room on the devices for all of its layers")
    return None


def _unplanned(spec: ModelSpec, kind: str, name: str) -> UsageError:
    others = "fsdp or auto" if kind == "tensor" else "auto"
    return UsageError(f"--shard {kind}: transformers has no plan for parting {name} ({spec}). Take --shard {others}.")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"


def _too_large(spec: ModelSpec, why: str) -> UsageError:
    return UsageError(f"--shard auto: {spec} does not fit: {why}. Name more devices, or take a smaller --precision.")
