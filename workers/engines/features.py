"""How texts become what a SentenceTransformer's first module takes.

Two ways, both through the model's own preprocessing. Nearly every model has a transformer with a fast tokenizer
first: each text is tokenised once, clipped before, and padded batch by batch (``TokenFeatures``). Any other first
module (static embeddings, chat templates, bags of words) preprocesses each text once to learn its length and again
with its batch (``TextFeatures``): twice the work, and the model decides everything.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from tasks.errors import ModelNotFound
from workers.clipping import tokenise_clipped
from workers.engines.blocks import NO_LIMIT, Prepared


class Features(Protocol):
    """One of the two ways."""

    #: Whether a batch is padded to its longest row; the model then computes the padding too.
    pads: bool
    #: Whether a batch can be padded to any length.
    can_pad_to: bool

    def prepare(self, texts: Sequence[str], prompt: str | None, limit: int) -> Prepared:
        """Learn the lengths of texts, cut at ``limit`` tokens."""

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:
        """Return the model's input for these rows, on its device, padded to ``length`` tokens if that is given."""


def features_of(model: SentenceTransformer, device: str) -> Features:
    """Choose the way that fits a model.

    Raises:
        ModelNotFound: the model does not take text, or its tokens cannot be counted.
    """
    first = model[0]
    is_plain = isinstance(first, Transformer) and "message" not in first.modality_config
    if is_plain and getattr(first.tokenizer, "is_fast", False):
        return TokenFeatures(model, device)
    features = TextFeatures(model, device)
    features.prepare(["a text"], None, NO_LIMIT)
    return features


class TokenFeatures:
    """Fast tokenizers: each text is tokenised once."""

    def __init__(self, model: SentenceTransformer, device: str) -> None:
        self._model = model
        first: Any = model[0]
        self._tokenizer = first.tokenizer
        self._device = device
        #: A text can be cut before tokenising only if truncation takes its end.
        self._may_clip = self._tokenizer.truncation_side == "right"
        # Makes one long row of a batch, where FlashAttention takes it so; not yet run on a GPU.
        self._flatten: Any = first.data_collator if first.can_flatten_inputs else None
        self._first_position = first._flatten_position_offset if first.can_flatten_inputs else 0  # noqa: SLF001
        first.unpad_inputs = False  # its own preprocessing would flatten all the rows that are tokenised together
        self.pads = self._flatten is None
        self.can_pad_to = self.pads

    def prepare(self, texts: Sequence[str], prompt: str | None, limit: int) -> Prepared:
        """Tokenise without padding."""
        how = {"text": {"padding": False, "max_length": limit}, "common": {"return_tensors": None}}
        extra: dict[str, Any] = {}

        def tokenise(some: list[str]) -> list[Any]:
            features: Any = self._model.preprocess(some, prompt=prompt, processing_kwargs=how)
            extra.update({name: features[name] for name in ("modality", "prompt_length") if name in features})
            return list(features.encodings)

        if limit == NO_LIMIT or not self._may_clip:
            rows = tokenise(list(texts))
        else:
            rows = tokenise_clipped(texts, limit, tokenise, lambda row: bool(row.overflowing))
        return Prepared(
            lengths=np.array([len(row.ids) for row in rows], np.int32),
            truncated=np.array([bool(row.overflowing) for row in rows]),
            rows=rows,
            extra=extra,
        )

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:
        """Pad to the longest row or to ``length``, on the tokenizer's own side: name -> (n_rows, n_tokens) int64.

        Where the model takes rows without padding: one row of all their tokens, and where each one begins.
        """
        chosen = [prepared.rows[i] for i in rows]
        tensors = self._padded(chosen, length) if self._flatten is None else self._flattened(chosen)
        return {**prepared.extra, **{name: to_device(value, self._device) for name, value in tensors.items()}}

    def _padded(self, rows: list[Any], length: int | None) -> dict[str, Any]:
        tokenizer = self._tokenizer
        n_tokens = length or max(len(row.ids) for row in rows)
        columns = {
            "input_ids": ("ids", tokenizer.pad_token_id or 0),
            "attention_mask": ("attention_mask", 0),
            "token_type_ids": ("type_ids", tokenizer.pad_token_type_id),
        }
        tensors = {}
        for name, (attribute, filler) in columns.items():
            if name not in tokenizer.model_input_names:
                continue
            padded = np.full((len(rows), n_tokens), filler, np.int64)
            for i, row in enumerate(rows):
                values = getattr(row, attribute)
                is_left = tokenizer.padding_side == "left"
                padded[i, slice(n_tokens - len(values), None) if is_left else slice(len(values))] = values
            tensors[name] = torch.from_numpy(padded)
        return tensors

    def _flattened(self, rows: list[Any]) -> dict[str, Any]:
        tensors = dict(self._flatten([{"input_ids": row.ids} for row in rows]))
        tensors.pop("labels", None)
        tensors["position_ids"] = tensors["position_ids"] + self._first_position
        return tensors


def to_device(value: Any, device: str) -> Any:
    """Return a tensor on the device, and anything else as it is. A copy to a GPU does not wait for it."""
    if not isinstance(value, torch.Tensor) or device == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)


class TextFeatures:
    """Any other first module: the model preprocesses whole batches of text."""

    pads = True
    can_pad_to = False

    def __init__(self, model: SentenceTransformer, device: str) -> None:
        self._model = model
        self._device = device
        #: A tokenizer keeps its limit between calls, and the next block is prepared while batches of this one are made.
        self._turn = threading.Lock()

    def prepare(self, texts: Sequence[str], prompt: str | None, limit: int) -> Prepared:
        """Preprocess each text alone, with one token more than the limit, to see what would be cut."""
        is_transformer = isinstance(self._model[0], Transformer)
        how: dict[str, Any] = {}
        if is_transformer and limit != NO_LIMIT:
            how = {"processing_kwargs": {"text": {"max_length": limit + 1}}}
        found = [_count_tokens(self._preprocess([text], prompt=prompt, **how)) for text in texts]
        counts = np.array(found, np.int32)
        extra: dict[str, Any] = {"prompt": prompt}
        if how:
            extra["processing_kwargs"] = {"text": {"max_length": limit}}
        return Prepared(np.minimum(counts, limit), counts > limit, list(texts), extra)

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Let the model preprocess the texts of a batch; it pads as it likes."""
        features = self._preprocess([prepared.rows[i] for i in rows], **prepared.extra)
        return {name: to_device(value, self._device) for name, value in features.items()}

    def _preprocess(self, texts: list[str], **how: Any) -> dict[str, Any]:
        with self._turn:
            features: dict[str, Any] = self._model.preprocess(texts, **how)
        return features


def _count_tokens(features: dict[str, Any]) -> int:
    """Return the tokens of a batch of one text."""
    if "attention_mask" in features:
        return int(features["attention_mask"].sum())
    if "input_ids" in features:
        return int(features["input_ids"].numel())
    if "sentence_lengths" in features:
        return int(features["sentence_lengths"].sum())
    raise ModelNotFound(
        f"penstock cannot count this model's tokens: its preprocessing gives only {', '.join(sorted(features))}."
    )
