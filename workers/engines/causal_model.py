"""A causal language model, run only as far as scores need it: the hidden state of each prompt's last token."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks import weights
from tasks.errors import UsageError
from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.blocks import NO_LIMIT
from workers.engines.features import to_device
from workers.engines.footprint import Footprint, footprint_of
from workers.engines.head import Head, HeadRows
from workers.engines.loading import LOAD_ERRORS, not_loaded
from workers.engines.precision import DTYPES, choose_precision
from workers.engines.prefix_cache import PrefixCache, depends_on_length, has_plain_cache, rest_mask
from workers.engines.prompts import Ids
from workers.engines.quantising import check_quantize, quantise, rounding_bytes
from workers.sharding.crew import lead
from workers.sharding.placing import check_placed, placement

log = logging.getLogger(__name__)


def load_causal(spec: ModelSpec, device: str, settings: Settings) -> tuple[Any, Any]:
    """Load a ``*ForCausalLM`` onto a device, ready for inference, and its tokenizer.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: device, precision and backend do not go together.
    """
    check_quantize(settings)
    if settings.backend != "torch" or settings.compile:
        option = "--compile" if settings.compile else f"--backend {settings.backend}"
        raise UsageError(f"{option} is for embedding models; causal rerankers run on plain torch. Leave it out.")
    (model, tokenizer), crew = lead("causal", spec, device, settings, lambda: read_causal(spec, device, settings))
    model.crew = crew
    return model, tokenizer


def read_causal(spec: ModelSpec, device: str, settings: Settings) -> tuple[Any, Any]:
    """Load this process's part of a ``*ForCausalLM``, and its tokenizer.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: they do not go with the devices.
    """
    dtype = DTYPES[choose_precision(device, settings)]
    place = weights.locate(spec)
    weights.verify(spec)
    files = {"revision": spec.revision, "trust_remote_code": settings.trust_remote_code}
    placed = placement(spec, device, settings, dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **files, **placed)
        tokenizer = AutoTokenizer.from_pretrained(place, **files)
    except LOAD_ERRORS as exc:
        raise not_loaded(spec, exc) from exc
    check_placed(spec, model, settings)
    quantise(model, spec, device, settings)
    return (model.eval() if placed else model.eval().to(device)), tokenizer


class CausalModel:
    """What a loaded model computes for scores. Not yet run on a GPU.

    Args:
        model: a ``*ForCausalLM``.
        tokenizer: its tokenizer.
        device: where it is.

    Attributes:
        model: the same.
        decoder: its transformer, without the output layer.
        most: tokens that it takes.
        n_bytes: of one of its numbers; rounding_bytes: of the coarsest that it multiplies.
        can_pad: whether prompts of different lengths go through it together; if not, ``read`` takes one by one.
        reuses: whether prompts' beginnings are computed once for all prompts that share them.
        recovers: whether it can be called again after a call that failed.
    """

    recovers = True

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self.model = model
        self.decoder: torch.nn.Module = model.get_decoder()
        self._decode: Any = self.decoder
        self._config = model.config.get_text_config()
        self._head = Head(model)
        self._device = device
        limits = (getattr(self._config, "max_position_embeddings", None), tokenizer.model_max_length, NO_LIMIT)
        self.most = int(min(limit for limit in limits if limit is not None))
        self.n_bytes = int(model.dtype.itemsize)
        self.rounding_bytes = rounding_bytes(model, self.n_bytes)
        self.can_pad = not depends_on_length(self._config)
        self.reuses = has_plain_cache(self._config) and self._takes("past_key_values", "position_ids")
        if not self.reuses:
            log.info("Prompts' beginnings are not reused with this model", extra={"action": "load"})

    def _takes(self, *names: str) -> bool:
        return set(names) <= set(inspect.signature(self.decoder.forward).parameters)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Return the logits of some tokens: (n_rows, dim) of the last positions -> (n_rows, n_tokens) float32."""
        return self._head.logits(hidden, self.head_rows(tokens))

    def head_rows(self, tokens: list[int]) -> HeadRows:
        """Return the output layer's rows of some tokens."""
        return self._head.rows(tokens)

    @torch.inference_mode()
    def all_logits(self, prompt: Ids) -> torch.Tensor:
        """Return the logits of a prompt's last token as transformers alone computes them, (n_tokens,) float32."""
        logits: torch.Tensor = self.model(input_ids=self._send(prompt[None]), use_cache=False).logits
        return logits[0, -1].float().cpu()

    @torch.inference_mode()
    def read(self, prompts: Sequence[Ids], length: int | None = None) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim).

        Args:
            prompts: each (n_tokens,) int64.
            length: tokens that each is padded to, on the right, where no token before sees it; None for the longest.
        """
        if not self.can_pad and len(prompts) > 1:
            return torch.cat([self._read([prompt], None) for prompt in prompts])
        return self._read(prompts, length)

    def _read(self, prompts: Sequence[Ids], length: int | None) -> torch.Tensor:
        ids, last = self._pad(prompts, length)
        return self._at(last, self._decode(input_ids=ids, use_cache=False))

    @torch.inference_mode()
    def read_prefixes(self, prefixes: Sequence[Ids]) -> PrefixCache:
        """Return the keys and values of some prefixes, each (n_tokens,) int64."""
        ids, _ = self._pad(prefixes)
        cache = PrefixCache(self._config.num_hidden_layers)
        self._decode(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def footprint(self) -> Footprint:
        """Return the memory that reuse takes."""
        return footprint_of(self.read_prefixes([np.zeros(1, np.int64)]), self._config, self.n_bytes)

    @torch.inference_mode()
    def read_rests(
        self, cache: PrefixCache, owners: np.ndarray, starts: np.ndarray, rests: Sequence[Ids]
    ) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim).

        Args:
            cache: of prefixes.
            owners: (n_prompts,) which prefix each prompt begins with.
            starts: (n_prompts,) how many of that prefix's tokens it has.
            rests: the other tokens, each (n_tokens,) int64.
        """
        ids, last = self._pad(rests)
        first = self._send(starts)
        cache.use(self._send(owners))
        positions = first[:, None] + torch.arange(ids.shape[1], device=ids.device)
        mask = rest_mask(first, cache.get_seq_length(), ids.shape[1], self.model.dtype)
        output = self._decode(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.clamp(max=self.most - 1),  # of padding; some models have a table of them
            past_key_values=cache,
            use_cache=True,
        )
        return self._at(last, output)

    def _pad(self, rows: Sequence[Ids], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows padded on the right, (n_rows, length), and where each one's last token is, (n_rows,)."""
        n_tokens = np.array([len(row) for row in rows])
        ids = np.zeros((len(rows), length or int(n_tokens.max())), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return self._send(ids), self._send(n_tokens - 1)

    def _send(self, numbers: np.ndarray) -> torch.Tensor:
        sent: torch.Tensor = to_device(torch.from_numpy(numbers), self._device)
        return sent

    def _at(self, places: torch.Tensor, output: Any) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state
        rows = torch.arange(len(places), device=hidden.device)
        found: torch.Tensor = hidden[rows, places.to(hidden.device)]  # on the last of several devices
        return found.to(places.device)
