"""An encoder that remembers what it was asked, for tests of what stands before encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.options import EncodeOptions
from tasks.ports import Computed
from tasks.settings import Settings
from workers.engines.fake import FakeEncoder


class CountingEncoder:
    """The fake engine with 4 dimensions and 3 tokens, which keeps the texts that it saw and the results that it made.

    A text with ``!bad`` in it has an error, one with ``!raise`` fails the call.
    """

    def __init__(self, weights: str = "weights-1") -> None:
        self._fake = FakeEncoder("fake:dim=4,limit=3", Settings(max_batch_tokens=1000))
        self.weights, self.place = weights, "a CPU"
        self.batch_tokens = 1000
        self.seen: list[str] = []
        self.made: list[Computed] = []

    def check(self, options: EncodeOptions) -> str | None:
        """Say what the fake engine says."""
        return self._fake.check(options)

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector."""
        return self._fake.dim(options)

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order."""
        if any("!raise" in text for text in texts):
            raise RuntimeError("a row asked for this")
        self.seen += texts
        encoded = self._fake.encode(texts, options, on_batch)
        for row, text in enumerate(texts):
            if "!bad" in text:
                encoded.errors[row] = f"bad as it has {len(text)} characters"
                encoded.values[row] = 0.0
        self.made.append(encoded)
        return encoded


def assert_same_rows(one: Computed, other: Computed) -> None:
    """Compare what two encoders made of the same texts, to the bit."""
    np.testing.assert_array_equal(one.values, other.values)
    assert one.values.dtype == other.values.dtype == np.float32
    assert one.n_tokens.tolist() == other.n_tokens.tolist()
    assert one.truncated.tolist() == other.truncated.tolist()
    assert one.errors == other.errors
