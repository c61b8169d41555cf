"""A histogram that grows with what it sees: fixed memory, one pass, and the same result in any order of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BINS = 4096
# The finest bin relative to the largest magnitude: below it, float32 values are no longer told apart reliably.
_FINEST = 20


class Histogram:
    """Counts of values in bins of width 2^k whose edges are multiples of the width, so that 0 is always an edge.

    When a value falls outside, the width doubles and neighbours merge exactly: the final state depends only on the
    multiset of values. Exact minimum, maximum and the number of exact zeros are kept beside the bins.
    """

    def __init__(self, bins: int = BINS) -> None:
        self._counts = np.zeros(bins, np.int64)
        self._exponent: int | None = None
        self._start = 0
        self.low, self.high = math.inf, -math.inf
        self.count = self.zeros = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values of any shape. Raises ValueError for NaN or an infinity."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"a histogram holds finite values, not {low} to {high}")
        self._cover(min(low, self.low), max(high, self.high))
        indices = np.floor(values.reshape(-1) * np.float64(1 / self.width)).astype(np.int64) - self._start
        self._counts += np.bincount(indices, minlength=self._counts.size)
        self.count += values.size
        self.zeros += int(values.size - np.count_nonzero(values))

    @property
    def width(self) -> float:
        """The width of a bin, a power of two."""
        return math.ldexp(1.0, self._exponent or 0)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts per bin, exact zeros included."""
        return self._counts.copy()

    @property
    def counts_without_zeros(self) -> NDArray[np.int64]:
        """Counts per bin without the exact zeros, which quantization represents without an error."""
        counts = self.counts
        if self.zeros:
            counts[-self._start] -= self.zeros
        return counts

    @property
    def edges(self) -> Floats:
        """Lower edges of the bins and the upper edge of the last: one more than bins."""
        return np.asarray((self._start + np.arange(self._counts.size + 1)) * self.width)

    @property
    def centres(self) -> Floats:
        """Middles of the bins."""
        return np.asarray((self._start + np.arange(self._counts.size) + 0.5) * self.width)

    def _cover(self, low: float, high: float) -> None:
        exponent = _exponent(low, high, self._counts.size)
        if self._exponent is None:
            self._exponent = exponent
            self._start = math.floor(low / self.width)
        elif exponent > self._exponent:
            self._widen(exponent - self._exponent, low)
            self._exponent = exponent
        start = math.floor(low / self.width)
        if start < self._start or math.floor(high / self.width) >= self._start + self._counts.size:
            self._move(start)
        self.low, self.high = low, high

    def _widen(self, doublings: int, low: float) -> None:
        start = math.floor(low / math.ldexp(self.width, doublings))
        filled = np.flatnonzero(self._counts)
        merged = np.zeros_like(self._counts)
        np.add.at(merged, ((filled + self._start) >> doublings) - start, self._counts[filled])
        self._counts, self._start = merged, start

    def _move(self, start: int) -> None:
        filled = np.flatnonzero(self._counts)
        moved = np.zeros_like(self._counts)
        moved[filled + self._start - start] = self._counts[filled]
        self._counts, self._start = moved, start


def _exponent(low: float, high: float, bins: int) -> int:
    """Return the smallest k for which bins of width 2^k reach from the bin of `low` to that of `high`."""
    magnitude = max(abs(low), abs(high), 1e-30)
    exponent = math.frexp(magnitude)[1] - _FINEST
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / bins)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent
