"""Vectors of texts that were encoded before come from a cache, and the others go there.

The cache is kept by workers/caches/. One that fails is left alone for a while: every text is computed then, as if
there were none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from tasks.isolation import error_rows
from tasks.options import EncodeOptions
from tasks.ports import Computed, Encoder
from tasks.settings import Settings
from workers.caches import Cache, CacheFault
from workers.caches.opening import open_cache
from workers.caches.values import Known, name_texts, pack, unpack
from workers.distinct import DistinctEncoder, EncoderBefore

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds for which a cache that failed is left alone. A server that does not answer costs 5 s each time.
PAUSE_S = 60.0


def wrap(encoder: Encoder, settings: Settings) -> Encoder:
    """Put before an encoder what the settings ask for: a cache, and that equal texts are computed once.

    Args:
        encoder: computes vectors.
        settings: ``deduplicate`` and ``cache_url`` count.

    Raises:
        UsageError: the cache cannot be used.
    """
    cache = open_cache(settings.cache_url)
    if cache is not None:
        encoder = CachingEncoder(encoder, cache)
    return DistinctEncoder(encoder) if settings.deduplicate else encoder


class CachingEncoder(EncoderBefore):
    """Asks a cache for each text first; only what it does not know is tokenised and computed.

    Args:
        encoder: computes the others.
        cache: keeps vectors by weights, options and text, those of reproducible jobs by device and libraries as well.
            Rows with an error never go there.
    """

    def __init__(self, encoder: Encoder, cache: Cache) -> None:
        super().__init__(encoder)
        self._cache = PatientCache(cache)

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order."""
        place = self.place if options.reproducible else ""
        names = name_texts(texts, self.weights, options, place)
        known = self._read(names, self.dim(options))
        unknown = [row for row in range(len(texts)) if row not in known]
        if unknown:
            computed = self._encoder.encode([texts[row] for row in unknown], options, on_batch)
            self._keep([names[row] for row in unknown], computed)
        else:
            computed = error_rows([], self.dim(options))
        return _fill_in(computed, unknown, known) if known else computed

    def _read(self, names: list[bytes], dim: int) -> dict[int, Known]:
        """Return the rows that the cache knows."""
        values = self._cache.get(names)
        read = ((row, unpack(name, values[name], dim)) for row, name in enumerate(names) if name in values)
        return {row: known for row, known in read if known is not None}

    def _keep(self, names: list[bytes], computed: Computed) -> None:
        rows = zip(names, computed.values, computed.n_tokens.tolist(), computed.truncated, computed.errors, strict=True)
        self._cache.put({name: pack(name, *row) for name, *row, error in rows if error is None})


def _fill_in(computed: Computed, places: list[int], known: Mapping[int, Known]) -> Computed:
    """Put computed rows at their places among the known ones."""
    n_rows = len(places) + len(known)
    vectors = np.empty((n_rows, computed.values.shape[1]), np.float32)
    n_tokens, truncated = np.empty(n_rows, np.int32), np.empty(n_rows, bool)
    errors: list[str | None] = [None] * n_rows
    vectors[places], n_tokens[places], truncated[places] = computed.values, computed.n_tokens, computed.truncated
    for place, error in zip(places, computed.errors, strict=True):
        errors[place] = error
    for row, (vector, tokens, is_truncated) in known.items():
        vectors[row], n_tokens[row], truncated[row] = vector, tokens, is_truncated
    return replace(
        computed, values=vectors, n_tokens=n_tokens, truncated=truncated, errors=errors, cached_rows=len(known)
    )


class PatientCache:
    """A cache that is left alone for a while when it fails. Meanwhile it knows nothing and keeps nothing."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._resting_until = 0.0
        self._has_failed = False

    def get(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what is there of these keys."""
        return self._try(lambda: self._cache.get(names)) or {}

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values."""
        self._try(lambda: self._cache.put(values))

    def _try(self, call: Callable[[], T]) -> T | None:
        if time.monotonic() < self._resting_until:
            return None
        try:
            answer = call()
        except CacheFault as exc:
            self._resting_until = time.monotonic() + PAUSE_S
            # Once for each time that it goes away, and not for each try.
            log.log(
                logging.DEBUG if self._has_failed else logging.WARNING,
                "%s. Texts are computed without it; it is tried again every %.0f s",
                *(exc, PAUSE_S),
                extra={"action": "cache"},
            )
            self._has_failed = True
            return None
        if self._has_failed:
            log.info("The vector cache works again", extra={"action": "cache"})
            self._has_failed = False
        return answer
