"""Counts over an axis whose range nobody knows before: the bins grow wider as values come in, so memory is flat."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

#: Bins of a time axis at most; after a doubling there are half as many, each some 9 px wide on the page.
MOST_TIME_BINS = 160
#: Seconds of a time bin at first; a power of two, so that all bins of one width lie on the same grid.
FIRST_TIME_BIN_S = 2.0**-6
#: Bins of a histogram of lengths at most, and tokens of such a bin at first.
MOST_LENGTH_BINS = 64
#: The relative width of a bin of seconds per chunk: quantiles are right to 2 %.
QUANTILE_STEP = 1.02


class TimeBins:
    """An amount spread over time, in bins of one width, which doubles when there are too many."""

    def __init__(self) -> None:
        self.width_s = FIRST_TIME_BIN_S
        self._amounts: dict[int, float] = {}
        self._first = self._last = 0

    def add(self, start_s: float, end_s: float, amount: float) -> None:
        """Spread an amount evenly over a stretch of time."""
        self._make_room(start_s, end_s)
        first, last = self._indexes(start_s, end_s)
        for index in range(first, last + 1):
            part = 1.0
            if first != last:
                inside_s = min(end_s, (index + 1) * self.width_s) - max(start_s, index * self.width_s)
                part = inside_s / (end_s - start_s)
            self._amounts[index] = self._amounts.get(index, 0.0) + amount * part

    def per_second(self, first_s: float, last_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges of the bins (n + 1,) and the amount per second in each (n,).

        Outer bins are cut at the first and last moment, before and after which nothing could come.
        """
        first, last = self._indexes(first_s, last_s)
        edges = np.arange(first, last + 2) * self.width_s
        edges[0], edges[-1] = first_s, max(last_s, first_s + 1e-6)
        amounts = np.array([self._amounts.get(index, 0.0) for index in range(first, last + 1)])
        widths = np.maximum(np.diff(edges), 1e-9)
        return edges, amounts / widths

    def _indexes(self, start_s: float, end_s: float) -> tuple[int, int]:
        """Return the first and the last bin of a stretch; one that ends with a bin does not touch the next."""
        first = math.floor(start_s / self.width_s)
        return first, max(first, math.ceil(end_s / self.width_s) - 1)

    def _make_room(self, start_s: float, end_s: float) -> None:
        """Double the width until the stretch fits in."""
        first, last = self._indexes(start_s, end_s)
        if self._amounts:
            first, last = min(first, self._first), max(last, self._last)
        self._first, self._last = first, last
        while self._last - self._first >= MOST_TIME_BINS:
            self.width_s *= 2
            self._first, self._last = self._first // 2, self._last // 2
            merged: dict[int, float] = {}
            for index, amount in self._amounts.items():
                merged[index // 2] = merged.get(index // 2, 0.0) + amount
            self._amounts = merged


class LengthBins:
    """How many rows have how many tokens, in bins of one width, which doubles when there are too many."""

    def __init__(self) -> None:
        self.width = 1
        self._rows = np.zeros(MOST_LENGTH_BINS, np.int64)
        self._truncated = np.zeros(MOST_LENGTH_BINS, np.int64)
        self.most = 0
        self.limit = 0

    def add(self, tokens: np.ndarray, truncated: np.ndarray) -> None:
        """Count rows: (n_rows,) tokens, and whether their text had more."""
        if not len(tokens):
            return
        self.most = max(self.most, int(tokens.max()))
        self.limit = max(self.limit, int(tokens[truncated].max(initial=0)))
        while self.most >= self.width * MOST_LENGTH_BINS:
            self.width *= 2
            self._rows, self._truncated = _halve(self._rows), _halve(self._truncated)
        bins = tokens // self.width
        self._rows += np.bincount(bins, minlength=MOST_LENGTH_BINS)
        self._truncated += np.bincount(bins[truncated], minlength=MOST_LENGTH_BINS)

    @property
    def n_rows(self) -> int:
        """All rows that were counted."""
        return int(self._rows.sum())

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the bins' first lengths (n,), their rows (n,) and their truncated rows (n,)."""
        used = self.most // self.width + 1
        return np.arange(used) * self.width, self._rows[:used], self._truncated[:used]


def _halve(counts: np.ndarray) -> np.ndarray:
    """Put two bins each into one, and empty ones behind them."""
    return np.concatenate([counts.reshape(-1, 2).sum(1), np.zeros(len(counts) // 2, counts.dtype)])


class Quantiles:
    """Positive numbers in bins of one relative width."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count a number; what is below a microsecond counts as one."""
        self._counts[round(math.log(max(value, 1e-6), QUANTILE_STEP))] += 1

    def at(self, share: float) -> float:
        """Return the number below which this share of all lies; 0 if there are none."""
        left = share * self._counts.total()
        for index in sorted(self._counts):
            left -= self._counts[index]
            if left <= 0:
                return float(QUANTILE_STEP**index)
        return 0.0

    def counts(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges (n + 1,) of at most so many bins of one relative width, and what is in each (n,)."""
        first, last = min(self._counts), max(self._counts)
        group = -(-(last - first + 1) // most)
        counts = np.zeros((last - first) // group + 1, np.int64)
        for index, count in self._counts.items():
            counts[(index - first) // group] += count
        return QUANTILE_STEP ** (first - 0.5 + group * np.arange(len(counts) + 1)), counts
