"""Keys and values of prompts' beginnings, computed once and used by all prompts that begin so.

transformers' own caches keep what passes through them, in every layer, for every row. This one keeps the prefixes
alone, and gives a layer its rows' copies while that layer computes: for the rows of a batch there is memory of one
layer at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

#: Kinds of rotary positions, in transformers' words, that depend on the length of what is read.
LENGTH_DEPENDENT = {"dynamic", "longrope"}


class PrefixCache(Cache):
    """The prefixes of some queries, padded to the longest one on the right.

    The first forward pass through it stores what it computes. Each later one gets the prefixes of the rows that were
    set with ``use``.

    Args:
        n_layers: of the model.
    """

    def __init__(self, n_layers: int) -> None:
        self._own = [_Layer() for _ in range(n_layers)]
        super().__init__(layers=list(self._own))

    def use(self, rows: torch.Tensor) -> None:
        """Set which prefix each row of the next batch begins with, (n_rows,) int64 on the device."""
        for layer in self._own:
            layer.rows = rows


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store prefixes, (n_prefixes, n_heads, n_tokens, dim), or put them before the rows' own keys and values."""
        if self.rows is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        return self._extend(self.keys, key_states), self._extend(self.values, value_states)

    def _extend(self, prefixes: Any, rest: torch.Tensor) -> torch.Tensor:
        rows: Any = self.rows
        return torch.cat([prefixes.index_select(0, rows.to(prefixes.device)), rest], dim=-2)

    def get_seq_length(self) -> int:
        return 0 if self.rows is None or self.keys is None else int(self.keys.shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def depends_on_length(config: Any) -> bool:
    """Whether the longest row of a batch, padding included, changes how positions are turned in all of its rows."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for each type of layer, or one
    return any(kind.get("rope_type") in LENGTH_DEPENDENT for kind in kinds)


def has_plain_cache(config: Any) -> bool:
    """Whether all that a model keeps of a prefix are keys and values of all its positions, whatever follows.

    Not so with sliding windows, linear attention and the like, for which transformers has caches of other kinds, and
    not where a prompt's length changes how its positions are turned.
    """
    return not depends_on_length(config) and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers
    )


def rest_mask(prefixes: torch.Tensor, n_prefix: int, n_rest: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to the attention of rows that stand behind their prefixes.

    Args:
        prefixes: (n_rows,) tokens of each row's prefix, on the device.
        n_prefix: tokens that the prefixes are padded to; what is beyond a row's own is a hole.
        n_rest: tokens that the rows are padded to, on the right.
        dtype: of the numbers.

    Returns:
        (n_rows, 1, n_rest, n_prefix + n_rest). Additive, as torch would make that of a mask of truth values in every
        layer.
    """
    device = prefixes.device
    positions = torch.arange(n_prefix + n_rest, device=device)
    behind = torch.arange(n_rest, device=device)[:, None] + n_prefix >= positions  # (n_rest, n_prefix + n_rest)
    is_hole = (positions >= prefixes[:, None]) & (positions < n_prefix)  # (n_rows, n_prefix + n_rest)
    sees = behind & ~is_hole[:, None, :]
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
