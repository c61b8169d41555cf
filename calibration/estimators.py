"""Estimators of activation ranges that cut off outliers: moving average, percentile, least squared error, entropy.

All stream: one value at most per bin of a growing histogram and tensor is kept, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge.calibration.histogram import Histogram
from edge.calibration.ranges import NonFiniteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Limits = tuple[float, float]
PERCENTILE = 99.99
LEVELS = 255
_DECAY = 0.95
# Thresholds tried by mse: fractions of the extreme value, 16 per octave down to 1/64.
_FRACTIONS = 2.0 ** (-np.arange(97) / 16)
_ENTROPY_FRACTIONS = np.linspace(1.0, 0.04, 97)
_ROUNDS = 3


class MovingAverage:
    """Exponential average of each sample's smallest and largest value, decay 0.95: TensorFlow's fake-quantization rule.

    It clips what single samples reach, and depends on the order of the samples.
    """

    name = "moving-average"
    passes = 1

    def __init__(self) -> None:
        self._limits: dict[str, Limits] = {}

    def start_pass(self, number: int) -> None:
        """Need nothing."""

    def update(self, tensor: str, values: NDArray[np.float32]) -> None:
        """Move the tensor's interval towards the sample's; raise NonFiniteError for NaN or an infinity."""
        if values.size == 0:
            return
        found = float(values.min()), float(values.max())
        for value in found:
            if not np.isfinite(value):
                raise NonFiniteError(tensor, value)
        low, high = self._limits.get(tensor, found)
        self._limits[tensor] = (_DECAY * low + (1 - _DECAY) * found[0], _DECAY * high + (1 - _DECAY) * found[1])

    def limits(self) -> dict[str, Limits]:
        """Return the averaged interval of every tensor seen."""
        return dict(self._limits)


class Histograms:
    """An estimator that keeps one growing histogram per tensor and derives the interval from it at the end."""

    passes = 1

    def __init__(self, name: str, rule: Callable[[Histogram], Limits]) -> None:
        self.name = name
        self._rule = rule
        self._histograms: dict[str, Histogram] = {}

    def start_pass(self, number: int) -> None:
        """Need nothing."""

    def update(self, tensor: str, values: NDArray[np.float32]) -> None:
        """Count the values; raise NonFiniteError for NaN or an infinity."""
        try:
            self._histograms.setdefault(tensor, Histogram()).add(values)
        except ValueError:
            bad = values[~np.isfinite(values)]
            raise NonFiniteError(tensor, float(bad.reshape(-1)[0])) from None

    def limits(self) -> dict[str, Limits]:
        """Return the interval of every tensor seen, by the rule."""
        return self.limits_by(self._rule)

    def limits_by(self, rule: Callable[[Histogram], Limits]) -> dict[str, Limits]:
        """Return the interval of every tensor seen, by another rule."""
        return {name: rule(h) for name, h in self._histograms.items() if h.count}


def percentile_limits(histogram: Histogram, percentile: float = PERCENTILE) -> Limits:
    """Return the interval outside of which lie at most 100 - `percentile` per cent of the values at either end.

    Interpolated linearly within a bin, never wider than the data. Worked number: the integers 0 to 10000 at 99 % ->
    about [100, 9900].
    """
    counts, edges = histogram.counts, histogram.edges
    reached = np.concatenate([[0], np.cumsum(counts)]) / histogram.count
    tail = 1 - percentile / 100

    def at(share: float, *, upper: bool) -> float:
        # The bin in which the share is passed; empty bins before or after it must not take part in interpolating.
        found = int(np.searchsorted(reached, share, side="left" if upper else "right"))
        place = min(max(found, 1), counts.size)
        size = reached[place] - reached[place - 1]
        inside = (share - reached[place - 1]) / size if size > 0 else float(upper)
        return float(edges[place - 1] + np.clip(inside, 0, 1) * histogram.width)

    low = max(histogram.low, at(tail, upper=False))
    high = min(histogram.high, at(1 - tail, upper=True))
    return (low, high) if low <= high else (histogram.low, histogram.high)


class _Tail:
    """Sums of the values of one sign, by which the squared error of cutting them off at t is one look-up.

    sum of c (x - t)^2 over x > t  =  S2 - 2 t S1 + t^2 S0, with suffix sums S over the bins above t.
    """

    def __init__(self, magnitudes: Floats, counts: NDArray[np.int64]) -> None:
        order = np.argsort(magnitudes)
        self._x = magnitudes[order]
        c = counts[order].astype(np.float64)
        self._sums = [np.append(np.cumsum((c * self._x**p)[::-1])[::-1], 0.0) for p in range(3)]

    def error(self, thresholds: Floats) -> Floats:
        """Return the sum of squared errors for each threshold, and 0 where nothing lies above."""
        place = np.searchsorted(self._x, thresholds, side="right")
        s0, s1, s2 = (s[place] for s in self._sums)
        return np.asarray(np.maximum(s2 - 2 * thresholds * s1 + thresholds**2 * s0, 0.0))

    def within(self, thresholds: Floats) -> Floats:
        """Return how many values lie at or below each threshold."""
        return np.asarray(self._sums[0][0] - self._sums[0][np.searchsorted(self._x, thresholds, side="right")])


def mse_limits(histogram: Histogram, levels: int = LEVELS) -> Limits:
    """Return the interval with the least expected squared error of quantizing to `levels` steps.

    Error = step^2 / 12 for each value inside (exact zeros have none) + the squared distance of each value outside;
    minimised over both ends in turn. 97 thresholds per end, 3 rounds.
    """
    centres, counts = histogram.centres, histogram.counts_without_zeros
    above = _Tail(centres[centres > 0], counts[centres > 0])
    below = _Tail(-centres[centres < 0], counts[centres < 0])
    tops, bottoms = max(histogram.high, 0.0) * _FRACTIONS, max(-histogram.low, 0.0) * _FRACTIONS
    top, bottom = tops[:1], bottoms[:1]

    def cost(high: Floats, low: Floats) -> Floats:
        inside = above.within(high) + below.within(low)
        return np.asarray(inside * ((high + low) / levels) ** 2 / 12 + above.error(high) + below.error(low))

    for _ in range(_ROUNDS):
        top = tops[[int(np.argmin(cost(tops, bottom)))]]
        bottom = bottoms[[int(np.argmin(cost(top, bottoms)))]]
    return _narrowed(histogram, -float(bottom[0]), float(top[0]))


def entropy_limits(histogram: Histogram, levels: int = LEVELS) -> Limits:
    """Return the interval whose quantized distribution tells least from the values': the smallest KL divergence.

    P are the counts inside with the outliers added to the outermost bins, Q the same after merging the bins of each of
    `levels` steps (Migacz, 8-bit inference with TensorRT, GTC 2017); both ends shrink by the same factor. Exact zeros
    are left out.
    """
    counts, centres = histogram.counts_without_zeros, histogram.centres
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    best, chosen = np.inf, 1.0
    for fraction in _ENTROPY_FRACTIONS:
        divergence = _divergence(counts, centres, low * fraction, high * fraction, levels)
        if divergence is None:
            break
        if divergence < best:
            best, chosen = divergence, float(fraction)
    return _narrowed(histogram, low * chosen, high * chosen)


def _divergence(counts: NDArray[np.int64], centres: Floats, low: float, high: float, levels: int) -> float | None:
    inside = np.flatnonzero((centres >= low) & (centres <= high))
    if inside.size < 2 * levels or counts[inside].sum() == 0:
        return None  # too few bins per step to tell distributions apart
    real = counts[inside].astype(np.float64)
    target = real.copy()
    target[0] += counts[: inside[0]].sum()
    target[-1] += counts[inside[-1] + 1 :].sum()
    step = np.minimum((np.arange(inside.size) * levels) // inside.size, levels - 1)
    filled = real > 0
    mass = np.bincount(step, weights=real, minlength=levels)
    share = np.bincount(step, weights=filled, minlength=levels)
    flat = np.where(filled, (mass / np.maximum(share, 1))[step], 0.0)
    p, q = target / target.sum(), np.maximum(flat / real.sum(), 1e-12)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / q[used])))


def _narrowed(histogram: Histogram, low: float, high: float) -> Limits:
    """Keep the interval within the data, where it is not empty then."""
    narrow = max(low, histogram.low), min(high, histogram.high)
    return narrow if narrow[0] <= narrow[1] else (histogram.low, histogram.high)


def rule_of(name: str, *, percentile: float = PERCENTILE, levels: int = LEVELS) -> Callable[[Histogram], Limits]:
    """Return the function from histogram to interval of a histogram estimator; raise KeyError for another name."""
    rules: dict[str, Callable[[Histogram], Limits]] = {
        "percentile": lambda h: percentile_limits(h, percentile),
        "mse": lambda h: mse_limits(h, levels),
        "entropy": lambda h: entropy_limits(h, levels),
    }
    return rules[name]
