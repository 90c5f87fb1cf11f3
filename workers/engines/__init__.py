"""Engines: each module holds one way to load and run models, and satisfies ``tasks.ports``."""

from __future__ import annotations

from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.ports import Encoder, Scorer
from tasks.settings import Settings


class _Loads:
    """How often this process has loaded weights: once, if all is well."""

    n = 0


def loads() -> int:
    """Return how often this process has loaded weights."""
    return _Loads.n


def load_engine(spec: ModelSpec, device: str, settings: Settings) -> Encoder | Scorer:
    """Load the model onto the device, for the operation that is set. Only the engine that is needed is imported.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
        UsageError: the settings do not go together, or not with this model.
    """
    if settings.quantize and spec.engine in {"fake", "laser"}:
        raise UsageError(f"--quantize is for transformers; --model {spec} is none. Leave it out.")
    if settings.engine and spec.engine != "laser":
        raise UsageError(f"--engine {settings.engine} is for LASER; --model {spec} is another model. Leave it out.")
    _Loads.n += 1
    if settings.operation == "score":
        return _load_scorer(spec, device, settings)
    if spec.engine == "fake":
        from workers.engines.fake import FakeEncoder

        return FakeEncoder(spec.name, settings)
    if spec.engine == "laser":
        from workers.engines.laser.opening import load_laser

        return load_laser(spec, device, settings)
    from workers.engines.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(spec, device, settings)


def _load_scorer(spec: ModelSpec, device: str, settings: Settings) -> Scorer:
    if settings.cache_url is not None:
        raise UsageError("--cache keeps vectors, and this worker makes scores. Leave it out.")
    if spec.engine == "fake":
        from workers.engines.fake import FakeScorer

        return FakeScorer(spec.name, settings)
    from workers.engines.reranking import load_reranker

    return load_reranker(spec, device, settings)
