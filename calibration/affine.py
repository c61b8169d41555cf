"""Affine quantization of arrays: real = scale * (stored - zero_point)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import DataError
from edge.signature import Quantization, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.generic]


def _per_axis(values: Sequence[float], quantization: Quantization, rank: int) -> NDArray[np.float64]:
    """Return scales or zero points in a shape that broadcasts against an array of that rank."""
    array = np.asarray(values, np.float64)
    if array.size == 1:
        return array.reshape(())
    shape = [1] * rank
    shape[quantization.axis or 0] = array.size
    return array.reshape(shape)


def step_sizes(quantization: Quantization, rank: int) -> NDArray[np.float64]:
    """Return the scales in a shape that broadcasts against an array of that rank."""
    return _per_axis(quantization.scale, quantization, rank)


def dequantize(stored: ArrayLike, quantization: Quantization) -> NDArray[np.float32]:
    """Return scale * (stored - zero_point) in float32, shape kept.

    Worked number: scale 0.5, zero point -128, stored -126 -> 1.0.
    """
    values = np.asarray(stored)
    scale, zero = (_per_axis(part, quantization, values.ndim) for part in (quantization.scale, quantization.zero_point))
    return np.asarray((values.astype(np.float64) - zero) * scale).astype(np.float32)


def quantize(values: ArrayLike, quantization: Quantization, dtype: str) -> Array:
    """Return round(real / scale) + zero_point, limited to the range of `dtype` (int8, uint8, int16, …), shape kept.

    The division is in float32 and halves round away from zero, as TFLite's reference kernel does it. Infinite values
    saturate. Worked numbers: scale 0.5, zero point -128: 1.0 -> -126; 0.25 is half a step -> -127; 1000.0 -> 127.
    Raises DataError for NaN.
    """
    real = np.asarray(values, np.float32)
    if np.isnan(real).any():
        raise DataError(f"{int(np.isnan(real).sum())} of {real.size} values are NaN and have no {dtype} value")
    scale, zero = (_per_axis(part, quantization, real.ndim) for part in (quantization.scale, quantization.zero_point))
    limits = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        steps = np.asarray(real / scale.astype(np.float32)).astype(np.float64)
    # In float64: adding 0.5 in float32 would round the largest number below a half up.
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + zero
    return np.asarray(np.clip(rounded, limits.min, limits.max)).astype(dtype)


def to_program(spec: TensorSpec, values: Array) -> Array:
    """Return float values in the program's dtype; other values are only cast (indices, flags)."""
    if spec.quantization is not None and np.issubdtype(values.dtype, np.floating):
        return quantize(values, spec.quantization, spec.dtype)
    return np.asarray(values).astype(spec.dtype, copy=False)


def from_program(spec: TensorSpec, values: Array) -> Array:
    """Return a program's output as float32 where it is quantized, unchanged otherwise."""
    return values if spec.quantization is None else dequantize(values, spec.quantization)


def parameters(low: float, high: float, dtype: str, *, symmetric: bool = False) -> Quantization:
    """Return scale and zero point that cover [low, high] in all steps of integer `dtype`; 0 is always exact.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale), the range widened to 0.
    Symmetric: scale = max(|low|, |high|) / qmax, zero point 0. Method: Jacob et al. 2017, arXiv 1712.05877, section 3.
    Worked number: [0, 1] as int8 -> scale 1 / 255, zero point -128.
    """
    limits = np.iinfo(dtype)
    if symmetric:
        return Quantization(scale=(max(abs(low), abs(high), 1e-9) / limits.max,), zero_point=(0,))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-9) / (limits.max - limits.min)
    zero = int(np.clip(round(limits.min - low / scale), limits.min, limits.max))
    return Quantization(scale=(scale,), zero_point=(zero,))
