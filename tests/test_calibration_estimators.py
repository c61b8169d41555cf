"""Range estimators: growing histograms and the intervals derived from them."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge.calibration import estimators, quality, ranges
from edge.calibration import recipe as recipes
from edge.calibration.histogram import Histogram
from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.signature import Quantization, TensorSpec

FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
ARRAYS = arrays(np.float32, st.integers(1, 40), elements=FINITE)


def _histogram(*parts: Any, bins: int = 4096) -> Histogram:
    made = Histogram(bins)
    for part in parts:
        made.add(np.asarray(part, np.float32))
    return made


@settings(max_examples=200, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_histogram_does_not_depend_on_the_order(parts: list[Any], random: Any) -> None:
    """The same values in another order and grouping give the same bins, and no value is lost."""
    shuffled = list(np.concatenate(parts))
    random.shuffle(shuffled)
    first, second = _histogram(*parts, bins=64), _histogram(*[[v] for v in shuffled], bins=64)
    assert first.width == second.width
    assert dict(_filled(first)) == dict(_filled(second))
    assert int(first.counts.sum()) == first.count == len(shuffled)


def _filled(histogram: Histogram) -> list[tuple[float, int]]:
    return [(float(e), int(c)) for e, c in zip(histogram.edges[:-1], histogram.counts, strict=True) if c]


@settings(max_examples=100, deadline=None)
@given(ARRAYS)
def test_histogram_counts_each_value_in_its_bin(values: Any) -> None:
    """Each bin holds exactly the values from its lower edge up to its upper one; minimum and maximum are exact."""
    made = _histogram(values, bins=64)
    assert (made.low, made.high) == (float(values.min()), float(values.max()))
    for edge, count in _filled(made):
        inside = (values.astype(np.float64) >= edge) & (values.astype(np.float64) < edge + made.width)
        assert int(inside.sum()) == count


def test_histogram_refuses_what_is_not_finite() -> None:
    """NaN and infinities do not enter a histogram; an empty array changes nothing."""
    made = _histogram([1.0], [])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            made.add(np.asarray([bad], np.float32))
    assert made.count == 1


def test_histogram_memory_does_not_grow_with_the_data() -> None:
    """10,000 arrays (2.5 MB) pass through less than 0.3 MB, as 100 do: the state is the bins."""

    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        made = estimators.Histograms("mse", estimators.mse_limits)
        tracemalloc.start()
        for _ in range(count):
            made.update("t", rng.standard_normal(64).astype(np.float32))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert max(peak(100), peak(10_000)) < 300_000


@settings(max_examples=100, deadline=None)
@given(ARRAYS, st.sampled_from(["percentile", "mse", "entropy"]), st.floats(60, 100))
def test_intervals_lie_within_the_data(values: Any, name: str, percentile: float) -> None:
    """No estimator represents more than was seen, and every interval is one."""
    low, high = estimators.rule_of(name, percentile=percentile)(_histogram(values))
    assert values.min() <= low <= high <= values.max()


@settings(max_examples=50, deadline=None)
@given(st.floats(90, 99.99), st.integers(0, 2**32 - 1))
def test_percentile_agrees_with_sorting(percentile: float, seed: int) -> None:
    """The interpolated percentile cuts off the share that it says at both ends, to one bin."""
    values = np.random.default_rng(seed).normal(1.0, 2.0, 5000).astype(np.float32)
    made = _histogram(values)
    low, high = estimators.percentile_limits(made, percentile)
    tail, width = 1 - percentile / 100, made.width
    assert np.mean(values < low - width) <= tail <= np.mean(values <= low + width)
    assert np.mean(values > high + width) <= tail <= np.mean(values >= high - width)


def test_percentile_100_is_the_whole_range() -> None:
    """The 100th percentile cuts nothing off."""
    values = np.random.default_rng(0).standard_normal(1000)
    made = _histogram(values)
    assert estimators.percentile_limits(made, 100.0) == (made.low, made.high)


def _mse(values: Any, low: float, high: float) -> float:
    """Return the squared error of the quantizer that the int8 kernels use, for real."""
    step = (high - low) / 255
    quantized = np.clip(np.round((values - low) / step), 0, 255) * step + low
    return float(np.mean((quantized - values) ** 2))


@pytest.mark.parametrize("outlier", [8.0, 40.0, 400.0])
def test_mse_beats_minmax_with_outliers(outlier: float) -> None:
    """With one outlier among 100,000 values, the mse interval has a smaller real quantization error than min/max."""
    values = np.append(np.random.default_rng(0).standard_normal(100_000), outlier).astype(np.float32)
    made = _histogram(values)
    low, high = estimators.mse_limits(made)
    assert high < outlier
    assert _mse(values, low, high) < _mse(values, made.low, made.high)


def test_mse_is_near_the_best_interval_of_a_normal_distribution() -> None:
    """The interval's real error is within 2 % of the best one that a fine grid search over both ends finds."""
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    found = _mse(values, *estimators.mse_limits(_histogram(values)))
    grid = np.linspace(1.5, 4.5, 40)
    assert found < 1.02 * min(_mse(values, -a, b) for a in grid for b in grid)


def test_mse_keeps_a_range_that_is_used_evenly() -> None:
    """Values spread evenly lose nothing to clipping: the interval is the data's, to a step of the search."""
    low, high = estimators.mse_limits(_histogram(np.linspace(-1, 1, 10_001)))
    assert low == pytest.approx(-1, rel=0.05)
    assert high == pytest.approx(1, rel=0.05)


def test_entropy_cuts_off_a_thin_tail() -> None:
    """A distribution with a long thin tail loses its tail, one that fills its range keeps it."""
    rng = np.random.default_rng(0)
    long = np.abs(rng.standard_t(2, 50_000))
    assert estimators.entropy_limits(_histogram(long))[1] < 0.5 * long.max()
    assert estimators.entropy_limits(_histogram(rng.uniform(0, 1, 50_000)))[1] > 0.9


def test_moving_average_follows_tensorflow() -> None:
    """Decay 0.95 from the first sample's extremes on: 0.95 * 1 + 0.05 * 3 = 1.1."""
    made = estimators.MovingAverage()
    made.update("t", np.asarray([-1.0, 1.0], np.float32))
    made.update("t", np.asarray([-1.0, 3.0], np.float32))
    assert made.limits()["t"] == pytest.approx((-1.0, 1.1))


@pytest.mark.parametrize("name", ranges.NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_estimators_name_the_tensor_that_is_not_finite(name: str, bad: float) -> None:
    """Every estimator refuses NaN and infinity with the tensor's name."""
    made = ranges.estimator(name)
    with pytest.raises(ranges.NonFiniteError) as error:
        made.update("layer", np.asarray([0.0, bad], np.float32))
    assert error.value.tensor == "layer"


@pytest.mark.parametrize("name", ranges.NAMES)
def test_estimators_take_constants_and_empty_tensors(name: str) -> None:
    """A constant tensor has its value as interval, an empty one has none."""
    made = ranges.estimator(name)
    made.update("constant", np.full((3, 2), 5.0, np.float32))
    made.update("zero", np.zeros(4, np.float32))
    made.update("empty", np.zeros((0, 2), np.float32))
    assert made.limits() == {"constant": (5.0, 5.0), "zero": (0.0, 0.0)}


def test_unknown_estimator_is_refused_with_the_names() -> None:
    """The refusal lists what there is."""
    with pytest.raises(QuantizationError, match="minmax, moving-average, percentile, mse, entropy"):
        ranges.estimator("median")


@pytest.mark.parametrize(
    "name",
    [
        "int8-percentile",
        "int8-percentile-99.9",
        "int8-mse",
        "int8x16-entropy",
        "int8-moving-average",
        "int8-per-tensor-mse-tuned-equalized-corrected",
        "int8-tuned",
        "int8-moving-average-aeq",
        "weight-only-4",
    ],
)
def test_recipe_names_are_read_back(name: str) -> None:
    """The short name of a recipe names that recipe again."""
    assert recipes.named(name).name == name
    assert recipes.named(name).kind in recipes.NAMES


@pytest.mark.parametrize(
    "name", ["int8-median", "dynamic-mse", "int8-99.9", "int8-percentile-30", "int8-mse-99", "mse"]
)
def test_recipe_names_that_mean_nothing_are_refused(name: str) -> None:
    """Unknown estimators, schemes without activation ranges, and percentiles of nothing are errors."""
    with pytest.raises(ValueError, match=r"accepted|no activation ranges"):
        recipes.named(name)


def test_wide_activations_have_more_levels() -> None:
    """With 65535 steps, cutting off costs more than it brings: int16 keeps more of a tail than int8."""
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    narrow, wide = (ranges.rule_for(Recipe(scheme=s, estimator="mse"))(_histogram(values)) for s in ("int8", "int8x16"))
    assert narrow[1] < wide[1]


def _input(dtype: str, scale: float, zero: int) -> TensorSpec:
    return TensorSpec(
        name="x", shape=(1, 4), dtype=dtype, quantization=Quantization(scale=(scale,), zero_point=(zero,))
    )


def test_values_beyond_the_calibrated_input_range_are_told() -> None:
    """int8 of scale 0.01 and zero point 0 holds -1.28 to 1.27; one step beyond is not counted."""
    watch = quality.InputSaturation([_input("int8", 0.01, 0)])
    watch.see({"x": np.array([[0.0, 1.275, -1.285, 1.0]], np.float32)})
    assert watch.findings() == ()
    watch.see({"x": np.array([[2.0, -9.0, 0.5, 1.0]], np.float32)})
    (found,) = watch.findings()
    assert (found.rule, found.op) == ("INPUT_SATURATED", "x")
    assert found.message.startswith("25.0% of the values")


def test_float_inputs_cut_nothing_off() -> None:
    """An input without a scale takes any value."""
    watch = quality.InputSaturation([TensorSpec(name="x", shape=(1, 4))])
    watch.see({"x": np.full((1, 4), 1e9, np.float32)})
    assert watch.findings() == ()
