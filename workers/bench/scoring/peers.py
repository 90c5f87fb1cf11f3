"""The peers: the article's loop, one pair at a time, and sentence-transformers' CrossEncoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tasks import weights
from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.options import Template
from tasks.ports import Pair
from workers.bench import ways
from workers.bench.scoring.plan import NAIVE
from workers.bench.scoring.prompts import chat_template, label_ids, prompt_ids
from workers.bench.ways import Run, Setup, Timed, time_rows
from workers.engines.precision import DTYPES

#: Pairs that each process runs before it is timed.
WARM_PAIRS = 8


@dataclass(frozen=True)
class ScoreSetup(Setup):
    """How a peer scores.

    Attributes:
        template: how a causal reranker is asked.
        instruction: what it is told to judge by; its template's own if None.
    """

    template: Template | None = None
    instruction: str | None = None


def run(name: str, setup: ScoreSetup, pairs: Sequence[Pair]) -> Timed:
    """Load a peer, warm it up, and time one scoring of the pairs."""
    way = ways.alone if setup.processes == 1 else ways.processes
    begin = _begin_naive if name == NAIVE else _begin_batched
    return time_rows(way(setup, begin), pairs, n_warm=WARM_PAIRS * setup.processes)


def is_causal(setup: ScoreSetup) -> bool:
    """Whether the model is a language model that is asked with a template.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
    """
    spec = ModelSpec.parse(setup.model, "score")
    try:
        config = AutoConfig.from_pretrained(weights.locate(spec), revision=spec.revision)
    except (OSError, ValueError, KeyError) as exc:
        reason = str(exc).strip().split("\n", 1)[0]
        raise ModelNotFound(f"--model {spec} cannot be loaded: {reason}", model=str(spec)) from exc
    return str((config.architectures or [""])[0]).endswith("ForCausalLM")


def load_cross_encoder(setup: ScoreSetup, device: str) -> CrossEncoder:
    """Load the model into a CrossEncoder as a person would who knows how; a causal reranker with its template.

    Raises:
        ModelNotFound: its files are not there or cannot be read.
        UsageError: it needs a template, and none is known.
    """
    spec = ModelSpec.parse(setup.model, "score")
    place, version = weights.locate(spec), {"revision": spec.revision}
    model_kwargs: dict[str, Any] = {"dtype": DTYPES[setup.precision]}
    if not is_causal(setup):
        return _ready(CrossEncoder(place, revision=spec.revision, device=device, model_kwargs=model_kwargs))
    template, tokenizer = _template_of(setup), AutoTokenizer.from_pretrained(place, **version)
    transformer = Transformer(
        place,
        transformer_task="text-generation",
        model_kwargs=model_kwargs | version,
        processor_kwargs={"chat_template": chat_template(tokenizer, template, setup.instruction)} | version,
        config_kwargs=version,
    )
    # Of the difference of two logits, the sigmoid is the softmax.
    activation = torch.nn.Sigmoid() if template.formula == "probability" else torch.nn.Identity()
    labels = LogitScore(*label_ids(tokenizer, template))
    return _ready(CrossEncoder(modules=[transformer, labels], device=device, activation_fn=activation))


def _ready(model: CrossEncoder) -> CrossEncoder:
    model.eval()
    return model


def count_tokens(setup: ScoreSetup, tokenizer: Any, pairs: Sequence[Pair]) -> list[int]:
    """Return the tokens of each pair as it is fed alone."""
    if is_causal(setup):
        template = _template_of(setup)
        limit = tokenizer.model_max_length
        return [len(prompt_ids(tokenizer, template, pair, setup.instruction, limit)) for pair in pairs]
    queries, documents = zip(*pairs, strict=True)
    return [len(ids) for ids in tokenizer(list(queries), list(documents), truncation=True)["input_ids"]]


def _template_of(setup: ScoreSetup) -> Template:
    if setup.template is None:
        raise UsageError(f"--model {setup.model} is a causal reranker with no known template: give --template.")
    return setup.template


def _begin_batched(setup: ScoreSetup, device: str) -> Run:
    model = load_cross_encoder(setup, device)
    return _predict(model, setup.batch_size)


def _begin_naive(setup: ScoreSetup, device: str) -> Run:
    """Load the model, and return the article's loop."""
    return _begin_full_prompts(setup, device) if is_causal(setup) else _predict(load_cross_encoder(setup, device), 1)


def _predict(model: CrossEncoder, batch_size: int) -> Run:
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        found: np.ndarray = model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
        return found

    return score


def _begin_full_prompts(setup: ScoreSetup, device: str) -> Run:
    """Feed whole prompts, and compute the logits of all words at all places, as ``AutoModelForCausalLM`` does."""
    spec, template = ModelSpec.parse(setup.model, "score"), _template_of(setup)
    place = weights.locate(spec)
    tokenizer = AutoTokenizer.from_pretrained(place, revision=spec.revision)
    model: Any = AutoModelForCausalLM.from_pretrained(place, revision=spec.revision, dtype=DTYPES[setup.precision])
    model.to(device).eval()
    positive, negative = label_ids(tokenizer, template)
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    @torch.inference_mode()
    def score_one(pair: Pair) -> float:
        ids = prompt_ids(tokenizer, template, pair, setup.instruction, limit)
        logits = model(input_ids=torch.tensor([ids], device=device)).logits[0, -1].float()  # (n_words,)
        if negative is None:
            return float(logits[positive])
        if template.formula == "difference":
            return float(logits[positive] - logits[negative])
        return float(torch.softmax(logits[[negative, positive]], dim=0)[1])

    return lambda pairs: np.array([score_one(pair) for pair in pairs], np.float32)
