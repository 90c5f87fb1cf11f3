"""Causal language models that are parted among ranks: what rank 0 reads, the others read too."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from tasks.messages import ModelSpec
from tasks.settings import Settings
from workers.engines.causal_model import CausalModel, read_causal
from workers.engines.head import HeadRows
from workers.engines.prefix_cache import PrefixCache
from workers.engines.prompts import Ids
from workers.sharding.crew import Crew, crew_of
from workers.sharding.group import Dealing
from workers.sharding.orders import Order
from workers.sharding.parts import Part


class PartedCausalModel(CausalModel):
    """A rank's part of a causal language model.

    Args:
        model: a ``*ForCausalLM``.
        tokenizer: its tokenizer.
        device: where it is.
        dealing: which prompts are whose. Prefixes are read by all, since any of them may get rests of any.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, dealing: Dealing) -> None:
        super().__init__(model, tokenizer, device)
        self._dealing = dealing
        self._decode = _through_root(model)

    @torch.inference_mode()
    def read(self, prompts: Sequence[Ids], length: int | None = None) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim)."""
        own = self._dealing.own(len(prompts))
        return self._dealing.together(super().read([prompts[i] for i in own], length), len(prompts))

    @torch.inference_mode()
    def read_rests(
        self, cache: PrefixCache, owners: np.ndarray, starts: np.ndarray, rests: Sequence[Ids]
    ) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim)."""
        own = self._dealing.own(len(rests))
        hidden = super().read_rests(cache, owners[own], starts[own], [rests[i] for i in own])
        return self._dealing.together(hidden, len(rests))


def _through_root(model: Any) -> Callable[..., Any]:
    """Return what runs a model's transformer by calling the model itself, as FSDP wants it: it begins at the root."""
    everything, decoder = model.forward, model.get_decoder()

    def forward(*, only_decoder: bool = False, **inputs: Any) -> Any:
        return decoder(**inputs) if only_decoder else everything(**inputs)

    model.forward = forward
    return partial(model, only_decoder=True)


class LedCausalModel(PartedCausalModel):
    """Rank 0's part, which has the other ranks run what it runs.

    Args:
        model: a ``*ForCausalLM``.
        tokenizer: its tokenizer.
        device: where it is.
        dealing: which prompts are whose.
        crew: the other ranks.
    """

    recovers = False

    def __init__(self, model: Any, tokenizer: Any, device: str, dealing: Dealing, crew: Crew) -> None:
        super().__init__(model, tokenizer, device, dealing)
        self._crew = crew
        self._n_caches = 0
        self._numbers: weakref.WeakKeyDictionary[PrefixCache, int] = weakref.WeakKeyDictionary()
        self._dropped: list[int] = []
        self._rows: dict[tuple[int, ...], HeadRows] = {}

    def read(self, prompts: Sequence[Ids], length: int | None = None) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim)."""
        run = partial(super().read, prompts, length)
        hidden: torch.Tensor = self._perform(Order("read", list(prompts), {"length": length}), len(prompts), run)
        return hidden

    def read_prefixes(self, prefixes: Sequence[Ids]) -> PrefixCache:
        """Return the keys and values of some prefixes; each rank keeps its own until this one lets go of them."""
        self._n_caches = number = self._n_caches + 1
        run = partial(super().read_prefixes, prefixes)
        cache: PrefixCache = self._perform(
            Order("read_prefixes", list(prefixes), {"cache": number}), len(prefixes), run
        )
        self._numbers[cache] = number
        weakref.finalize(cache, self._dropped.append, number).atexit = False
        return cache

    def read_rests(
        self, cache: PrefixCache, owners: np.ndarray, starts: np.ndarray, rests: Sequence[Ids]
    ) -> torch.Tensor:
        """Return the hidden state of each prompt's last token, (n_prompts, dim)."""
        run = partial(super().read_rests, cache, owners, starts, rests)
        order = Order("read_rests", [owners, starts, *rests], {"cache": self._numbers[cache]})
        hidden: torch.Tensor = self._perform(order, len(rests), run)
        return hidden

    def head_rows(self, tokens: list[int]) -> HeadRows:
        """Return the output layer's rows of some tokens; the ranks gather them once."""
        key = tuple(tokens)
        if key not in self._rows:
            order, run = Order("head_rows", [], {"tokens": tokens}), partial(super().head_rows, tokens)
            self._rows = {key: self._perform(order, None, run)}
        return self._rows[key]

    def all_logits(self, prompt: Ids) -> torch.Tensor:
        """Return the logits of a prompt's last token as transformers alone computes them, (n_tokens,) float32."""
        run = partial(super().all_logits, prompt)
        logits: torch.Tensor = self._perform(Order("all_logits", [prompt]), 1, run)
        return logits

    def _perform(self, order: Order, n_rows: int | None, run: Callable[[], Any]) -> Any:
        dropped: list[int] = []
        while self._dropped:  # one by one, as finalizers append at any moment
            dropped.append(self._dropped.pop())
        return self._crew.perform(Order(order.name, order.arrays, {**order.values, "dropped": dropped}), n_rows, run)


class CausalPart(Part):
    """What a rank other than 0 does with orders.

    Args:
        causal: its part of the model.
    """

    def __init__(self, causal: PartedCausalModel) -> None:
        super().__init__(causal.model)
        self._causal = causal
        self._caches: dict[int, PrefixCache] = {}

    def _perform(self, order: Order) -> None:
        arrays, values = order.arrays, order.values
        for number in values["dropped"]:
            self._caches.pop(number, None)
        if order.name == "read":
            self._causal.read(arrays, values["length"])
        elif order.name == "read_prefixes":
            self._caches[values["cache"]] = self._causal.read_prefixes(arrays)
        elif order.name == "read_rests":
            owners, starts, *rests = arrays
            self._causal.read_rests(self._caches[values["cache"]], owners, starts, rests)
        elif order.name == "head_rows":
            self._causal.head_rows(values["tokens"])
        else:
            self._causal.all_logits(arrays[0])


def causal_model_of(model: Any, tokenizer: Any, device: str, settings: Settings) -> CausalModel:
    """Return what computes with a loaded model; if it is parted among ranks, with all of them."""
    crew = crew_of(model)
    if crew is None:
        return CausalModel(model, tokenizer, device)
    model.get_decoder().crew = crew  # as the engine asks that for it
    return LedCausalModel(model, tokenizer, device, Dealing(splits=settings.shard == "fsdp"), crew)


def open_causal_part(spec: ModelSpec, device: str, settings: Settings) -> CausalPart:
    """Load this rank's part, for ranks other than 0.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: the settings do not go together, or not with this model.
    """
    model, tokenizer = read_causal(spec, device, settings)
    return CausalPart(PartedCausalModel(model, tokenizer, device, Dealing(splits=settings.shard == "fsdp")))
