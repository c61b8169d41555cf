"""Adaptive rounding: for each weight the step above or below it, whichever keeps the layer's outputs.

Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv 2004.10568): a soft choice per
weight by a stretched sigmoid, the reconstruction error of the layer's output after its activation function, a
regularizer that drives choices to 0 or 1, Adam. Here in NumPy, with a number of iterations set by the layer's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

LIMIT = 127
_BATCH = 128
# Floating-point operations per layer (some seconds), and the bounds of the iterations that this gives.
_OPERATIONS, _LEAST, _MOST = 1.5e11, 150, 1200
_RATE, _DECAYS = 1e-2, (0.9, 0.999)
_STRETCH, _SHIFT = 1.2, -0.1
# The regularizer starts after a fifth of the iterations; its exponent falls from 20 to 2.
_WARM, _SHARP, _SOFT = 0.2, 20.0, 2.0
_WEIGHT = 0.5
_HELD_OUT = 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer as rows: output n, c = clip(sum_k inputs[n, (c,) k] * weights[c, k] + bias[c], low, high).

    `inputs` are the layer's, [N, K] or (depthwise) [N, C, K]; `wanted` the float layer's outputs
    [N, C]; `weights` the float ones [C, K]; `step` their scales [C]; `bias` as the program has it [C]; in real units.
    """

    inputs: Floats
    wanted: Floats
    weights: Floats
    step: Floats
    bias: Floats
    low: float
    high: float

    def outputs(self, weights: Floats, rows: Any) -> Floats:
        """Return the outputs of some rows before clipping, [n, C]."""
        x = self.inputs[rows]
        made = x @ weights.T if x.ndim == 2 else np.einsum("nck,ck->nc", x, weights, optimize=True)
        return np.asarray(made + self.bias)

    def gradient(self, error: Floats, rows: Any) -> Floats:
        """Return the derivative of half the summed squared error with respect to the weights, [C, K]."""
        x = self.inputs[rows]
        return np.asarray(error.T @ x if x.ndim == 2 else np.einsum("nc,nck->ck", error, x, optimize=True))

    def errors(self, codes: Floats, rows: Any) -> Floats:
        """Return the mean squared error per channel with integer weights, [C]."""
        found = np.clip(self.outputs(codes * self.step[:, None], rows), self.low, self.high)
        return np.asarray(((found - self.wanted[rows]) ** 2).mean(axis=0))


def nearest(layer: Layer) -> Floats:
    """Return the codes of rounding to the nearest step, [C, K]."""
    return np.asarray(np.clip(np.rint(layer.weights / layer.step[:, None]), -LIMIT, LIMIT), np.float32)


def adapt(layer: Layer, *, seed: int = 0) -> Floats:
    """Return codes [C, K], each the step below or above its weight, within +-127.

    Every fourth row is held out: a channel that these do not show to be better keeps the nearest steps.
    """
    start = nearest(layer)
    held = np.arange(0, len(layer.inputs), _HELD_OUT)
    used = np.setdiff1d(np.arange(len(layer.inputs)), held)
    if used.size < _HELD_OUT:
        return start
    found = _optimized(layer, used, float(layer.errors(start, used).sum()), np.random.default_rng(seed))
    better = layer.errors(found, held) < layer.errors(start, held)
    return np.where(better[:, None], found, start)


def iterations(layer: Layer) -> int:
    """Return how many steps of Adam a layer gets. Worked number: 64 channels of 576 weights -> 1200."""
    cost = 6.0 * layer.weights.size * _BATCH
    return int(np.clip(_OPERATIONS / cost, _LEAST, _MOST))


def _optimized(layer: Layer, rows: NDArray[np.int64], error: float, rng: np.random.Generator) -> Floats:
    below = np.floor(layer.weights / layer.step[:, None])
    share = np.clip(layer.weights / layer.step[:, None] - below, 1e-3, 1 - 1e-3)
    state = -np.log(_STRETCH / (share - _SHIFT) - 1).astype(np.float32)
    total = iterations(layer)
    # Relative to what one weight has to do with the error of rounding to the nearest.
    strength = _WEIGHT * error / layer.weights.size
    adam = _Adam(state.shape)
    for number in range(total):
        part = rng.choice(rows, min(_BATCH, rows.size), replace=False)
        sigmoid = 1 / (1 + np.exp(-state))
        soft = np.clip(sigmoid * _STRETCH + _SHIFT, 0, 1)
        weights = np.clip(below + soft, -LIMIT, LIMIT) * layer.step[:, None]
        real = layer.outputs(weights, part)
        lost = np.clip(real, layer.low, layer.high) - layer.wanted[part]
        lost *= (real > layer.low) & (real < layer.high)
        slope = layer.gradient(lost, part) * (2.0 / len(part)) * layer.step[:, None]
        slope += strength * _pull(soft, number / total)
        inside = (soft > 0) & (soft < 1)
        state -= adam.step(slope * inside * sigmoid * (1 - sigmoid) * _STRETCH)
    return np.asarray(np.clip(below + (state >= 0), -LIMIT, LIMIT), np.float32)


def _pull(soft: Floats, done: float) -> Floats | float:
    """Return the derivative of 1 - |2 h - 1|^beta, beta falling along a cosine."""
    if done < _WARM:
        return 0.0
    beta = _SOFT + 0.5 * (_SHARP - _SOFT) * (1 + np.cos(np.pi * (done - _WARM) / (1 - _WARM)))
    centred = 2 * soft - 1
    return np.asarray(-2 * beta * np.sign(centred) * np.abs(centred) ** (beta - 1), np.float32)


class _Adam:
    """Adam's moments (Kingma and Ba 2014, arXiv 1412.6980)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._mean, self._square, self._count = np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0

    def step(self, slope: Floats) -> Floats:
        """Return what to subtract."""
        self._count += 1
        first, second = _DECAYS
        self._mean = first * self._mean + (1 - first) * slope
        self._square = second * self._square + (1 - second) * slope**2
        mean, square = self._mean / (1 - first**self._count), self._square / (1 - second**self._count)
        return np.asarray(_RATE * mean / (np.sqrt(square) + 1e-20), np.float32)
