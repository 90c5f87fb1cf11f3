"""Which engine scores with a model: its configuration says what it is."""

from __future__ import annotations

import json
from pathlib import Path

from sentence_transformers.util import load_file_path
from transformers import AutoConfig

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec
from tasks.ports import Scorer
from tasks.settings import Settings
from workers.engines.loading import LOAD_ERRORS, not_loaded

NEEDED = "`penstock score` needs a cross-encoder (*ForSequenceClassification) or a causal reranker (*ForCausalLM)"


def load_reranker(spec: ModelSpec, device: str, settings: Settings) -> Scorer:
    """Load a model that scores pairs, with the engine that fits it.

    Raises:
        ModelNotFound: its files are not there or cannot be read, or it is no reranker.
        UsageError: the settings do not go together, or not with this model.
    """
    saved_as, architecture = _look_at(spec, settings)
    if saved_as not in {None, "CrossEncoder"} or (saved_as is None and architecture.endswith("Model")):
        raise ModelNotFound(
            f"--model {spec} is an embedding model ({saved_as or architecture}): use `penstock encode`; {NEEDED}.",
            model=str(spec),
        )
    if architecture.endswith("ForCausalLM"):
        from workers.engines.causal_reranker import CausalReranker

        return CausalReranker(spec, device, settings)
    if saved_as == "CrossEncoder" or architecture.endswith("ForSequenceClassification"):
        from workers.engines.cross_encoder import CrossEncoderScorer

        return CrossEncoderScorer(spec, device, settings)
    raise ModelNotFound(f"--model {spec} is a {architecture}; {NEEDED}.", model=str(spec))


def _look_at(spec: ModelSpec, settings: Settings) -> tuple[str | None, str]:
    """Return which class of sentence-transformers saved a model, if one did, and its architecture.

    Embedding models may be causal language models by their architecture, so both are needed.
    """
    place = _place_of(spec)
    try:
        saved_as = _saved_as(place, spec.revision)
        if saved_as not in {None, "CrossEncoder"}:  # its transformer may lie in a folder of its own
            return saved_as, ""
        config = AutoConfig.from_pretrained(place, revision=spec.revision, trust_remote_code=settings.trust_remote_code)
    except LOAD_ERRORS as exc:
        raise not_loaded(spec, exc) from exc
    return saved_as, str((config.architectures or ["model of no known architecture"])[0])


def _place_of(spec: ModelSpec) -> str:
    """Return the folder or hub id; one without an owner is of sentence-transformers' own cross-encoders."""
    place = weights.locate(spec)
    return place if "/" in place else f"cross-encoder/{place}"


def _saved_as(place: str, revision: str | None) -> str | None:
    """Return what the files of sentence-transformers say, which before its version 5 were of embedding models."""
    if load_file_path(place, "modules.json", revision=revision) is None:
        return None
    file = load_file_path(place, "config_sentence_transformers.json", revision=revision)
    saved = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return str(saved.get("model_type", "SentenceTransformer"))
