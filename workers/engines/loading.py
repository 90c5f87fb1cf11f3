"""Loading a model of sentence-transformers: its numbers, its kernels, and what runs it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from tasks import weights
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.attention import use_flash_attention
from workers.engines.missing_weights import check_weights
from workers.engines.precision import DTYPES, choose_precision
from workers.engines.quantising import check_quantize, first_device, quantise
from workers.sharding.crew import lead
from workers.sharding.group import Dealing
from workers.sharding.parts import ForwardPart
from workers.sharding.placing import check_placed, explain, placement
from workers.sharding.tensors import is_whole

#: What the libraries raise of files that are missing, damaged or not theirs, and of packages that a model wants.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError)

Kind = Literal["embedding", "cross_encoder"]
#: The class of each kind, and what of its output is wanted.
_KINDS: dict[Kind, tuple[Any, str]] = {
    "embedding": (SentenceTransformer, "sentence_embedding"),
    "cross_encoder": (CrossEncoder, "scores"),
}


def load_model(spec: ModelSpec, device: str, settings: Settings) -> SentenceTransformer:
    """Load a model onto a device, ready for inference.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: device, precision, backend and compilation do not go together, or not with this model.
    """
    check_quantize(settings)
    precision = choose_precision(device, settings)
    if settings.backend != "torch":
        if device != "cpu":
            raise UsageError(f"--backend {settings.backend} is for CPUs. Leave it out, or pass --devices cpu.")
        if settings.compile:
            raise UsageError(f"--compile is for --backend torch; {settings.backend} compiles by itself. Leave it out.")
    # An exported graph is made from numbers in fp32, and transformers 5 would keep the checkpoint's.
    precision_read = "fp32" if settings.backend != "torch" else precision
    model: SentenceTransformer = _load("embedding", spec, device, settings, precision_read)
    if settings.backend != "torch":
        from workers.engines.exporting import export_model

        export_model(model, settings.backend, precision, settings.state_dir)
    elif device != "cpu" and is_whole(model):
        use_flash_attention(model)
    if settings.compile:
        from workers.engines.compiling import compile_model

        compile_model(model)
    return model


def load_cross_encoder(spec: ModelSpec, device: str, settings: Settings) -> CrossEncoder:
    """Load a cross-encoder onto a device, ready for inference.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: device, precision and backend do not go together, or it gives more than one score a pair.
    """
    check_quantize(settings)
    if settings.backend != "torch" or settings.compile:
        option = "--compile" if settings.compile else f"--backend {settings.backend}"
        raise UsageError(f"{option} is for embedding models; cross-encoders run on plain torch. Leave it out.")
    model: CrossEncoder = _load("cross_encoder", spec, device, settings, choose_precision(device, settings))
    if model.num_labels != 1:
        raise UsageError(f"--model {spec} gives {model.num_labels} scores a pair; a ranking needs one.")
    return model


def _load(kind: Kind, spec: ModelSpec, device: str, settings: Settings, precision: str) -> Any:
    """Load a model; if this slot is parted among ranks, together with the others, which then run what it runs."""
    model, crew = lead(kind, spec, device, settings, lambda: _read(kind, spec, device, settings, precision))
    if crew:
        _part_of(kind, model, device, settings).share(crew)
    return model


def read_part(kind: Kind, spec: ModelSpec, device: str, settings: Settings) -> ForwardPart:
    """Load this rank's part of a model, for ranks other than 0.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: it does not go with the devices.
    """
    model = _read(kind, spec, device, settings, choose_precision(device, settings))
    return _part_of(kind, model, device, settings)


def _part_of(kind: Kind, model: torch.nn.Module, device: str, settings: Settings) -> ForwardPart:
    return ForwardPart(model, _KINDS[kind][1], device, Dealing(splits=settings.shard == "fsdp"))


def _read(kind: Kind, spec: ModelSpec, device: str, settings: Settings, precision: str) -> Any:
    place = weights.locate(spec)
    weights.verify(spec)
    placed = placement(spec, device, settings, DTYPES[precision])
    try:
        model = _KINDS[kind][0](
            place,
            revision=spec.revision,
            device=None if "device_map" in placed else first_device(device, settings),
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": DTYPES[precision], **placed},
        )
    except LOAD_ERRORS as exc:
        raise not_loaded(spec, exc) from exc
    check_placed(spec, model, settings)
    if settings.shard is None:
        check_weights(spec, model)
    quantise(model, spec, device, settings)
    return model.eval()


def not_loaded(spec: ModelSpec, exc: Exception) -> UsageError:
    """Put what a library says of a model that it cannot load into one line."""
    if (error := explain(spec, exc)) is not None:
        return error
    reason = str(exc).strip().split("\n", 1)[0]
    if "trust_remote_code" in str(exc):
        reason += " If you trust it, start the worker with --trust-remote-code."
    return ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec))
