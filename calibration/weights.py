"""Steps of int8 weights: by the largest weight of a channel, or with the least squared error, clipping included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LIMIT = 127
# Thresholds tried: fractions of the largest weight. Below a third, clipping costs far more than finer steps gain.
_FRACTIONS = np.linspace(1.0, 0.33, 68)


def mse_thresholds(weights: Floats) -> Floats:
    """Return per row of weights [C, K] the magnitude to clip at, [C]: the one whose int8 steps err least.

    Error = sum (w - t/127 clip(round(127 w / t), -127, 127))^2 over the row, for 68 thresholds t from max |w| down to a
    third of it; the largest of equals.
    Worked numbers: a row whose weights are all of one magnitude keeps it; one of 1,000 weights uniform in +-1 and one
    of 3 is clipped near 2.
    """
    peaks = np.abs(weights).max(axis=1, initial=0.0)
    best, chosen = np.full(len(weights), np.inf), peaks.copy()
    for fraction in _FRACTIONS:
        tried = peaks * fraction
        step = np.maximum(tried, 1e-30)[:, None] / LIMIT
        error = ((weights - np.clip(np.round(weights / step), -LIMIT, LIMIT) * step) ** 2).sum(axis=1)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, tried, chosen)
    return np.asarray(chosen)
