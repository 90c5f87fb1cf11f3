"""Deterministic engines without a model: values from hashes, tokens are words. For tests and for measuring penstock.

``--model fake`` or ``--model fake:dim=64,limit=256,ms_per_row=5,load_s=10``. With ``faults=1``, a text that begins with
the name of a fault does it to the process: ``!raise``, ``!exit``, ``!segfault``, ``!kill`` (as the kernel does when
memory runs out), ``!memory``, ``!hang``, ``!freeze`` (a hang that holds the interpreter's lock).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from tasks.errors import ModelNotFound
from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Computed, Pair
from tasks.settings import Settings
from workers.batching import plan_batches

#: Tokens of a batch, since there is no device to probe.
BATCH_TOKENS = 1024

_DEFAULTS = {"dim": 32.0, "limit": 256.0, "ms_per_row": 0.0, "load_s": 0.0, "faults": 0.0}


class _FakeEngine:
    """What both engines have: options in the model's name, a limit, a pace and faults."""

    def __init__(self, name: str, settings: Settings) -> None:
        values = dict(_DEFAULTS)
        for part in filter(None, name.removeprefix("fake").removeprefix(":").split(",")):
            key, _, value = part.partition("=")
            try:
                values[key] = float(value)
            except ValueError:
                values = {}
            if values.keys() != _DEFAULTS.keys():
                raise ModelNotFound(f"--model {name}: options are {', '.join(_DEFAULTS)}, as in fake:dim=64.")
        is_limited = 1 <= values["dim"] < 2**20 and 1 <= values["limit"] < 2**31
        if not (is_limited and values["ms_per_row"] >= 0 and 0 <= values["load_s"] < 2**20):
            raise ModelNotFound(f"--model {name}: a number is out of its range.")
        self._dim, self._limit = int(values["dim"]), int(values["limit"])
        self._row_s = values["ms_per_row"] / 1000
        self._has_faults = bool(values["faults"])
        self.batch_tokens = settings.max_batch_tokens or BATCH_TOKENS
        self.place = "anywhere"
        self.weights = f"fake-{self._dim}-{self._limit}"
        time.sleep(values["load_s"])

    def _run(
        self,
        texts: Sequence[str],
        words: Sequence[Sequence[str]],
        limit: int,
        dim: int,
        compute: Callable[[int], np.ndarray | float],
        on_batch: Callable[[int], None],
    ) -> Computed:
        """Compute n rows.

        Args:
            texts: (n,) what may ask for a fault.
            words: (n,) the tokens of each row.
            limit: how many of them count.
            dim: length of a value.
            compute: returns the value of a row by its number.
            on_batch: as for ``Encoder.encode``.
        """
        started = time.perf_counter()
        n_tokens = np.array([min(len(row), limit) for row in words], np.int32)  # (n,)
        values = np.zeros((len(words), dim), np.float32)
        padded_tokens = 0
        for rows in plan_batches(n_tokens, self.batch_tokens):
            batch_tokens = int(n_tokens[rows].max()) * len(rows)
            on_batch(batch_tokens)
            for i in rows:
                if self._has_faults:
                    _do_fault(texts[i])
                values[i] = compute(i)
            time.sleep(self._row_s * len(rows))
            padded_tokens += batch_tokens
        return Computed(
            values=values,
            n_tokens=n_tokens,
            truncated=np.array([len(row) > limit for row in words]),
            errors=[None] * len(words),
            padded_tokens=padded_tokens,
            model_s=time.perf_counter() - started,
        )


class FakeEncoder(_FakeEngine):
    """Gives each text the vector of its hash, whatever chunk or batch it is in."""

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

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Hash each text's words as far as the limit goes."""
        limit = min(options.max_tokens or self._limit, self._limit)
        started = time.perf_counter()
        words = [((options.prompt or "") + text).split() for text in texts]
        tokenise_s = time.perf_counter() - started
        computed = self._run(
            texts, words, limit, self._dim, lambda i: self._vector(" ".join(words[i][:limit])), on_batch
        )
        computed.tokenise_s = tokenise_s
        vectors = computed.values[:, : self.dim(options)]
        if options.normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        computed.values = vectors
        return computed

    def _vector(self, text: str) -> np.ndarray:
        raw = hashlib.shake_128(text.encode()).digest(4 * self._dim)
        return (np.frombuffer(raw, "<u4").astype(np.float64) / 2**31 - 1).astype(np.float32)


class FakeScorer(_FakeEngine):
    """Gives each pair the share of the query's words that the document has, as far as the limit goes."""

    def check(self, options: ScoreOptions) -> str | None:
        """Refuse what the fake model has not."""
        return "the fake model takes no template" if options.template is not None else None

    def dim(self, options: ScoreOptions) -> int:  # noqa: ARG002 - always a score
        """Return 1."""
        return 1

    def score(
        self, pairs: Sequence[Pair], options: ScoreOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Compare each pair's words."""
        limit = min(options.max_tokens or self._limit, self._limit)
        words = [f"{query} {document}".split() for query, document in pairs]

        def compute(i: int) -> float:
            asked = pairs[i].query.split()
            there = set(words[i][len(asked) : limit])
            return sum(word in there for word in asked) / max(1, len(asked))

        return self._run([pair.document for pair in pairs], words, limit, 1, compute, on_batch)


def _do_fault(text: str) -> None:
    """Do to this process what a text asks for."""
    fault = text.partition(" ")[0]
    if fault == "!raise":
        raise RuntimeError("a row asked for this")
    if fault == "!memory":
        np.ones(2**60, np.uint8)
    if fault == "!exit":
        os._exit(3)
    if fault == "!segfault":
        ctypes.string_at(0)
    if fault == "!kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "!hang":
        time.sleep(sys.maxsize // 2**32)
    if fault == "!freeze":
        re.match(r"(a*)*b", "a" * 64)
