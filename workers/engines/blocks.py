"""Blocks: rows that are tokenised together, while the block before is in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from tasks.options import EncodeOptions, ScoreOptions
from tasks.ports import Computed
from workers.engines.outbox import Outbox

O_co = TypeVar("O_co", bound=EncodeOptions | ScoreOptions, covariant=True)

#: A model that names no limit reports a huge one; no text is clipped for it.
NO_LIMIT = 10_000_000


@dataclass
class Prepared:
    """Tokenised rows that are ready to be batched.

    Attributes:
        lengths: (n_rows,) tokens that are fed, special tokens included.
        truncated: (n_rows,) whether the row had more.
        rows: what making a batch needs of each row.
        extra: what every batch has besides.
        errors: why a row cannot be run, by its number.
    """

    lengths: np.ndarray
    truncated: np.ndarray
    rows: Sequence[Any]
    extra: dict[str, Any] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> Prepared:
        """Return only these rows, none of which has an error."""
        return replace(
            self,
            lengths=self.lengths[rows],
            truncated=self.truncated[rows],
            rows=[self.rows[i] for i in rows],
            errors={},
        )


@dataclass(frozen=True)
class Block(Generic[O_co]):
    """Tokenised rows on their way through the model.

    Attributes:
        rows: (n_rows,) their places in ``result``.
        prepared: the rows, tokenised; those with an error are left out.
        options: how they are computed.
        on_batch: told the tokens of each batch before it runs.
        result: what becomes of them.
        outbox: brings values from the device into ``result``.
    """

    rows: np.ndarray
    prepared: Prepared
    options: O_co
    on_batch: Callable[[int], None]
    result: Computed
    outbox: Outbox
