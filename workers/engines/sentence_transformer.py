"""SentenceTransformer models with penstock's batching.

The model's own modules compute (tokenizer, transformer, pooling, dense, normalise, prompts); only which rows go
together is decided here.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tasks.errors import EngineBroken, place_of
from tasks.messages import EncodeOptions, ModelSpec
from tasks.ports import Encoded
from tasks.settings import Settings
from workers.batching import default_batch_tokens, plan_batches
from workers.engines.features import NO_LIMIT, Prepared, features_of
from workers.engines.loading import load_model

log = logging.getLogger(__name__)

#: Texts that are run before the first chunk, and again when a row fails, to see whether the engine still works.
WARM_UP = ["warm", "up the kernels and the allocator"]
#: Elements of each tensor that enter the fingerprint; all of a smaller one.
FINGERPRINT_ELEMENTS = 65_536


class SentenceTransformerEncoder:
    """One SentenceTransformer on one device.

    Raises:
        ModelNotFound: the model's files are not there, cannot be read, or cannot count tokens.
    """

    def __init__(self, spec: ModelSpec, device: str, settings: Settings) -> None:
        self._model = load_model(spec, device, settings)
        self._features = features_of(self._model, device)
        self._max_batch_tokens = settings.max_batch_tokens or default_batch_tokens(device)
        self._dim = self._model.get_embedding_dimension() or 0
        self.weights = _fingerprint(self._model)
        self.encode(WARM_UP, EncodeOptions())

    def check(self, options: EncodeOptions) -> str | None:
        """Say why this model cannot serve these options, or return None."""
        if options.prompt_name is not None and options.prompt_name not in self._model.prompts:
            names = ", ".join(sorted(self._model.prompts)) or "none"
            return f"the model has no prompt named {options.prompt_name!r}; it has: {names}"
        if options.truncate_dim and options.truncate_dim > self._dim:
            return f"--truncate-dim {options.truncate_dim} is more than the model's {self._dim} dimensions"
        tokenizer = getattr(self._model[0], "tokenizer", None)
        n_special = getattr(tokenizer, "num_special_tokens_to_add", lambda: 0)()
        if options.max_tokens and options.max_tokens <= n_special:
            return f"--max-tokens {options.max_tokens} leaves no room beside the {n_special} special tokens"
        return None

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector."""
        return options.truncate_dim or self._dim

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Encoded:
        """Encode texts in their order."""
        started = time.perf_counter()
        prompt = self._model._resolve_prompt(options.prompt, options.prompt_name)  # noqa: SLF001 - ST's own rule
        prepared = self._features.prepare(texts, prompt, self._limit(options))
        result = Encoded(
            vectors=np.zeros((len(texts), self.dim(options)), np.float32),
            n_tokens=prepared.lengths,
            truncated=prepared.truncated,
            errors=[None] * len(texts),
            tokenise_s=time.perf_counter() - started,
        )
        started = time.perf_counter()
        for batch in plan_batches(prepared.lengths, self._max_batch_tokens):
            on_batch(len(batch) * int(prepared.lengths[batch].max()))
            self._run(batch, prepared, options, result)
        result.model_s = time.perf_counter() - started
        return result

    def _limit(self, options: EncodeOptions) -> int:
        own = self._model.max_seq_length or NO_LIMIT
        return int(min(options.max_tokens or NO_LIMIT, own, NO_LIMIT))

    def _run(self, batch: np.ndarray, prepared: Prepared, options: EncodeOptions, result: Encoded) -> None:
        """Run a batch; if it fails, run it in halves, down to the rows that fail, which get an error."""
        try:
            vectors = self._forward(self._features.batch(prepared, batch), options)
        except Exception as exc:  # noqa: BLE001 - whatever the model raises, the other rows go on
            if len(batch) > 1:
                log.warning("Batch failed, running it in halves", extra={"action": "split", "rows": len(batch)})
                for half in np.array_split(batch, 2):
                    self._run(half, prepared, options, result)
                return
            self._check_alive(exc)
            result.errors[batch[0]] = f"the model failed on this row: {place_of(exc)}"
            return
        result.padded_tokens += len(batch) * int(result.n_tokens[batch].max())
        result.vectors[batch] = vectors
        for i in batch[~np.isfinite(vectors).all(axis=1)]:
            result.errors[i] = "the model gave a vector with numbers that are not finite"
            result.vectors[i] = 0.0

    def _check_alive(self, fault: Exception) -> None:
        """Run a text that worked before: a broken device fails on everything, which is no row's fault.

        Raises:
            EngineBroken: it fails now.
        """
        try:
            prepared = self._features.prepare(WARM_UP, None, NO_LIMIT)
            self._forward(self._features.batch(prepared, np.arange(len(WARM_UP))), EncodeOptions())
        except Exception as exc:
            raise EngineBroken(f"The engine fails on everything, first with {place_of(fault)}.") from exc

    @torch.inference_mode()
    def _forward(self, features: dict[str, Any], options: EncodeOptions) -> np.ndarray:
        """Return (n_rows, dim) float32."""
        embeddings = self._model(features)["sentence_embedding"]
        if options.truncate_dim:
            embeddings = embeddings[..., : options.truncate_dim]
        if options.normalize:
            embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
        return embeddings.float().cpu().numpy()  # type: ignore[no-any-return]


def _fingerprint(model: SentenceTransformer) -> str:
    """Hash what the vectors depend on: the modules, the token limit, and a sample of every tensor."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([type(module).__name__ for module in model]).encode())
    digest.update(repr(model.max_seq_length).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // FINGERPRINT_ELEMENTS)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
