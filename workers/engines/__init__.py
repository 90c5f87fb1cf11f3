"""Engines: each module holds one way to load and run models, and satisfies ``tasks.ports``."""

from __future__ import annotations

from tasks.messages import ModelSpec
from tasks.ports import Encoder
from tasks.settings import Settings


class _Loads:
    """How often this process has loaded weights: once, if all is well."""

    n = 0


def loads() -> int:
    """Return how often this process has loaded weights."""
    return _Loads.n


def load_encoder(spec: ModelSpec, device: str, settings: Settings) -> Encoder:
    """Load the model onto the device. Only the engine that is needed is imported.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
    """
    _Loads.n += 1
    if spec.engine == "fake":
        from workers.engines.fake import FakeEncoder

        return FakeEncoder(spec.name, settings)
    from workers.engines.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(spec, device, settings)
