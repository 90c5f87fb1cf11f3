"""Cross-encoders with penstock's batching: sequence classifiers that read a query and a document together.

The model's own modules compute (tokenizer, transformer, head, activation function); which pairs go together, and what
happens when memory runs out, is decided by workers/engines/batched.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tasks.errors import ModelNotFound, PenstockError
from tasks.messages import ModelSpec
from tasks.options import ScoreOptions
from tasks.ports import Pair
from tasks.settings import Settings
from workers.engines.batched import PROBE_TEXT, Loaded
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.features import PAIRS, features_of
from workers.engines.fingerprint import fingerprint_of
from workers.engines.loading import load_cross_encoder
from workers.engines.pair_scoring import PairScorer
from workers.engines.quantising import rounding_bytes, weight_bytes
from workers.memory import is_out_of_memory

#: Characters of the query in a pair of the engine's own.
PROBE_QUERY_CHARS = 24
#: Pairs whose scores are compared when a model is loaded: of several lengths, so that there is padding; an empty one.
SAMPLE = [Pair(PROBE_TEXT[:start], PROBE_TEXT[start:stop]) for start, stop in ((21, 35), (34, 300), (6, 90), (0, 0))]
#: Largest difference of a score, relative to the largest of them and to 1, that another shape of batch explains, by
#: the bytes of a number.
TOLERANCES = {4: 1e-4, 2: 0.05}


class CrossEncoderScorer(PairScorer):
    """One cross-encoder on one device. Not yet run on a GPU.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read, or its scores are not those of its own
            ``predict``.
        UsageError: the settings do not go with it, or it gives more than one score a pair.
    """

    def __init__(self, spec: ModelSpec, device: str, settings: Settings) -> None:
        self._model = model = load_cross_encoder(spec, device, settings)
        self._activation: Any = model.activation_fn
        self._features = features_of(model, device, PAIRS)
        loaded = Loaded(
            model=model,
            weights=fingerprint_of(model),
            most=int(min(model.max_seq_length or NO_LIMIT, NO_LIMIT)),
            pads=self._features.pads,
            can_pad_to=self._features.can_pad_to,
            numbers=str(model.dtype),
            attention=str(getattr(model.config, "_attn_implementation", None)),
            weight_bytes=weight_bytes(model),
        )
        least = min(number.element_size() for number in model.parameters() if number.is_floating_point())
        n_bytes = rounding_bytes(model, least)
        with _told_of(spec):
            # By the layers as they came.
            expected = np.asarray(model.predict(SAMPLE, show_progress_bar=False), np.float32)
            super().__init__(loaded, device, settings)
            self._compare(spec, expected, TOLERANCES[n_bytes] * max(1.0, float(np.abs(expected).max())))

    def check(self, options: ScoreOptions) -> str | None:
        """Say why this model cannot serve these options, or return None."""
        if options.instruction is not None or options.template is not None:
            return "--instruction and --template are for causal rerankers; this model is a cross-encoder"
        n_special = self._model.tokenizer.num_special_tokens_to_add(pair=True)
        if options.max_tokens and options.max_tokens <= n_special:
            return f"--max-tokens {options.max_tokens} leaves no room beside the {n_special} special tokens"
        return None

    def _prepare(self, rows: Sequence[Pair], options: ScoreOptions, limit: int) -> Prepared:  # noqa: ARG002
        prompt = self._model._resolve_prompt(None, None)  # noqa: SLF001 - the one that a model may have been saved with
        return self._features.prepare(rows, prompt, limit)

    def _prepare_probe(self, texts: Sequence[str], limit: int) -> Prepared:
        return self._features.prepare([Pair(text[:PROBE_QUERY_CHARS], text) for text in texts], None, limit)

    def _forward(
        self,
        prepared: Prepared,
        rows: np.ndarray,
        options: ScoreOptions | None,  # noqa: ARG002 - they change what is tokenised
        length: int | None,
    ) -> torch.Tensor:
        features = self._features.batch(prepared, rows, length)
        with torch.inference_mode():
            scores: torch.Tensor = self._model(features)["scores"].float()
            activated: torch.Tensor = self._activation(scores)
        return activated.reshape(len(rows), 1)

    def _compare(self, spec: ModelSpec, expected: np.ndarray, tolerance: float) -> None:
        """Refuse a model whose scores depend on how batches are made."""
        computed = self.score(SAMPLE, ScoreOptions())
        if error := next(filter(None, computed.errors), None):
            raise _unusable(spec, f"of a pair of penstock's own it says: {error}")
        difference = float(np.abs(computed.values[:, 0] - expected).max())
        if difference <= tolerance:
            return
        alone = np.concatenate([self.score([pair], ScoreOptions()).values[:, 0] for pair in SAMPLE])
        if not np.abs(computed.values[:, 0] - alone).max() <= tolerance:
            raise _unusable(
                spec, "a pair's score depends on how far it is padded, and so on the other pairs of a batch"
            )
        raise _unusable(
            spec,
            "in penstock's batches its scores differ from those of its own predict by "
            f"{difference:.2g}, where {tolerance:.2g} would be rounding",
        )


@contextmanager
def _told_of(spec: ModelSpec) -> Iterator[None]:
    """Turn what a model's own code raises when it is first run into one line; the pairs are penstock's own."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, PenstockError) or is_out_of_memory(exc):
            raise
        reason = str(exc).strip().split("\n", 1)[0].rstrip(".")
        if "padding token" in reason:
            reason += "; set pad_token_id in its config.json, and pad_token in its tokenizer_config.json"
        raise _unusable(spec, f"{type(exc).__name__}: {reason}") from exc


def _unusable(spec: ModelSpec, reason: str) -> ModelNotFound:
    return ModelNotFound(f"--model {spec} cannot be used: {reason}.", model=str(spec))
