"""What the task bodies ask of an engine. Engines live in workers/engines and know nothing of tasks or queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from tasks.options import EncodeOptions, ScoreOptions

O_contra = TypeVar("O_contra", contravariant=True)


class Passage(NamedTuple):
    """A row of an encoding job.

    Attributes:
        text: what is encoded.
        language: that its record names; empty where it names none.
    """

    text: str
    language: str = ""


class Pair(NamedTuple):
    """A row of a scoring job."""

    query: str
    document: str


@dataclass
class Computed:
    """What an engine made of n rows, in their order.

    Attributes:
        values: (n, dim) float32: vectors, or scores with a dim of 1; the rows with an error hold zeros. All are finite:
            a row for which the model gives something else is one with an error.
        n_tokens: (n,) tokens fed to the model, special tokens included.
        truncated: (n,) bool: the row had more tokens than were fed.
        errors: a sentence per row that has no value, else None.
        padded_tokens: tokens that went through the model, padding included.
        duplicate_rows: rows that took the value of an equal row.
        cached_rows: rows whose value came from the cache.
        memory_splits: batches that were halved because the device had no memory for them.
        tokenise_s: seconds of tokenising.
        model_s: seconds in the model; tokenising may overlap with them.
    """

    values: np.ndarray
    n_tokens: np.ndarray
    truncated: np.ndarray
    errors: list[str | None] = field(default_factory=list)
    padded_tokens: int = 0
    duplicate_rows: int = 0
    cached_rows: int = 0
    memory_splits: int = 0
    tokenise_s: float = 0.0
    model_s: float = 0.0

    def take(self, rows: Sequence[int]) -> Computed:
        """Return these rows, in this order; a row may be there several times."""
        return replace(
            self,
            values=self.values[rows],
            n_tokens=self.n_tokens[rows],
            truncated=self.truncated[rows],
            errors=[self.errors[row] for row in rows],
        )


class Engine(Protocol[O_contra]):
    """One loaded model on one device inside one process."""

    #: Content fingerprint of the loaded weights: two slots with the same one give the same values.
    weights: str
    #: The device and the libraries: with the weights, what the bits of a reproducible value depend on.
    place: str

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch at this moment."""

    def check(self, options: O_contra) -> str | None:
        """Say in one sentence why this model cannot serve these options, or return None.

        With a ``language_field``, whether it takes languages at all; each language is asked about before its rows.
        """

    def dim(self, options: O_contra) -> int:
        """Return the length of a vector under these options; 1 if the engine gives scores."""


class Encoder(Engine["EncodeOptions"], Protocol):
    """An engine that makes vectors of texts."""

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order.

        Args:
            texts: n of them.
            options: how. All texts are of its ``language``; ``language_field`` is None.
            on_batch: called before each batch with its tokens, padding included: the time limits start from there.

        Raises:
            EngineBroken: the engine fails on everything.
            Exception: a row cannot be encoded; the caller finds out which.
        """


class Scorer(Engine["ScoreOptions"], Protocol):
    """An engine that gives pairs of query and document a score; a higher one is more relevant."""

    def score(
        self, pairs: Sequence[Pair], options: ScoreOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Score pairs in their order; the arguments and errors are those of ``Encoder.encode``."""
