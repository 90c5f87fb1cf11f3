"""SentenceTransformer models with penstock's batching.

The model's own modules compute (tokenizer, transformer, pooling, dense, normalise, prompts); which rows go together,
and what happens when memory runs out, is decided by workers/engines/batched.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers.engines.batched import BatchedEngine, Loaded
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.features import TEXTS, features_of
from workers.engines.fingerprint import fingerprint_of
from workers.engines.loading import load_model
from workers.engines.missing_weights import check_is_encoder
from workers.engines.quantising import weight_bytes


class SentenceTransformerEncoder(BatchedEngine[str, EncodeOptions]):
    """One SentenceTransformer on one device.

    Raises:
        ModelNotFound: the model's files are not there, cannot be read, or cannot count tokens; or it is no encoder.
    """

    NOT_FINITE = "the model gave a vector with numbers that are not finite"

    def __init__(self, spec: ModelSpec, device: str, settings: Settings) -> None:
        self._model = model = load_model(spec, device, settings)
        check_is_encoder(spec, model)
        self._features = features_of(model, device, TEXTS)
        self._dim = model.get_embedding_dimension() or 0
        loaded = Loaded(
            model=model,
            weights=fingerprint_of(model),
            most=int(min(model.max_seq_length or NO_LIMIT, NO_LIMIT)),
            pads=self._features.pads,
            can_pad_to=self._features.can_pad_to,
            numbers=str(model.dtype),
            attention=str(getattr(getattr(model[0], "config", None), "_attn_implementation", None)),
            weight_bytes=weight_bytes(model),
        )
        super().__init__(loaded, device, settings)

    def check(self, options: EncodeOptions) -> str | None:
        """Say why this model cannot serve these options, or return None."""
        if options.prompt_name is not None and options.prompt_name not in self._model.prompts:
            names = ", ".join(sorted(self._model.prompts)) or "none"
            return f"the model has no prompt named {options.prompt_name!r}; it has: {names}"
        if options.truncate_dim and options.truncate_dim > self._dim:
            return f"--truncate-dim {options.truncate_dim} is more than the model's {self._dim} dimensions"
        tokenizer = getattr(self._model[0], "tokenizer", None)
        # Static embeddings have a bare tokenizer, and no special tokens.
        n_special = tokenizer.num_special_tokens_to_add() if isinstance(tokenizer, PreTrainedTokenizerBase) else 0
        if options.max_tokens and options.max_tokens <= n_special:
            return f"--max-tokens {options.max_tokens} leaves no room beside the {n_special} special tokens"
        return self._features.languages.check(options)

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector."""
        return options.truncate_dim or self._dim

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order."""
        return self._compute(texts, options, on_batch)

    def _prepare(self, rows: Sequence[str], options: EncodeOptions, limit: int) -> Prepared:
        prompt = self._model._resolve_prompt(options.prompt, options.prompt_name)  # noqa: SLF001 - ST's own rule
        return self._features.prepare(rows, prompt, limit, options.language)

    def _prepare_probe(self, texts: Sequence[str], limit: int) -> Prepared:
        return self._features.prepare(texts, None, limit)

    def _forward(
        self, prepared: Prepared, rows: np.ndarray, options: EncodeOptions | None, length: int | None
    ) -> torch.Tensor:
        features = self._features.batch(prepared, rows, length)
        with torch.inference_mode():
            embeddings: torch.Tensor = self._model(features)["sentence_embedding"]
            if options is not None and options.truncate_dim:
                embeddings = embeddings[..., : options.truncate_dim]
            if options is not None and options.normalize:
                embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
            return embeddings

    def _size(self, row: str) -> int:
        return len(row)
