"""Empirical bias correction: remove the mean error that quantization leaves in each channel of a layer's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# A channel's error must be this many standard errors from 0 to be corrected: else it is the samples' noise.
SIGNIFICANT = 2.0
# Below this share of values that are not cut off, a change of the bias hardly moves the mean.
_LEAST_ACTIVE = 0.1


def correction(errors: Floats, active: Floats) -> Floats:
    """Return what to add to each bias [C], in real units, from errors (float - quantized) per sample [N, C].

    `active` is the share of a channel's values strictly inside of the limits of the activation function [C]: a step of
    the bias moves only those, so the mean error is divided by it (one Newton step). Errors that are not significant at
    two standard errors, and channels with less than 10 % active values, are left alone.
    Worked number: mean error 0.2, all significant, half of the values active -> 0.4.
    """
    mean = errors.mean(axis=0)
    spread = errors.std(axis=0, ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.abs(mean)
    significant = (np.abs(mean) > SIGNIFICANT * spread) & (active >= _LEAST_ACTIVE)
    return np.where(significant, mean / np.maximum(active, _LEAST_ACTIVE), 0.0)


def corrected(bias: NDArray[np.signedinteger[Any]], step: Floats, delta: Floats) -> NDArray[np.signedinteger[Any]]:
    """Return integer biases b + round(delta / step), limited to their type; `step` is s_in * s_w, [C] or scalar."""
    limits = np.iinfo(bias.dtype)
    moved = bias.astype(np.float64) + np.round(delta / step)
    return np.clip(moved, limits.min, limits.max).astype(bias.dtype)
