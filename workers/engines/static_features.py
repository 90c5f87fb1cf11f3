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

from workers.engines.blocks import Prepared


class StaticFeatures:
    """A model whose first module is a ``StaticEmbedding``.

    Args:
        model: the model.
        device: ``cpu`` or ``cuda``.
    """

    pads = False
    can_pad_to = False

    def __init__(self, model: BaseModel, device: str) -> None:
        self._tokenizer: Any = model[0].tokenizer
        self._device = device

    def prepare(
        self,
        rows: Sequence[str],
        prompt: str | None,
        limit: int,
        language: str | None = None,  # noqa: ARG002 - words stand for themselves
    ) -> Prepared:
        """Tokenise; what a tokenizer file cuts off by itself is cut off here too."""
        texts = [prompt + row for row in rows] if prompt else list(rows)
        # Without the places of tokens in the text, which takes some of the time of encode_batch.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(row.ids, np.int64) for row in encodings]
        return Prepared(
            lengths=np.array([min(len(row), limit) for row in ids], np.int32),
            truncated=np.array(
                [len(row) > limit or bool(of.overflowing) for row, of in zip(ids, encodings, strict=True)]
            ),
            rows=[row[:limit] for row in ids],
        )

    def batch(self, prepared: Prepared, rows: np.ndarray, length: int | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the ids of all rows, (n_tokens,) int64, and where each row begins, (n_rows,) int64."""
        ids = np.concatenate([prepared.rows[i] for i in rows])
        ends = np.cumsum(prepared.lengths[rows], dtype=np.int64)
        tensors = {"input_ids": ids, "offsets": ends - prepared.lengths[rows]}
        return {name: torch.from_numpy(values).to(self._device) for name, values in tensors.items()}
