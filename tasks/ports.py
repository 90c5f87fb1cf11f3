"""What the task bodies ask of an engine. Engines live in workers/engines and know nothing of tasks or queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tasks.messages import EncodeOptions


@dataclass
class Encoded:
    """What an engine made of n texts, in their order.

    Attributes:
        vectors: (n, dim) float32; the rows with an error hold zeros.
        n_tokens: (n,) tokens fed to the model, special tokens included.
        truncated: (n,) bool: the text had more tokens than were fed.
        errors: a sentence per row that has no vector, else None.
        padded_tokens: tokens that went through the model, padding included.
        duplicate_rows: rows that took the vector of an equal text.
        cached_rows: rows whose vector came from the cache.
        memory_splits: batches that were halved because the device had no memory for them.
        tokenise_s: seconds of tokenising.
        model_s: seconds in the model; tokenising may overlap with them.
    """

    vectors: np.ndarray
    n_tokens: np.ndarray
    truncated: np.ndarray
    errors: list[str | None] = field(default_factory=list)
    padded_tokens: int = 0
    duplicate_rows: int = 0
    cached_rows: int = 0
    memory_splits: int = 0
    tokenise_s: float = 0.0
    model_s: float = 0.0


class Encoder(Protocol):
    """One loaded model on one device inside one process."""

    #: Content fingerprint of the loaded weights: two slots with the same one give the same vectors.
    weights: str
    #: The device and the libraries: with the weights, what the bits of a reproducible vector depend on.
    place: str

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch at this moment."""

    def check(self, options: EncodeOptions) -> str | None:
        """Say in one sentence why this model cannot serve these options, or return None."""

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector under these options."""

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Encoded:
        """Encode texts in their order.

        Args:
            texts: n of them.
            options: how.
            on_batch: called before each batch with its tokens, padding included: the time limits start from there.

        Raises:
            EngineBroken: the engine fails on everything.
            Exception: a row cannot be encoded; the caller finds out which.
        """
