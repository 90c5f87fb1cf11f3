"""The memory that reused prefixes take, beside what a batch takes anyway.

There are three parts:

- the keys and values of a wave's prefixes in all layers, for as long as the wave lasts;
- in one layer at a time, each row's copy of its prefix: once taken out, once put before the row's own keys and values,
  and once more for all heads where several of them share one of keys and values (grouped-query attention);
- the mask of a batch, a number and two truth values for each pair of a row's rest and all that it sees.

The prefixes of a wave may take as much as a batch of the budget takes in one layer, and copies with mask as much again;
neither takes more than a share of the device's room. So long queries go in smaller waves and batches, down to one query
and one row: those have no bound but the device's own, and are read whole where it has no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.engines.prefix_cache import PrefixCache

#: Share of a device's free memory that prefixes may take, and copies again; the other half is the batch's own.
ROOM_SHARE = 0.25


@dataclass(frozen=True)
class Footprint:
    """What reuse costs with one model.

    Attributes:
        kept_bytes: keys and values of a token of a prefix, in all layers.
        copied_bytes: of a token that a row sees, in one layer.
        masked_bytes: of a token that another may see.
        batch_bytes: what a token of any batch takes in one layer.
    """

    kept_bytes: int
    copied_bytes: int
    masked_bytes: int
    batch_bytes: int

    def wave_tokens(self, batch_tokens: int, room_bytes: int) -> int:
        """Return the tokens that the prefixes of a wave may have, padded."""
        return min(batch_tokens, self._limit(batch_tokens, room_bytes) // self.kept_bytes)

    def cut(self, n_prefix: int, rests: np.ndarray, batch_tokens: int, room_bytes: int) -> Iterator[slice]:
        """Yield which rows may be in a batch together.

        Args:
            n_prefix: tokens that the prefixes are padded to.
            rests: (n_rows,) tokens of each row behind its prefix, the longest first.
            batch_tokens: the budget of a batch.
            room_bytes: of the device.
        """
        limit = self._limit(batch_tokens, room_bytes)
        start = 0
        while start < len(rests):
            n_rest = int(rests[start])
            row_bytes = (n_prefix + n_rest) * (self.copied_bytes + n_rest * self.masked_bytes)
            n_rows = max(1, limit // row_bytes)
            yield slice(start, start + n_rows)
            start += n_rows

    def _limit(self, batch_tokens: int, room_bytes: int) -> int:
        return min(batch_tokens * self.batch_bytes, int(ROOM_SHARE * room_bytes))


def footprint_of(cache: PrefixCache, config: Any, n_bytes: int) -> Footprint:
    """Count bytes by what a model keeps of one token.

    Args:
        cache: that holds a single token.
        config: of the model.
        n_bytes: of one of its numbers.
    """
    layers: list[Any] = cache.layers
    per_layer = [layer.keys.numel() + layer.values.numel() for layer in layers]
    _, n_shared, _, dim = layers[0].keys.shape
    n_heads = getattr(config, "num_attention_heads", n_shared)
    own = max(per_layer)
    n_repeated = n_heads // n_shared if n_heads > n_shared else 0
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Of a token: the residual and what is added to it, normed both times; queries, keys and values, before and after
    # they are turned; the gate, what it lets through, and their product.
    numbers = 4 * config.hidden_size + 2 * (n_heads * dim + own) + 3 * inner
    return Footprint(
        kept_bytes=n_bytes * sum(per_layer),
        copied_bytes=n_bytes * own * (2 + n_repeated),
        masked_bytes=n_bytes + 2,
        batch_bytes=n_bytes * numbers,
    )
