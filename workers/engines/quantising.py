"""``--quantize``: a transformer's linear layers in int8 or int4.

Quantised are the linear layers of the blocks that a transformer repeats, which hold nearly all of a large dense model's
weights. Embeddings, norms, pooling, dense layers behind it and output layers stay: all values pass them, and they are
small, but for embeddings, which are looked up and not multiplied. So do the experts of a mixture, which transformers
keeps as one tensor a layer; of such a model they are nearly all.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import cast

import torch

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.quantised_linear import DynamicInt8Linear, Int4Linear, Int8Linear, QuantisedLinear

log = logging.getLogger(__name__)

#: Share of a model's bytes below which its linear layers are few: embeddings of many languages, or experts, are most.
FEW_SHARE = 0.25


def check_quantize(settings: Settings) -> None:
    """Refuse what does not go together with ``--quantize``, before anything is loaded.

    Raises:
        UsageError: of these settings, or because a package is missing.
    """
    if settings.quantize is None:
        return
    option = None
    if settings.backend != "torch":
        option = f"--backend {settings.backend}"
    elif settings.compile:
        option = "--compile"
    elif settings.shard is not None:
        option = f"--shard {settings.shard}"
    if option:
        raise UsageError(f"--quantize {settings.quantize} does not go together with {option}. Leave one of them out.")
    if settings.quantize == "int4" and find_spec("bitsandbytes") is None:
        raise UsageError("--quantize int4 needs a package that is not here: pip install 'penstock[quantize]'.")


def first_device(device: str, settings: Settings) -> str:
    """Return where a model is loaded to: quantised on the CPU first, it need not fit the device unquantised."""
    return "cpu" if settings.quantize else device


@torch.inference_mode()
def quantise(model: torch.nn.Module, spec: ModelSpec, device: str, settings: Settings) -> None:
    """Replace a model's linear layers, one after the other, and move it to its device. If asked for.

    Args:
        model: on the CPU.
        spec: of it.
        device: where it is to compute.
        settings: of the worker.

    Raises:
        UsageError: it has no layers to quantise.
    """
    if settings.quantize is None:
        return
    kind: type[QuantisedLinear] = {"int8": Int8Linear, "int4": Int4Linear}[settings.quantize]
    before, linear_bytes = weight_bytes(model), 0
    layers = repeated_linears(model)
    if not layers:
        raise UsageError(f"--quantize: {spec} has no repeated blocks with linear layers. Leave it out.")
    for places in layers.values():
        linear = cast("torch.nn.Linear", model.get_submodule(places[0]))
        linear_bytes += linear.weight.nbytes
        is_dynamic = kind is Int8Linear and device == "cpu" and linear.weight.dtype == torch.float32
        layer = (DynamicInt8Linear if is_dynamic and has_integer_products() else kind)(linear)
        for place in places:
            parent, _, name = place.rpartition(".")
            setattr(model.get_submodule(parent), name, layer)
    model.to(device)
    saved = {"layers": len(layers), "bytes_before": before, "bytes": weight_bytes(model)}
    log.info("Linear layers quantised", extra={"action": "load", **saved})
    if linear_bytes < FEW_SHARE * before:
        share = 100 * linear_bytes / before
        log.warning(
            "Quantised is only %.0f%% of the weights: few lie in linear layers", share, extra={"action": "load"}
        )


def repeated_linears(model: torch.nn.Module) -> dict[int, list[str]]:
    """Return the places of each linear layer that repeated blocks have: what is quantised.

    By the layer's id, because blocks may share one; without the layers, so that a replaced one's memory is free.
    """
    repeated = {
        id(part) for blocks in model.modules() if isinstance(blocks, torch.nn.ModuleList) for part in blocks.modules()
    }
    found: dict[int, list[str]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        if type(module) is torch.nn.Linear and id(module) in repeated:
            found.setdefault(id(module), []).append(place)
    return found


def has_integer_products() -> bool:
    """Whether this CPU multiplies integers of eight bits faster than floating-point numbers.

    The kind of CPU decides, not a measurement, so that slots on machines of one kind give the same bits.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_vnni_supported()  # noqa: SLF001


def rounding_bytes(model: torch.nn.Module, n_bytes: int) -> int:
    """Return the bytes of the coarsest numbers that a model multiplies its weights with.

    Args:
        model: quantised or not.
        n_bytes: of one of its numbers.
    """
    # A last bit that differs can round a number of the input to another step.
    return 2 if any(isinstance(module, DynamicInt8Linear) for module in model.modules()) else n_bytes


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the memory that a model's tensors take."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
