"""Loading a model of sentence-transformers: its numbers, its kernels, and what runs it."""

from __future__ import annotations

from typing import TypeVar

from sentence_transformers import CrossEncoder, SentenceTransformer

from tasks import weights
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.attention import use_flash_attention
from workers.engines.precision import DTYPES, choose_precision

#: What the libraries raise of files that are missing, damaged or not theirs, and of packages that a model wants.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError)

M = TypeVar("M", SentenceTransformer, CrossEncoder)


def load_model(spec: ModelSpec, device: str, settings: Settings) -> SentenceTransformer:
    """Load a model onto a device, ready for inference.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: device, precision, backend and compilation do not go together, or not with this model.
    """
    precision = choose_precision(device, settings)
    if settings.backend != "torch":
        if device != "cpu":
            raise UsageError(f"--backend {settings.backend} is for CPUs. Leave it out, or pass --devices cpu.")
        if settings.compile:
            raise UsageError(f"--compile is for --backend torch; {settings.backend} compiles by itself. Leave it out.")
    # An exported graph is made from numbers in fp32, and transformers 5 would keep the checkpoint's.
    model = _load(SentenceTransformer, spec, device, settings, "fp32" if settings.backend != "torch" else precision)
    if settings.backend != "torch":
        from workers.engines.exporting import export_model

        export_model(model, settings.backend, precision, settings.state_dir)
    elif device != "cpu":
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
    if settings.backend != "torch" or settings.compile:
        option = "--compile" if settings.compile else f"--backend {settings.backend}"
        raise UsageError(f"{option} is for embedding models; cross-encoders run on plain torch. Leave it out.")
    model: CrossEncoder = _load(CrossEncoder, spec, device, settings, choose_precision(device, settings))
    if model.num_labels != 1:
        raise UsageError(f"--model {spec} gives {model.num_labels} scores a pair; a ranking needs one.")
    return model


def _load(kind: type[M], spec: ModelSpec, device: str, settings: Settings, precision: str) -> M:
    place = weights.locate(spec)
    weights.verify(spec)
    try:
        model: M = kind(
            place,
            revision=spec.revision,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": DTYPES[precision]},
        )
    except LOAD_ERRORS as exc:
        raise not_loaded(spec, exc) from exc
    model.eval()
    return model


def not_loaded(spec: ModelSpec, exc: Exception) -> ModelNotFound:
    """Put what a library says of a model that it cannot load into one line."""
    reason = str(exc).strip().split("\n", 1)[0]
    if "trust_remote_code" in str(exc):
        reason += " If you trust it, start the worker with --trust-remote-code."
    return ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec))
