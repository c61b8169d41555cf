"""Intervals and tests: paired differences, order statistics, percentiles by early stopping, ratios of medians.

Nothing here assumes a distribution of the samples, only that they are independent. No SciPy at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["tango-score", "bootstrap-bca", "bootstrap-percentile"]

RESAMPLES = 2000
_BLOCK = 4_000_000  # indices drawn at once: 32 MB
_DEEP = 12.0  # standard deviations below the mean, where a binomial tail is under 1e-30


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, in the unit of the samples."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class PercentileEstimate:
    """An upper estimate of a percentile that holds with `confidence`, or the number of runs still missing.

    `value` is None where `runs` are insufficient; `rank` is the place of the value from the top (1 is the largest).
    """

    percentile: float
    value: float | None
    confidence: float
    runs: int
    rank: int | None
    runs_missing: int

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.value is not None else f"insufficient, {self.runs_missing} more runs"


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """What a candidate loses against a reference on the same samples; `drop` above 0 means that it is worse.

    `low` and `high` bound the drop; they are None where there are too few samples to say. `p_value` is McNemar's
    exact one and `discordant` the number of samples on which only one of the two was right; both only for 0/1 scores.
    `detectable` is the smallest drop that as many samples would show in 80 % of all cases.
    """

    reference: float
    candidate: float
    drop: float
    low: float | None
    high: float | None
    confidence: float
    samples: int
    method: Method
    p_value: float | None = None
    discordant: int | None = None
    detectable: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ratio of two medians, candidate over reference, with its interval."""

    ratio: float
    low: float
    high: float
    confidence: float


def _log_pmf(k: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(p) + (n - k) * math.log1p(-p)


def _cumulated(n: int, p: float, start: int, stop: int) -> Floats:
    """Return P(start <= X <= k) for k from `start` to `stop`, X ~ Binomial(n, p)."""
    return np.cumsum(np.exp([_log_pmf(k, n, p) for k in range(start, stop + 1)]))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p), 0 < p < 1, with terms summed from their logarithms."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else min(1.0, float(_cumulated(n, p, 0, k)[-1]))


def _largest_with_cdf_below(n: int, p: float, bound: float) -> int:
    """Return the largest k with P(X <= k) <= bound for X ~ Binomial(n, p) and bound < 0.4; -1 where there is none."""
    mean = n * p
    start = max(0, math.floor(mean - _DEEP * math.sqrt(mean * (1 - p)) - 1))
    cdf = _cumulated(n, p, start, min(n, math.ceil(mean)))
    return start + int(np.searchsorted(cdf, bound, side="right")) - 1


def median_interval(samples: ArrayLike, *, confidence: float = 0.99) -> Interval | None:
    """Return the distribution-free interval of the median, or None where there are too few samples (8 for 99 %).

    The ends are the l-th smallest and the l-th largest value, with the largest l for which
    P(Binomial(n, 1/2) < l) <= (1 - confidence) / 2 (David and Nagaraja, Order Statistics, section 7.1).
    """
    ordered = np.sort(np.asarray(samples, np.float64).ravel())
    if not ordered.size:
        return None
    below = _largest_with_cdf_below(ordered.size, 0.5, (1 - confidence) / 2)
    if below < 0:
        return None
    return Interval(low=float(ordered[below]), high=float(ordered[ordered.size - 1 - below]), confidence=confidence)


def runs_needed(percentile: float, *, rank: int = 1, confidence: float = 0.99) -> int:
    """Return the fewest runs after which the `rank`-th largest may be reported: the smallest n >= rank
    with P(Binomial(n, 1 - percentile) <= rank) <= 1 - confidence. Worked number: 0.90 and rank 1 -> 64.
    """
    high = rank + 1
    while binomial_cdf(rank, high, 1 - percentile) > 1 - confidence:
        high *= 2
    low = rank
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_cdf(rank, middle, 1 - percentile) <= 1 - confidence else (middle, high)
    return high


def percentile_estimate(samples: ArrayLike, percentile: float, *, confidence: float = 0.99) -> PercentileEstimate:
    """Return the early-stopping estimate of a percentile as MLPerf's LoadGen makes it (tolerance 0).

    It is the t-th largest sample, with the largest t >= 1 for which the runs suffice (see `runs_needed`); it is at or
    above the true percentile with at least `confidence`. `percentile` is a share, 0.9 for the 90th.
    """
    values = np.asarray(samples, np.float64).ravel()
    # P(X <= t) falls as n grows, so "n(t) <= runs" and "P(X <= t) <= 1 - c at n = runs" are the same condition.
    rank = _largest_with_cdf_below(values.size, 1 - percentile, 1 - confidence) if values.size else -1
    enough = rank >= 1
    return PercentileEstimate(
        percentile=percentile,
        value=float(np.partition(values, values.size - rank)[values.size - rank]) if enough else None,
        confidence=confidence,
        runs=values.size,
        rank=rank if enough else None,
        runs_missing=0 if enough else runs_needed(percentile, confidence=confidence) - values.size,
    )


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two discordant counts."""
    discordant = first_only + second_only
    return min(1.0, 2 * binomial_cdf(min(first_only, second_only), discordant, 0.5)) if discordant else 1.0


def _tango_score(delta: float, lost: int, gained: int, n: int) -> float:
    """Return the score statistic of the hypothesis `difference of proportions = delta`."""
    b = -lost - gained + (2 * n - lost + gained) * delta
    c = -gained * delta * (1 - delta)
    restricted = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * restricted + delta * (1 - delta))
    distance = lost - gained - n * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def paired_proportions_interval(lost: int, gained: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return the score interval of the difference of two paired proportions, (lost - gained) / n.

    `lost` counts samples that only the first got right, `gained` those that only the second did. It does not shrink
    to a point without discordance: 0, 0 of 300 -> +-0.0126. Source: Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    difference = (lost - gained) / n
    low = _falling_root(lambda d: _tango_score(d, lost, gained, n) - z, -1.0, difference)
    high = _falling_root(lambda d: _tango_score(d, lost, gained, n) + z, difference, 1.0)
    return Interval(low=low, high=high, confidence=confidence)


def smallest_detectable_drop(n: int, discordance: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest drop of a proportion that n paired samples show with `power`, at most 1.

    `discordance` is the share of samples on which exactly one of the two is right. Solves Connor's sample size formula
    n d^2 = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 for d, with psi = max(discordance, d) (Biometrics 43, 1987, 207).
    Worked number: n = 300, discordance 0.05 -> 0.036.
    """
    if n < 1:
        return 1.0
    normal = NormalDist()
    z_alpha, z_beta = normal.inv_cdf((1 + confidence) / 2), normal.inv_cdf(power)

    def missing(drop: float) -> float:
        psi = max(discordance, drop)
        return z_alpha * math.sqrt(psi) + z_beta * math.sqrt(psi - drop * drop) - math.sqrt(n) * drop

    return 1.0 if missing(1.0) > 0 else _falling_root(missing, 0.0, 1.0)


def _detectable(standard_error: float, confidence: float) -> float:
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(0.8)) * standard_error


def _index_blocks(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(n, size=(min(rows, resamples - start), n))


def _bca_levels(values: Floats, replicates: Floats, confidence: float) -> tuple[float, float]:
    """Return the two bias-corrected and accelerated levels for the mean (Efron, JASA 82 (1987) 171-185)."""
    normal = NormalDist()
    below = np.mean(replicates < values.mean()) + np.mean(replicates == values.mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * replicates.size), 1 - 1 / (2 * replicates.size))))
    centred = values - values.mean()
    acceleration = float(np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5))

    def level(tail: float) -> float:
        shifted = bias + normal.inv_cdf(tail)
        return normal.cdf(bias + shifted / (1 - acceleration * shifted))

    return level((1 - confidence) / 2), level((1 + confidence) / 2)


def mean_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the BCa bootstrap interval of a mean; None below 2 values, a point where all values are equal."""
    data = np.asarray(values, np.float64).ravel()
    if data.size < 2:
        return None
    if np.all(data == data[0]):
        return Interval(low=float(data[0]), high=float(data[0]), confidence=confidence)
    replicates = np.concatenate([data[rows].mean(axis=1) for rows in _index_blocks(data.size, resamples, seed)])
    low, high = np.quantile(replicates, _bca_levels(data, replicates, confidence))
    return Interval(low=float(low), high=float(high), confidence=confidence)


def paired_difference(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compare the scores of two programs on the same samples; raise ValueError where counts differ or are 0.

    Scores of only 0 and 1 take Tango's score interval and McNemar's exact p, others a BCa bootstrap of the mean.
    """
    first, second = np.asarray(reference, np.float64).ravel(), np.asarray(candidate, np.float64).ravel()
    if first.size != second.size or not first.size:
        raise ValueError(f"{first.size} and {second.size} scores cannot be paired")
    losses = first - second if higher_is_better else second - first
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        return _paired_proportions(first, second, losses, confidence)
    interval = mean_interval(losses, confidence=confidence, resamples=resamples, seed=seed)
    return PairedDifference(
        reference=float(first.mean()),
        candidate=float(second.mean()),
        drop=float(losses.mean()),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        confidence=confidence,
        samples=first.size,
        method="bootstrap-bca",
        detectable=_detectable(float(losses.std(ddof=1)) / math.sqrt(first.size), confidence) if interval else None,
    )


def _paired_proportions(first: Floats, second: Floats, losses: Floats, confidence: float) -> PairedDifference:
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    interval = paired_proportions_interval(lost, gained, losses.size, confidence=confidence)
    return PairedDifference(
        reference=float(first.mean()),
        candidate=float(second.mean()),
        drop=float(losses.mean()),
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        samples=losses.size,
        method="tango-score",
        p_value=mcnemar_p(lost, gained),
        discordant=lost + gained,
        detectable=smallest_detectable_drop(losses.size, (lost + gained) / losses.size, confidence=confidence),
    )


def paired_resampled(
    reference: Callable[[NDArray[np.int64]], float],
    candidate: Callable[[NDArray[np.int64]], float],
    samples: int,
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compare two programs by a metric that is no mean over samples, by a paired percentile bootstrap.

    Each callable gives its metric over the samples at the given indices (with repetitions), or NaN where it is not
    defined there (a resample of one class only); such resamples are left out.
    """
    whole = np.arange(samples)
    sign = 1 if higher_is_better else -1
    values = reference(whole), candidate(whole)
    draws = (row for rows in _index_blocks(samples, resamples, seed) for row in rows) if samples > 1 else ()
    replicates = np.array([sign * (reference(row) - candidate(row)) for row in draws], np.float64)
    replicates = replicates[np.isfinite(replicates)]
    low, high = (
        np.quantile(replicates, ((1 - confidence) / 2, (1 + confidence) / 2)) if replicates.size else (None, None)
    )
    return PairedDifference(
        reference=values[0],
        candidate=values[1],
        drop=sign * (values[0] - values[1]),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        confidence=confidence,
        samples=samples,
        method="bootstrap-percentile",
        detectable=_detectable(float(replicates.std()), confidence) if replicates.size else None,
    )


def _bootstrap_medians(ordered: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return medians of bootstrap resamples without drawing them.

    A resample is ordered[floor(n U)] with n uniform U, so its m-th smallest value is ordered[floor(n U_(m))] with
    U_(m) ~ Beta(m, n + 1 - m), and the next uniform lies above by (1 - U_(m)) Beta(1, n - m).
    """
    n = ordered.size
    m = (n + 1) // 2
    uniform = rng.beta(m, n + 1 - m, resamples)
    lower = ordered[np.minimum((n * uniform).astype(np.int64), n - 1)]
    if n % 2:
        return lower
    above = uniform + (1 - uniform) * rng.beta(1, n - m, resamples)
    return (lower + ordered[np.minimum((n * above).astype(np.int64), n - 1)]) / 2


def ratio_of_medians(
    reference: Sequence[float] | NDArray[Any],
    candidate: Sequence[float] | NDArray[Any],
    *,
    confidence: float = 0.99,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """Return median(candidate) / median(reference) with a percentile bootstrap interval.

    Raises ValueError where a side is empty or has values not above 0.
    """
    first, second = (np.sort(np.asarray(side, np.float64).ravel()) for side in (reference, candidate))
    if not first.size or not second.size or first[0] <= 0 or second[0] <= 0:
        raise ValueError("a ratio of medians needs samples above 0 on both sides")
    rng = np.random.default_rng(seed)
    replicates = _bootstrap_medians(second, resamples, rng) / _bootstrap_medians(first, resamples, rng)
    low, high = np.quantile(replicates, ((1 - confidence) / 2, (1 + confidence) / 2))
    ratio = float(np.median(second) / np.median(first))
    return Ratio(ratio=ratio, low=float(low), high=float(high), confidence=confidence)
