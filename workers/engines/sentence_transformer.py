"""SentenceTransformer models with penstock's batching.

The model's own modules compute (tokenizer, transformer, pooling, dense, normalise, prompts); which rows go together,
and what happens when memory runs out, is decided here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from tasks.errors import DeviceFull
from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers import budget
from workers.batching import cut_blocks
from workers.budget import TokenBudget
from workers.engines.features import NO_LIMIT, Prepared, features_of
from workers.engines.fingerprint import fingerprint_of
from workers.engines.fixed_shapes import FixedShapes
from workers.engines.loading import load_model
from workers.engines.outbox import Outbox
from workers.engines.packed_linear import pack_linears
from workers.engines.runtimes import PACKAGES as RUNTIMES
from workers.memory import DeviceMemory, device_name, is_out_of_memory
from workers.overlap import one_ahead
from workers.planning import SLOTS_VARIABLE
from workers.running import run_batches, run_patiently

#: Libraries on which bits and speed depend.
PACKAGES = ("torch", "transformers", "sentence-transformers", "penstock")
#: Tokens of a row in a probe, as far as the model takes them: between sentences and pages.
PROBE_ROW_TOKENS = 128
#: Seconds between two times that free memory is given back to a CPU's host; each takes some 10 ms.
TIDY_S = 1.0
#: What probes are made of.
PROBE_TEXT = "It rained for a week, and the river rose above the road to the mill. " * 64
#: Where in that text the rows begin by which a fixed shape is tried.
PROBE_SHIFTS = (0, 3, 10, 16, 21, 31, 36, 46)


class SentenceTransformerEncoder:
    """One SentenceTransformer on one device.

    Raises:
        ModelNotFound: the model's files are not there, cannot be read, or cannot count tokens.
    """

    def __init__(self, spec: ModelSpec, device: str, settings: Settings) -> None:
        self._model = load_model(spec, device, settings)
        self._device = device
        self._features = features_of(self._model, device)
        self._most = int(min(self._model.max_seq_length or NO_LIMIT, NO_LIMIT))
        self._dim = self._model.get_embedding_dimension() or 0
        self._fixed_shapes = FixedShapes(device, self._most, self._run_probe, can_pad=self._features.can_pad_to)
        self.weights = fingerprint_of(self._model)
        if device == "cpu" and not settings.compile:
            pack_linears(self._model, self._run_sample)
        self._memory = DeviceMemory(device, settings.memory_ratio, int(os.environ.get(SLOTS_VARIABLE, "1")))
        facts = self._facts(settings)
        self.place = " ".join(facts.values())
        self._budget = self._find_budget(settings, facts)
        self._tidied_at = time.monotonic()

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch at this moment."""
        return self._budget.tokens

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
    ) -> Computed:
        """Encode texts in their order."""
        n_rows = len(texts)
        result = Computed(
            values=np.zeros((n_rows, self.dim(options)), np.float32),
            n_tokens=np.zeros(n_rows, np.int32),
            truncated=np.zeros(n_rows, bool),
            errors=[None] * n_rows,
        )
        run = self._run_fixed if options.reproducible else self._run_packed
        shortages = self._budget.shortages
        outbox = Outbox(self._device, lambda rows, vectors: _put(result, rows, vectors))
        for rows, prepared in self._tokenised(texts, options, result):
            started = time.perf_counter()
            run(_Block(rows, prepared, options, on_batch, result), outbox)
            result.model_s += time.perf_counter() - started
        started = time.perf_counter()
        outbox.empty()
        result.model_s += time.perf_counter() - started
        result.memory_splits = self._budget.shortages - shortages
        self._tidy()
        return result

    def _tokenised(
        self, texts: Sequence[str], options: EncodeOptions, result: Computed
    ) -> Iterator[tuple[np.ndarray, Prepared]]:
        """Yield blocks of rows, each tokenised while the one before is in the model."""
        prompt = self._model._resolve_prompt(options.prompt, options.prompt_name)  # noqa: SLF001 - ST's own rule
        limit = min(options.max_tokens or NO_LIMIT, self._most)

        def prepare(rows: np.ndarray) -> tuple[np.ndarray, Prepared]:
            started = time.perf_counter()
            prepared = self._features.prepare([texts[i] for i in rows], prompt, limit)
            result.n_tokens[rows] = prepared.lengths
            result.truncated[rows] = prepared.truncated
            result.tokenise_s += time.perf_counter() - started
            return rows, prepared

        # In fixed shapes, rows of one length fill a batch only if they are together.
        least = NO_LIMIT if options.reproducible else self._budget.tokens
        yield from one_ahead(cut_blocks(texts, limit, least), prepare)

    def _run_packed(self, block: _Block, outbox: Outbox) -> None:
        """Run rows in batches as large as the budget."""

        def run(batch: np.ndarray) -> bool:
            vectors = self._forward(self._features.batch(block.prepared, batch), block.options)
            outbox.send(block.rows[batch], vectors)  # here, because it takes memory too
            return True

        for ran in run_batches(block.prepared.lengths, self._budget, run, block.on_batch, pads=self._features.pads):
            if ran.output is None:
                self._fail(block, ran.rows)
            else:
                block.result.padded_tokens += ran.tokens

    def _run_fixed(self, block: _Block, _: Outbox) -> None:
        """Run rows in batches of fixed shapes, which cannot be halved."""

        def run(batch: np.ndarray, length: int) -> np.ndarray:
            features = self._features.batch(block.prepared, batch, length)
            return self._forward(features, block.options).float().cpu().numpy()

        for batch, length in self._fixed_shapes.plan(block.prepared.lengths):
            tokens = self._fixed_shapes.cost(len(batch), length)
            block.on_batch(tokens)
            vectors = run_patiently(lambda: self._fixed_shapes.run(batch, length, run), self._budget)  # noqa: B023
            if vectors is None:
                self._fail(block, batch)
            else:
                _put(block.result, block.rows[batch], vectors)
                block.result.padded_tokens += tokens

    def _fail(self, block: _Block, batch: np.ndarray) -> None:
        """Make rows error rows for which the device has no memory.

        Raises:
            DeviceFull: it has none for a few words either, which is no fault of these rows.
        """
        try:
            self._run_sample()
        except Exception as exc:
            if is_out_of_memory(exc):
                raise DeviceFull from exc
            raise
        for i in block.rows[batch]:
            block.result.errors[i] = f"the device has no memory for this row's {block.result.n_tokens[i]} tokens"

    def _tidy(self) -> None:
        """Give back free memory now and then: batches of all shapes leave it in ever more pieces."""
        if self._device == "cpu" and time.monotonic() - self._tidied_at >= TIDY_S:
            self._memory.release()
            self._tidied_at = time.monotonic()

    def _run_probe(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Run rows of the engine's own, padded to a length. Returns (n_rows, dim)."""
        texts = [PROBE_TEXT[shift:] for shift in PROBE_SHIFTS]
        prepared = self._features.prepare(texts, None, length)
        features = self._features.batch(prepared, rows % len(texts), length)
        return self._forward(features, EncodeOptions()).float().cpu().numpy()

    @torch.inference_mode()
    def _forward(self, features: dict[str, Any], options: EncodeOptions) -> torch.Tensor:
        """Return (n_rows, dim) on the device."""
        embeddings: torch.Tensor = self._model(features)["sentence_embedding"]
        if options.truncate_dim:
            embeddings = embeddings[..., : options.truncate_dim]
        if options.normalize:
            embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
        return embeddings

    def _run_sample(self) -> torch.Tensor:
        """Run a few rows of different lengths. Returns (n_rows, dim)."""
        prepared = self._features.prepare([PROBE_TEXT[:200], PROBE_TEXT[:80], PROBE_TEXT[:10]], None, self._most)
        return self._forward(self._features.batch(prepared, np.arange(3)), EncodeOptions())

    def _facts(self, settings: Settings) -> dict[str, str]:
        """Return what the speed and the bits of this engine depend on."""
        return {
            "weights": self.weights,
            "device": device_name(self._device),
            "threads": str(torch.get_num_threads()),
            "numbers": str(self._model.dtype),
            "attention": str(getattr(getattr(self._model[0], "config", None), "_attn_implementation", None)),
            "pads": str(self._features.pads),
            "backend": settings.backend,
            "compile": str(settings.compile),
            **{package: version(package) for package in (*PACKAGES, *RUNTIMES.get(settings.backend, ()))},
        }

    def _find_budget(self, settings: Settings, facts: dict[str, str]) -> TokenBudget:
        """Take the budget that is set, or the one that this model has on this device."""
        if settings.max_batch_tokens:
            return TokenBudget(settings.max_batch_tokens, self._memory)
        prepared = self._features.prepare([PROBE_TEXT], None, min(PROBE_ROW_TOKENS, self._most))
        length = max(1, int(prepared.lengths[0]))

        def run(tokens: int) -> None:
            rows = np.zeros(max(1, tokens // length), np.int64)
            self._forward(self._features.batch(prepared, rows), EncodeOptions()).float().cpu()

        found = budget.find(settings.state_dir.expanduser() / "devices", facts, run, self._memory)
        return TokenBudget(found.tokens, self._memory, found.bytes_per_token)


@dataclass(frozen=True)
class _Block:
    """Tokenised rows on their way through the model.

    Attributes:
        rows: (n_rows,) their places in ``result``.
        prepared: the rows, tokenised.
        options: how they are encoded.
        on_batch: told the tokens of each batch before it runs.
        result: what becomes of them.
    """

    rows: np.ndarray
    prepared: Prepared
    options: EncodeOptions
    on_batch: Callable[[int], None]
    result: Computed


def _put(result: Computed, rows: np.ndarray, vectors: np.ndarray) -> None:
    """Take the vectors of rows, (n_rows, dim) float32."""
    result.values[rows] = vectors
    for i in rows[~np.isfinite(vectors).all(axis=1)]:
        result.errors[i] = "the model gave a vector with numbers that are not finite"
        result.values[i] = 0.0
