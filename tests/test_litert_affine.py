"""Affine quantization of arrays and estimation of ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.calibration import affine
from edge.calibration.ranges import MinMax, NonFiniteError, Ranges, estimator
from edge.errors import QuantizationError
from edge.signature import Quantization
from tests.tflite_builder import f32

FINITE = st.floats(-1e4, 1e4, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_side=5), elements=FINITE), st.sampled_from(["int8", "uint8", "int16"])
)
def test_round_trip_is_within_half_a_step(values: np.ndarray, dtype: str) -> None:
    """Values inside the covered range come back within half a step (and float32 rounding)."""
    q = affine.parameters(float(values.min()), float(values.max()), dtype)
    back = affine.dequantize(affine.quantize(values, q, dtype), q)
    # The zero point is rounded, so the range's far end may be clipped by up to one half step more.
    assert np.abs(back - values).max() <= q.scale[0] * 1.01 + 1e-6 * np.abs(values).max()


@given(FINITE, FINITE, st.sampled_from(["int8", "uint8", "int16"]), st.booleans())
def test_zero_is_exact(a: float, b: float, dtype: str, symmetric: bool) -> None:
    """0 has an exact representation, which padding needs."""
    q = affine.parameters(min(a, b), max(a, b), dtype, symmetric=symmetric)
    zero = affine.quantize(np.zeros(1, np.float32), q, dtype)
    assert float(affine.dequantize(zero, q)[0]) == 0.0


def test_halves_round_away_from_zero_as_the_kernel_does() -> None:
    """1.25 / 0.5 = 2.5 becomes 3 and -2.5 becomes -3."""
    q = Quantization(scale=(0.5,), zero_point=(-128,))
    assert affine.quantize(f32([1.25]), q, "int8").tolist() == [-125]
    centred = Quantization(scale=(0.5,), zero_point=(0,))
    assert affine.quantize(f32([-1.25]), centred, "int8").tolist() == [-3]


def test_huge_values_saturate() -> None:
    """Infinities and numbers beyond int64 clip to the ends of the type."""
    q = Quantization(scale=(0.5,), zero_point=(3,))
    assert affine.quantize(f32([1e38, -1e38, np.inf]), q, "int8").tolist() == [127, -128, 127]


def test_channels_use_their_own_scale() -> None:
    """With an axis, index k of that dimension uses scale k."""
    q = Quantization(scale=(1.0, 0.5), zero_point=(0, 1), axis=1)
    stored = affine.quantize(f32([[2.0, 2.0]]), q, "int8")
    assert stored.tolist() == [[2, 5]]
    assert affine.dequantize(stored, q).tolist() == [[2.0, 2.0]]


def test_minmax_never_clips() -> None:
    """The range holds every value of every sample."""
    seen = MinMax()
    for values in ([0.0, 1.0], [-3.0, 0.5], [0.0, 9.0]):
        seen.update("t", f32(values))
    assert seen.limits() == {"t": (-3.0, 9.0)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_minmax_refuses_what_is_not_finite(bad: float) -> None:
    """NaN and infinities are named with their tensor instead of spoiling the range."""
    with pytest.raises(NonFiniteError, match="'t' holds"):
        MinMax().update("t", f32([0.0, bad]))


def test_unknown_estimator_lists_the_known() -> None:
    """The message says what is accepted."""
    with pytest.raises(QuantizationError, match=r"'magic' is not available; accepted: .*minmax"):
        estimator("magic")


@pytest.mark.parametrize("limits", [(1.0, 0.0), (0.0, float("inf"))])
def test_ranges_refuse_invalid_intervals(limits: tuple[float, float]) -> None:
    """A frozen value of ranges cannot hold an empty or infinite interval."""
    with pytest.raises(ValueError, match="has the range"):
        Ranges(limits={"t": limits}, samples=1, estimator="minmax")
