"""Affine quantization of arrays: real = scale * (stored - zero_point)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.signature import Quantization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def _parameters(quantization: Quantization, rank: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    scale = np.asarray(quantization.scale, np.float32)
    zero = np.asarray(quantization.zero_point, np.int32)
    if quantization.axis is None:
        return scale[:1].reshape(()), zero[:1].reshape(())
    shape = [1] * rank
    shape[quantization.axis] = -1
    return scale.reshape(shape), zero.reshape(shape)


def quantize(values: Array, quantization: Quantization, dtype: str) -> Array:
    """Return `values` (float, any shape) stored as integer `dtype`: clip(round(x / scale) + zero_point).

    Halves are rounded away from zero, in float32, as the QUANTIZE kernel of LiteRT does.
    Worked number: scale 0.5, zero point -128, x = 1.25 -> round(2.5) - 128 = 3 - 128 = -125.
    """
    scale, zero = _parameters(quantization, np.ndim(values))
    scaled = np.asarray(values, np.float32) / scale
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    limits = np.iinfo(dtype)
    # Clipping before the zero point is added keeps huge values inside int64.
    stored = np.clip(rounded, -(2.0**40), 2.0**40).astype(np.int64) + zero
    return np.clip(stored, limits.min, limits.max).astype(dtype)


def dequantize(stored: Array, quantization: Quantization) -> NDArray[np.float32]:
    """Return integer `stored` (any shape) as float32: scale * (stored - zero_point)."""
    scale, zero = _parameters(quantization, np.ndim(stored))
    return np.asarray((np.asarray(stored).astype(np.int64) - zero).astype(np.float32) * scale, np.float32)


def parameters(low: float, high: float, dtype: str, *, symmetric: bool = False) -> Quantization:
    """Return scale and zero point that cover [low, high] in all steps of integer `dtype`; 0 is always exact.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale), the range widened to hold 0.
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
