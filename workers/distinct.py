"""Equal texts are computed once: the encoder behind this one sees each text of a call a single time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tasks.options import EncodeOptions
from tasks.ports import Computed, Encoder


class EncoderBefore:
    """An encoder that stands before another one; what it does not change, the other one says.

    Args:
        encoder: the one behind.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.weights, self.place = encoder.weights, encoder.place

    @property
    def batch_tokens(self) -> int:
        """The token budget of a batch at this moment."""
        return self._encoder.batch_tokens

    def check(self, options: EncodeOptions) -> str | None:
        """Say in one sentence why the model cannot serve these options, or return None."""
        return self._encoder.check(options)

    def dim(self, options: EncodeOptions) -> int:
        """Return the length of a vector under these options."""
        return self._encoder.dim(options)


class DistinctEncoder(EncoderBefore):
    """Computes each text of a call once, and gives every row that has it the same result, errors included.

    A row counts the tokens of its text, whoever computed it; ``padded_tokens`` counts what went through the model.
    """

    def encode(
        self, texts: Sequence[str], options: EncodeOptions, on_batch: Callable[[int], None] = lambda _: None
    ) -> Computed:
        """Encode texts in their order."""
        places: dict[str, int] = {}
        rows = [places.setdefault(text, len(places)) for text in texts]  # (n_rows,) the place of each row's text
        if len(places) == len(rows):
            return self._encoder.encode(texts, options, on_batch)
        encoded = self._encoder.encode(list(places), options, on_batch)
        return replace(encoded.take(rows), duplicate_rows=len(rows) - len(places))
