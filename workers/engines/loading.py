"""Loading a SentenceTransformer: its dtype, its kernels, and what runs it."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.settings import Settings


def load_model(spec: ModelSpec, device: str, settings: Settings) -> SentenceTransformer:
    """Load a model onto a device, ready for inference.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
    """
    place = weights.locate(spec)
    weights.verify(spec)
    try:
        model = SentenceTransformer(
            place,
            revision=spec.revision,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            # transformers 5 keeps the checkpoint's dtype, and half precision is slow on CPUs
            model_kwargs={"dtype": torch.float32} if device == "cpu" else None,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        reason = str(exc).strip().split("\n", 1)[0]
        if "trust_remote_code" in str(exc):
            reason += " If you trust it, start the worker with --trust-remote-code."
        raise ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec)) from exc
    model.eval()
    return model
