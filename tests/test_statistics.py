"""Intervals and tests of edge.measure.statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.codec import from_json, to_json
from edge.measure import statistics as stats


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (11, 0.5), (64, 0.1), (662, 0.01), (5000, 0.9)])
def test_binomial_cdf_agrees_with_scipy(n: int, p: float) -> None:
    """The sum of logarithms equals SciPy's incomplete beta function to ten digits."""
    reference = pytest.importorskip("scipy.stats").binom
    for k in {0, n // 10, n // 2, n - 1}:
        assert stats.binomial_cdf(k, n, p) == pytest.approx(float(reference.cdf(k, n, p)), rel=1e-9, abs=1e-14)


def test_binomial_cdf_ends() -> None:
    """Below 0 there is nothing and at n everything."""
    assert stats.binomial_cdf(-1, 5, 0.3) == 0.0
    assert stats.binomial_cdf(5, 5, 0.3) == 1.0


_LOADGEN = {
    0.50: {1: 11, 2: 14, 3: 17, 5: 22, 10: 35, 20: 59, 40: 105},
    0.90: {1: 64, 2: 81, 3: 97, 5: 127, 10: 197, 20: 325, 40: 565},
    0.95: {1: 130, 2: 165, 3: 198, 5: 259, 10: 398, 20: 656, 40: 1139},
    0.99: {1: 662, 2: 838, 3: 1001, 5: 1307, 10: 2010, 20: 3304, 40: 5727},
    0.999: {1: 6636, 2: 8403, 3: 10042, 5: 13105, 10: 20140, 20: 33097, 40: 57339},
}


@pytest.mark.parametrize("percentile", _LOADGEN)
def test_runs_needed_is_the_table_of_loadgen(percentile: float) -> None:
    """The fewest runs for each rank are those of LoadGen's early stopping at 99 % confidence."""
    expected = _LOADGEN[percentile]
    assert {rank: stats.runs_needed(percentile, rank=rank) for rank in expected} == expected


@pytest.mark.parametrize(
    ("runs", "ranks"),
    [(100, (3, None, None)), (200, (10, 3, None)), (500, (34, 13, None)), (1000, (78, 34, 2)), (1024, (80, 35, 3))],
)
def test_rank_of_the_estimate_is_that_of_loadgen(runs: int, ranks: tuple[int | None, ...]) -> None:
    """With q runs the t-th largest is reported, t as LoadGen allows it."""
    samples = np.arange(1.0, runs + 1)
    estimates = [stats.percentile_estimate(samples, percentile) for percentile in (0.90, 0.95, 0.99)]
    assert tuple(estimate.rank for estimate in estimates) == ranks
    for estimate in estimates:
        assert estimate.value == (None if estimate.rank is None else runs + 1 - estimate.rank)


def test_insufficient_runs_say_how_many_are_missing() -> None:
    """One run below the minimum gives no value but the number 1."""
    estimate = stats.percentile_estimate(np.ones(63), 0.90)
    assert (estimate.value, estimate.runs_missing) == (None, 1)
    assert str(estimate) == "insufficient, 1 more runs"
    assert stats.percentile_estimate([], 0.90).runs_missing == 64


_QUANTILES: dict[str, Callable[[stats.Floats], stats.Floats]] = {
    "exponential": lambda u: -np.log1p(-u),
    "log-cauchy": lambda u: np.exp(np.tan(np.pi * (u - 0.5)).clip(-50, 50)),
    "bimodal": lambda u: np.where(u < 0.93, 1 + u, 9 + u),
}


@pytest.mark.parametrize("distribution", _QUANTILES)
@pytest.mark.parametrize(("runs", "percentile"), [(64, 0.90), (200, 0.95), (1024, 0.99), (300, 0.5)])
def test_early_stopping_estimate_covers_the_true_percentile(distribution: str, runs: int, percentile: float) -> None:
    """In at least 99 % of 1000 trials the estimate is at or above the true percentile, whatever the distribution."""
    rng = np.random.default_rng(7)
    trials = _QUANTILES[distribution](rng.random((1000, runs)))
    truth = float(_QUANTILES[distribution](np.array([percentile]))[0])
    rank = stats.percentile_estimate(np.arange(runs), percentile).rank
    assert rank is not None
    estimates = np.sort(trials, axis=1)[:, runs - rank]
    assert estimates[0] == stats.percentile_estimate(trials[0], percentile).value
    assert np.mean(estimates >= truth) >= 0.99


@given(st.integers(8, 400), st.sampled_from([0.9, 0.95, 0.99]))
def test_median_interval_has_at_least_its_confidence(n: int, confidence: float) -> None:
    """The chance that both ends miss the median on one side, from the binomial, is at most 1 - confidence."""
    interval = stats.median_interval(np.arange(n), confidence=confidence)
    assert interval is not None
    assert interval.low + interval.high == n - 1
    assert 2 * stats.binomial_cdf(int(interval.low), n, 0.5) <= 1 - confidence + 1e-12
    assert 2 * stats.binomial_cdf(int(interval.low) + 1, n, 0.5) > 1 - confidence


def test_median_interval_needs_eight_samples_for_99_percent() -> None:
    """Seven samples have no such interval, eight have their whole range."""
    assert stats.median_interval(range(7)) is None
    assert stats.median_interval([]) is None
    assert stats.median_interval(range(8)) == stats.Interval(low=0, high=7, confidence=0.99)


def test_median_interval_of_equal_samples_is_a_point() -> None:
    """All samples equal: both ends are that value."""
    assert stats.median_interval([3.0] * 50) == stats.Interval(low=3, high=3, confidence=0.99)


def test_mcnemar_p_agrees_with_scipy() -> None:
    """The exact p is that of SciPy's two-sided binomial test."""
    reference = pytest.importorskip("scipy.stats").binomtest
    for lost, gained in [(0, 6), (1, 7), (5, 5), (30, 12)]:
        expected = float(reference(lost, lost + gained, 0.5).pvalue)
        assert stats.mcnemar_p(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert stats.mcnemar_p(0, 0) == 1.0


def test_no_discordance_still_leaves_an_interval() -> None:
    """Without any disagreement the interval is +- z^2 / (n + z^2): 300 samples cannot exclude 1.26 points."""
    interval = stats.paired_proportions_interval(0, 0, 300)
    bound = 1.959964**2 / (300 + 1.959964**2)
    assert [interval.low, interval.high] == pytest.approx([-bound, bound], abs=1e-6)


@given(st.integers(1, 400), st.data())
def test_paired_interval_holds_the_estimate_and_mirrors(n: int, data: st.DataObject) -> None:
    """The interval lies in [-1, 1], holds the difference, and exchanging the two sides changes only the sign."""
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    interval, mirrored = (stats.paired_proportions_interval(*pair, n) for pair in ((lost, gained), (gained, lost)))
    assert -1 <= interval.low <= (lost - gained) / n + 1e-9
    assert (lost - gained) / n - 1e-9 <= interval.high <= 1
    assert [interval.low, interval.high] == pytest.approx([-mirrored.high, -mirrored.low], abs=1e-9)


def test_paired_interval_inverts_the_score_test() -> None:
    """At both ends the score statistic, with the nuisance found by brute-force likelihood, is the normal quantile."""
    lost, gained, n = 7, 2, 40
    interval = stats.paired_proportions_interval(lost, gained, n)
    for delta, z in ((interval.low, 1.959964), (interval.high, -1.959964)):
        only_second = np.linspace(max(0, -delta), (1 - delta) / 2, 400_001)[1:-1]
        rest = 1 - delta - 2 * only_second
        likelihood = (
            lost * np.log(only_second + delta) + gained * np.log(only_second) + (n - lost - gained) * np.log(rest)
        )
        best = only_second[likelihood.argmax()]
        score = (lost - gained - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))
        assert score == pytest.approx(z, abs=1e-3)


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.05, 0.05), (0.1, 0.02), (0.02, 0.0), (0.3, 0.1)])
def test_paired_interval_covers_the_true_difference(p_lost: float, p_gained: float) -> None:
    """Summed over every possible outcome of 60 pairs, the coverage of the 95 % interval is at least 93 %."""
    n, covered = 60, 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            ways = (
                math.lgamma(n + 1)
                - math.lgamma(lost + 1)
                - math.lgamma(gained + 1)
                - math.lgamma(n - lost - gained + 1)
            )
            chance = math.exp(ways) * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** (n - lost - gained)
            if chance > 1e-9:
                interval = stats.paired_proportions_interval(lost, gained, n)
                covered += chance * (interval.low <= p_lost - p_gained <= interval.high)
    assert covered >= 0.93


def test_paired_difference_of_right_and_wrong_answers() -> None:
    """Ten losses and two gains in 100 samples: a drop of 8 points with the score interval and the exact p."""
    reference = np.array([1] * 90 + [0] * 10)
    candidate = np.array([0] * 10 + [1] * 80 + [1] * 2 + [0] * 8)
    result = stats.paired_difference(reference, candidate)
    assert [result.reference, result.candidate, result.drop] == pytest.approx([0.9, 0.82, 0.08])
    assert (result.method, result.discordant, result.samples) == ("tango-score", 12, 100)
    assert result.p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert result.low is not None
    assert result.high is not None
    assert result.low < 0.08 < result.high


def test_drop_of_an_error_measure_is_its_growth() -> None:
    """Where lower is better, a candidate with the larger error has a drop above 0."""
    result = stats.paired_difference([0.1, 0.2, 0.4], [0.2, 0.4, 0.5], higher_is_better=False)
    assert result.drop == pytest.approx(4 / 30)
    assert result.method == "bootstrap-bca"


def test_one_real_valued_sample_has_no_interval() -> None:
    """A single sample says nothing of its spread: the ends are None, and the record still goes to JSON and back."""
    result = stats.paired_difference([0.5], [0.25])
    assert (result.low, result.high, result.detectable) == (None, None, None)
    assert from_json(stats.PairedDifference, to_json(result)) == result


def test_scores_that_do_not_pair_are_refused() -> None:
    """Different counts, or none, are a mistake of the caller."""
    with pytest.raises(ValueError, match="3 and 2 scores cannot be paired"):
        stats.paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="0 and 0 scores"):
        stats.paired_difference([], [])


def test_equal_differences_give_a_point() -> None:
    """A constant difference has no spread to bootstrap."""
    interval = stats.mean_interval([0.25] * 20)
    assert interval == stats.Interval(low=0.25, high=0.25, confidence=0.95)


def test_mean_interval_agrees_with_scipys_bca() -> None:
    """On skewed data the interval is SciPy's BCa to within the bootstrap's own noise."""
    reference = pytest.importorskip("scipy.stats").bootstrap
    data = np.random.default_rng(3).exponential(size=80)
    expected = reference((data,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(5))
    interval = stats.mean_interval(data, resamples=20_000)
    assert interval is not None
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_mean_interval_covers_the_true_mean() -> None:
    """In 300 trials on skewed samples of 100 the 95 % interval covers the mean in at least 91 %."""
    rng = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        interval = stats.mean_interval(rng.exponential(size=100), resamples=500, seed=trial)
        assert interval is not None
        hits += interval.low <= 1 <= interval.high
    assert hits / 300 >= 0.91


def test_intervals_repeat_with_the_same_seed() -> None:
    """The bootstrap is seeded: two calls give the same ends, another seed gives others."""
    data = np.random.default_rng(1).normal(size=50)
    assert stats.mean_interval(data) == stats.mean_interval(data)
    assert stats.mean_interval(data) != stats.mean_interval(data, seed=1)


def test_resampled_difference_of_a_mean_is_the_plain_bootstrap() -> None:
    """For a mean, resampling the metric gives nearly the interval of the bootstrap of the differences."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(1, 1, 200), rng.normal(0.8, 1, 200)
    result = stats.paired_resampled(
        lambda rows: float(first[rows].mean()), lambda rows: float(second[rows].mean()), 200
    )
    direct = stats.paired_difference(first, second)
    assert result.drop == pytest.approx(direct.drop)
    assert [result.low, result.high] == pytest.approx([direct.low, direct.high], abs=0.03)
    assert result.detectable == pytest.approx(direct.detectable, rel=0.1)


def test_undefined_resamples_are_left_out() -> None:
    """A metric that is never defined gives no interval, and one sample gives none either."""
    undefined = stats.paired_resampled(
        lambda rows: 1.0 if rows.size == 3 and (rows == [0, 1, 2]).all() else math.nan,
        lambda rows: 0.5,
        3,
        resamples=5,
        seed=4,
    )
    assert (undefined.drop, undefined.low) == (0.5, None)
    assert stats.paired_resampled(lambda rows: 1.0, lambda rows: 0.0, 1).high is None


def test_smallest_detectable_drop_of_the_worked_number() -> None:
    """300 samples that disagree on 5 % show a drop of 3.6 points; 30000 show a tenth of that."""
    assert stats.smallest_detectable_drop(300, 0.05) == pytest.approx(0.036, abs=0.0005)
    assert stats.smallest_detectable_drop(30_000, 0.05) == pytest.approx(0.0036, abs=0.0005)


def test_smallest_detectable_drop_is_found_by_mcnemar_in_simulation() -> None:
    """McNemar's test at 5 % finds a drop of that size in 70 to 90 % of all simulated data sets."""
    n, psi = 400, 0.08
    drop = stats.smallest_detectable_drop(n, psi)
    rng = np.random.default_rng(9)
    counts = rng.multinomial(n, [(psi + drop) / 2, (psi - drop) / 2, 1 - psi], size=2000)
    found = np.mean([stats.mcnemar_p(int(lost), int(gained)) <= 0.05 for lost, gained, _ in counts])
    assert 0.70 <= found <= 0.90


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_smallest_detectable_drop_is_a_share(n: int, discordance: float) -> None:
    """It lies in (0, 1], also without any sample or discordance."""
    assert 0 < stats.smallest_detectable_drop(n, discordance) <= 1
    assert stats.smallest_detectable_drop(0, discordance) == 1


@pytest.mark.parametrize("n", [9, 10, 101])
def test_bootstrap_medians_have_the_distribution_of_drawn_resamples(n: int) -> None:
    """The medians made from order statistics of uniforms spread as those of real resamples do."""
    data = np.sort(np.random.default_rng(n).lognormal(size=n))
    drawn = np.median(data[np.random.default_rng(0).integers(n, size=(20_000, n))], axis=1)
    made = stats._bootstrap_medians(data, 20_000, np.random.default_rng(1))
    spread = float(drawn.std())
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        near = made >= np.quantile(drawn, level) - 0.02 * spread
        assert np.mean(near) >= 1 - level - 0.02
    assert made.mean() == pytest.approx(drawn.mean(), abs=0.05 * spread)
    assert made.std() == pytest.approx(spread, rel=0.05)


def test_ratio_of_medians_covers_the_true_ratio() -> None:
    """In 200 trials the 99 % interval of a true ratio of 1.1 covers it in at least 97 %."""
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        ratio = stats.ratio_of_medians(rng.gamma(20, 1, 300), 1.1 * rng.gamma(20, 1, 300), resamples=2000, seed=trial)
        hits += ratio.low <= 1.1 <= ratio.high
    assert hits / 200 >= 0.97


def test_ratio_of_medians_refuses_what_has_no_ratio() -> None:
    """Empty sides and times of 0 are refused."""
    for sides in (([], [1.0]), ([0.0, 1.0], [1.0])):
        with pytest.raises(ValueError, match="samples above 0"):
            stats.ratio_of_medians(*sides)
