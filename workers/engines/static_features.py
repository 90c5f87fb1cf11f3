"""How texts become what static embeddings take: token ids without special tokens, one text behind the other.

``StaticEmbedding`` would tokenise each text to learn its length, and again with its batch; with a model that only looks
vectors up, that is most of the time. Here each text is tokenised once, as the module does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.model import BaseModel

from workers.clipping import clip, tokenise_clipped
from workers.engines.blocks import NO_LIMIT, Prepared
from workers.engines.languages import Languages


class StaticFeatures:
    """A model whose first module is a ``StaticEmbedding``.

    Args:
        model: the model.
        device: ``cpu`` or ``cuda``.
    """

    pads = False
    can_pad_to = False

    def __init__(self, model: BaseModel, device: str) -> None:
        first: Any = model[0]
        self._tokenizer = first.tokenizer
        self.languages = Languages(self._tokenizer)
        self._device = device
        cut = self._tokenizer.truncation or {"max_length": NO_LIMIT, "direction": "right"}
        #: Tokens that the tokenizer's file leaves of a text.
        self._most = int(cut["max_length"])
        #: A text can be cut before tokenising only if truncation takes its end.
        self._may_clip = cut["direction"] == "right"

    def prepare(
        self,
        rows: Sequence[str],
        prompt: str | None,
        limit: int,
        language: str | None = None,  # noqa: ARG002 - words stand for themselves
    ) -> Prepared:
        """Tokenise; what a tokenizer file cuts off by itself is cut off here too."""
        texts = [prompt + row for row in rows] if prompt else list(rows)

        def is_cut(encoding: Any) -> bool:
            return len(encoding) > limit or bool(encoding.overflowing)

        if (most := min(limit, self._most)) == NO_LIMIT or not self._may_clip:
            encodings = self._tokenise(texts)
        else:
            encodings = tokenise_clipped(texts, most, clip, self._tokenise, lambda _, __, encoding: is_cut(encoding))
        ids = [np.array(encoding.ids[:limit], np.int64) for encoding in encodings]
        return Prepared(
            lengths=np.array([len(row) for row in ids], np.int32),
            truncated=np.array([is_cut(encoding) for encoding in encodings], bool),
            rows=ids,
        )

    def _tokenise(self, texts: list[str]) -> list[Any]:
        # Without the places of tokens in the text, which takes some of the time of encode_batch.
        return list(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the ids of all rows, (n_tokens,) int64, and where each row begins, (n_rows,) int64."""
        ids = np.concatenate([prepared.rows[i] for i in rows])
        ends = np.cumsum(prepared.lengths[rows], dtype=np.int64)
        tensors = {"input_ids": ids, "offsets": ends - prepared.lengths[rows]}
        return {name: torch.from_numpy(values).to(self._device) for name, values in tensors.items()}
