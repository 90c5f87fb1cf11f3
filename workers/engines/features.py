"""How texts, or pairs of them, become what the first module of a sentence-transformers model takes.

Nearly every model has a transformer with a fast tokenizer first: each row is tokenised once by the model's own
preprocessing, clipped before, and padded batch by batch (``TokenFeatures``). Static embeddings are so fast that their
texts are tokenised without any preprocessing around (``StaticFeatures``). Any other first module (slow tokenizers, chat
templates, bags of words) preprocesses each row once to learn its length and again with its batch (``TextFeatures``):
twice the work, and the model decides everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from tasks.errors import ModelNotFound
from tasks.ports import Pair
from workers.clipping import clip, tokenise_clipped
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.languages import Languages
from workers.engines.static_features import StaticFeatures
from workers.sharding.crew import crew_of

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

#: Characters above which a text of a pair is very long. The pieces of two such texts take some 100 MB for a moment.
LONG_CHARS = 4096


@dataclass(frozen=True)
class Kind(Generic[R]):
    """What rows are.

    Attributes:
        example: one of them.
        cut: returns a row's beginning of about so many characters, or the row itself if it is whole.
        is_settled: whether the encoding of a row's beginning, truncated at the limit, is that of the whole row.
    """

    example: R
    cut: Callable[[R, int], R]
    is_settled: Callable[[R, R, Any], bool]


def _cut_pair(pair: Pair, n_chars: int) -> Pair:
    query, document = clip(pair.query, n_chars), clip(pair.document, n_chars)
    return pair if query is pair.query and document is pair.document else Pair(query, document)


def _is_settled(pair: Pair, beginning: Pair, encoding: Any) -> bool:
    """Whether more of a pair would change nothing.

    Tokenizers take of the longer text until both have as many tokens, then of both in turn; of an odd number the longer
    text keeps one more. So a text of which less is left than of the other one must be whole to know that it is the
    shorter one. It need not be if both are very long: what is cut off is kept too, in as many pieces as both texts have
    together, multiplied. Then the odd token may be the wrong text's.
    """
    if not encoding.overflowing:
        return False
    parts = encoding.sequence_ids
    excess = parts.count(1) - parts.count(0)
    is_whole = beginning.query is pair.query if excess > 0 else beginning.document is pair.document
    shorter = min(len(beginning.query), len(beginning.document))
    return excess == 0 or is_whole or (abs(excess) == 1 and shorter > LONG_CHARS)


TEXTS = Kind("a text", clip, lambda _, __, encoding: bool(encoding.overflowing))
PAIRS = Kind(Pair("a text", "another"), _cut_pair, _is_settled)


class Features(Protocol[R_contra]):
    """One of the ways."""

    #: Whether a batch is padded to its longest row; the model then computes the padding too.
    pads: bool
    #: Whether a batch can be padded to any length.
    can_pad_to: bool
    #: That the tokenizer knows.
    languages: Languages

    def prepare(
        self, rows: Sequence[R_contra], prompt: str | None, limit: int, language: str | None = None
    ) -> Prepared:
        """Learn the lengths of rows of one language, cut at ``limit`` tokens."""

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:
        """Return the model's input for these rows, on its device, padded to ``length`` tokens if that is given."""


def features_of(model: BaseModel, device: str, kind: Kind[R]) -> Features[R]:
    """Choose the way that fits a model and its rows.

    Raises:
        ModelNotFound: the model does not take text, or its tokens cannot be counted.
    """
    if crew_of(model):
        device = "cpu"  # a batch goes to the other ranks by way of the host, and each sends it to its device
    first: Any = model[0]
    if type(first) is StaticEmbedding:
        static: Any = StaticFeatures(model, device)  # takes texts, and such a model has no other rows
        return static  # type: ignore[no-any-return]
    is_plain = isinstance(first, Transformer) and "message" not in first.modality_config
    if is_plain and getattr(first.tokenizer, "is_fast", False):
        return TokenFeatures(model, device, kind)
    features: TextFeatures[R] = TextFeatures(model, device)
    features.prepare([kind.example], None, NO_LIMIT)
    return features


class TokenFeatures(Generic[R]):
    """Fast tokenizers: each row is tokenised once."""

    def __init__(self, model: BaseModel, device: str, kind: Kind[R]) -> None:
        self._model = model
        self._kind = kind
        first: Any = model[0]
        self._tokenizer = first.tokenizer
        self.languages = Languages(self._tokenizer)
        self._device = device
        #: A row can be cut before tokenising only if truncation takes its end.
        self._may_clip = self._tokenizer.truncation_side == "right" and not _truncates_otherwise(first)
        # Makes one long row of a batch, where FlashAttention takes it so; not yet run on a GPU.
        self._flatten: Any = first.data_collator if first.can_flatten_inputs else None
        self._first_position = first._flatten_position_offset if first.can_flatten_inputs else 0  # noqa: SLF001
        first.unpad_inputs = False  # its own preprocessing would flatten all the rows that are tokenised together
        self.pads = self._flatten is None
        self.can_pad_to = self.pads

    def prepare(self, rows: Sequence[R], prompt: str | None, limit: int, language: str | None = None) -> Prepared:
        """Tokenise without padding."""
        self.languages.set(language)
        how = {"text": {"padding": False, "max_length": limit}, "common": {"return_tensors": None}}
        extra: dict[str, Any] = {}

        def tokenise(some: list[R]) -> list[Any]:
            features: Any = self._model.preprocess(some, prompt=prompt, processing_kwargs=how)
            extra.update({name: features[name] for name in ("modality", "prompt_length") if name in features})
            return list(features.encodings)

        if limit == NO_LIMIT or not self._may_clip:
            encodings = tokenise(list(rows))
        else:
            encodings = tokenise_clipped(rows, limit, self._kind.cut, tokenise, self._kind.is_settled)
        return Prepared(
            lengths=np.array([len(row.ids) for row in encodings], np.int32),
            truncated=np.array([bool(row.overflowing) for row in encodings]),
            rows=encodings,
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


def _truncates_otherwise(first: Any) -> bool:
    """Whether a model was saved with a way to truncate of its own."""
    return "truncation" in first.processing_kwargs.get("text", {})


def to_device(value: Any, device: str) -> Any:
    """Return a tensor on the device, and anything else as it is. A copy to a GPU does not wait for it."""
    if not isinstance(value, torch.Tensor) or device == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)


class TextFeatures(Generic[R]):
    """Any other first module: the model preprocesses whole batches of rows."""

    pads = True
    can_pad_to = False

    def __init__(self, model: BaseModel, device: str) -> None:
        self._model = model
        self._device = device
        self.languages = Languages(getattr(model[0], "tokenizer", None))
        #: A tokenizer keeps limit and language between calls, and the next block is prepared while batches of this one
        #: are made.
        self._turn = threading.Lock()

    def prepare(self, rows: Sequence[R], prompt: str | None, limit: int, language: str | None = None) -> Prepared:
        """Preprocess each row alone, with one token more than the limit, to see what would be cut."""
        is_transformer = isinstance(self._model[0], Transformer)
        how: dict[str, Any] = {}
        if is_transformer and limit != NO_LIMIT:
            how = {"processing_kwargs": {"text": {"max_length": limit + 1}}}
        found = [_count_tokens(self._preprocess([row], language, prompt=prompt, **how)) for row in rows]
        counts = np.array(found, np.int32)
        extra: dict[str, Any] = {"prompt": prompt, "language": language}
        if how:
            extra["processing_kwargs"] = {"text": {"max_length": limit}}
        return Prepared(np.minimum(counts, limit), counts > limit, list(rows), extra)

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Let the model preprocess the rows of a batch; it pads as it likes."""
        features = self._preprocess([prepared.rows[i] for i in rows], **prepared.extra)
        return {name: to_device(value, self._device) for name, value in features.items()}

    def _preprocess(self, rows: list[R], language: str | None, **how: Any) -> dict[str, Any]:
        with self._turn:
            self.languages.set(language)
            features: dict[str, Any] = self._model.preprocess(rows, **how)
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
