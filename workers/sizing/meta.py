"""Transformers on torch's meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.modules import transformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from workers.engines.quantising import repeated_linears
from workers.sizing.blueprint import Blueprint, Tensor

#: In which all is built: what is not in it then has a type of its own, as some buffers have.
HALF = torch.bfloat16

#: By what sentence-transformers calls a transformer's task.
_CLASSES: dict[str, Any] = {
    "feature-extraction": AutoModel,
    "sequence-classification": AutoModelForSequenceClassification,
    "text-generation": AutoModelForCausalLM,
}


def build(config: Any, task: str, *, trust_remote_code: bool) -> Any:
    """Build a transformer without memory, of the class that loads it for a task.

    Raises:
        ValueError: the task is none that an engine here has, or the model is not known.
    """
    if task not in _CLASSES:
        raise ValueError(f"its task is {task}, whose size is not known before it is loaded")
    encoder = _encoder_alone(config) if task == "feature-extraction" else None
    with torch.device("meta"):
        if encoder is not None:
            return encoder._from_config(config, dtype=HALF)  # noqa: SLF001 - what AutoModel.from_config calls
        return _CLASSES[task].from_config(config, dtype=HALF, trust_remote_code=trust_remote_code)


def _encoder_alone(config: Any) -> Any:
    """Return the class of a translation model's encoder: sentence-transformers loads that alone."""
    for kind, module, name in transformer._ENCODER_ONLY_MODELS:  # noqa: SLF001 - its own table
        if isinstance(config, kind):
            return getattr(importlib.import_module(module), name)
    return None


def blueprint_of(model: Any) -> Blueprint:
    """Return the blueprint of a transformer on any device."""
    config = model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    reasons = []
    if not model._no_split_modules:  # noqa: SLF001 - what device_map="auto" goes by
        reasons.append(("auto", "its code does not say which layers stay whole"))
    if not _plan(model, "tp_plan"):
        reasons.append(("tensor", "no tensor-parallel plan"))
    if not _gathered(model):
        reasons.append(("fsdp", "no FSDP plan for its layers"))
    return Blueprint(tuple(_tensors(model)), (heads, shared), tuple(reasons))


def _plan(model: Any, name: str) -> dict[str, str]:
    """Return which modules or parameters are parted, and how; numbers of layers are written as ``*``."""
    return getattr(model, name, None) or {}


def _tensors(model: Any) -> Iterator[Tensor]:
    units = dict(_units(model, "", set(model._no_split_modules or ())))  # noqa: SLF001 - as above
    tensor_plan, groups = _plan(model, "tp_plan"), _groups(model)
    kept_in_fp32 = list(model._get_dtype_plan(HALF))  # noqa: SLF001 - patterns of names
    linears = repeated_linears(model)
    seen: set[int] = set()
    for place, module in model.named_modules():
        for name, tensor, is_parameter in _own(module):
            if id(tensor) in seen:  # tied to another layer's
                continue
            seen.add(id(tensor))
            full = f"{place}.{name}" if place else name
            own_bytes = 0 if tensor.dtype == HALF else tensor.element_size()
            if any(re.search(pattern, full) for pattern in kept_in_fp32):
                own_bytes = torch.float32.itemsize
            yield Tensor(
                full,
                tuple(tensor.shape),
                units[place],
                number_bytes=own_bytes,
                is_linear=name == "weight" and id(module) in linears,
                split=_split(_style(tensor_plan, place, full), name, tensor.dim()) if is_parameter else None,
                group=next((groups[around] for around in _around(place) if around in groups), ""),
            )


def _own(module: Any) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yield name, tensor and whether it is a parameter, of a module without those in it."""
    for name, tensor in module.named_parameters(recurse=False):
        yield name, tensor, True
    for name, tensor in module.named_buffers(recurse=False):
        yield name, tensor, False


def _units(module: Any, place: str, whole: set[str], around: str = "") -> Iterator[tuple[str, str]]:
    """Yield each module's place with that of the outermost module around it that must stay whole, or its own."""
    around = around or (place if type(module).__name__ in whole else "")
    yield place, around or place
    for name, child in module.named_children():
        yield from _units(child, f"{place}.{name}" if place else name, whole, around)


def _groups(model: Any) -> dict[str, str]:
    """Return the places that FSDP gathers at a time, with the group that it frees after use: none of those it keeps."""
    groups = {place: place if style == "free_full_weight" else "" for place, style in _gathered(model).items()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None):  # kept with its head
        groups |= {place: "" for place, module in model.named_modules() if module is embedding}
    return groups


def _gathered(model: Any) -> dict[str, str]:
    """Return the places that a model's plan has FSDP gather one by one, and how; a loader refuses a model without."""
    plan = _plan(model, "fsdp_plan")
    return {place: plan[_general(place)] for place, _ in model.named_modules() if _general(place) in plan}


def _around(place: str) -> Iterator[str]:
    """Yield a module's place and those around it."""
    while place:
        yield place
        place = place.rpartition(".")[0]


def _style(plan: dict[str, str], place: str, full: str) -> str | None:
    """Return how a plan parts a parameter, by its own name or its module's."""
    return next((plan[name] for name in (_general(full), _general(place)) if name in plan), None)


def _general(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _split(style: str | None, name: str, n_dims: int) -> int | None:
    """Return the dimension along which a style of transformers' tensor parallelism parts a parameter.

    Styles by columns part a weight (n_out, n_in) along n_out, with its bias; those by rows along n_in, and each device
    holds the bias.
    """
    if style is None or not n_dims:
        return None
    if style.startswith("embedding"):
        return 0 if style == "embedding_rowwise" else 1
    if "colwise" in style:
        return max(0, n_dims - 2)
    if "rowwise" in style and name != "bias":
        return n_dims - 1
    return None
