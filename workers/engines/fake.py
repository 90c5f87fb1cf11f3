"""A deterministic engine without a model: vectors from hashes, tokens are words. For tests and for measuring penstock.

``--model fake`` or ``--model fake:dim=64,limit=256,ms_per_row=5``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from tasks.errors import ModelNotFound
from tasks.messages import EncodeOptions
from tasks.ports import Encoded
from workers.batching import plan_batches

_DEFAULTS = {"dim": 32.0, "limit": 256.0, "ms_per_row": 0.0}


class FakeEncoder:
    """Gives each text the vector of its hash, whatever chunk or batch it is in."""

    def __init__(self, name: str, max_batch_tokens: int) -> None:
        values = dict(_DEFAULTS)
        for part in filter(None, name.removeprefix("fake").removeprefix(":").split(",")):
            key, _, value = part.partition("=")
            try:
                values[key] = float(value)
            except ValueError:
                values = {}
            if values.keys() != _DEFAULTS.keys():
                raise ModelNotFound(f"--model {name}: options are {', '.join(_DEFAULTS)}, as in fake:dim=64.")
        if not (1 <= values["dim"] < 2**20 and 1 <= values["limit"] < 2**31 and values["ms_per_row"] >= 0):
            raise ModelNotFound(f"--model {name}: a number is out of its range.")
        self._dim, self._limit = int(values["dim"]), int(values["limit"])
        self._row_s = values["ms_per_row"] / 1000
        self._max_batch_tokens = max_batch_tokens
        self.weights = f"fake-{self._dim}-{self._limit}"

    def check(self, options: EncodeOptions) -> str | None:
        """Refuse what the fake model has not."""
        if options.prompt_name is not None:
            return f"the model has no prompt named {options.prompt_name!r}; it has none"
        if options.truncate_dim and options.truncate_dim > self._dim:
            return f"--truncate-dim {options.truncate_dim} is more than the model's {self._dim} dimensions"
        return None

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector."""
        return options.truncate_dim or self._dim

    def encode(self, texts: Sequence[str], options: EncodeOptions) -> Encoded:
        """Hash each text's words as far as the limit goes."""
        started = time.perf_counter()
        limit = min(options.max_tokens or self._limit, self._limit)
        words = [((options.prompt or "") + text).split() for text in texts]
        n_tokens = np.array([min(len(row), limit) for row in words], np.int32)  # (n,)
        tokenised = time.perf_counter()
        vectors = np.stack([self._vector(" ".join(row[:limit])) for row in words])  # (n, dim)
        vectors = vectors[:, : self.dim(options)]
        if options.normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        time.sleep(self._row_s * len(texts))
        batches = plan_batches(n_tokens, self._max_batch_tokens)
        return Encoded(
            vectors=vectors,
            n_tokens=n_tokens,
            truncated=np.array([len(row) > limit for row in words]),
            errors=[None] * len(texts),
            padded_tokens=sum(int(n_tokens[rows].max()) * len(rows) for rows in batches),
            tokenise_s=tokenised - started,
            model_s=time.perf_counter() - tokenised,
        )

    def _vector(self, text: str) -> np.ndarray:
        raw = hashlib.shake_128(text.encode()).digest(4 * self._dim)
        return (np.frombuffer(raw, "<u4").astype(np.float64) / 2**31 - 1).astype(np.float32)
