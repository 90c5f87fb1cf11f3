"""Loading a SentenceTransformer: its numbers, its kernels, and what runs it."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from tasks import weights
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.attention import use_flash_attention
from workers.engines.precision import DTYPES, choose_precision


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
    model = _load(spec, device, settings, "fp32" if settings.backend != "torch" else precision)
    if settings.backend != "torch":
        from workers.engines.exporting import export_model

        export_model(model, settings.backend, precision, settings.state_dir)
    elif device != "cpu":
        use_flash_attention(model)
    if settings.compile:
        from workers.engines.compiling import compile_model

        compile_model(model)
    return model


def _load(spec: ModelSpec, device: str, settings: Settings, precision: str) -> SentenceTransformer:
    place = weights.locate(spec)
    weights.verify(spec)
    try:
        model = SentenceTransformer(
            place,
            revision=spec.revision,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": DTYPES[precision]},
        )
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        reason = str(exc).strip().split("\n", 1)[0]
        if "trust_remote_code" in str(exc):
            reason += " If you trust it, start the worker with --trust-remote-code."
        raise ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec)) from exc
    return model.eval()
