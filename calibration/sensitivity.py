"""What each part of a network costs when it alone is quantized: records, ranking and what to do about the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge.calibration.noise import LIMIT_DB, decibels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Part = Literal["weights", "activations"]
_UNEVEN, _OPPOSED = 16.0, -0.6


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One operator, or one input of the network (operator `INPUT`, index -1).

    `weights_db` and `output_db` are the signal-to-noise ratios of the network's outputs with only this layer's weights,
    or only its output tensor, quantized; None where there is nothing to quantize. `saturated` is the share of the
    output's values outside of its range; `channel_spread` largest over smallest peak of the weights' output channels;
    `peak_to_rms` the worst within a channel: what an int8 step is relative to ordinary weights.

    `unbalanced_with` names the output of the next layer where this one's output channels are uneven against the next
    one's input weights (see `unbalanced`): then this one is to blame for the noise of the next one's weights,
    `next_weights_db`, and that layer is `blamed_before`.

    Where layers are measured at their own outputs (ExecuTorch), `weights_db` and `input_db` are the ratios there with
    only the weights, or only the layer's input, quantized, and `reads` names the layer that writes that input.
    """

    index: int
    operator: str
    output: str
    weights_db: float | None
    output_db: float | None
    low: float | None
    high: float | None
    saturated: float | None
    channel_spread: float | None
    peak_to_rms: float | None
    unbalanced_with: str | None = None
    next_weights_db: float | None = None
    blamed_before: bool = False
    input_db: float | None = None
    reads: str | None = None

    @property
    def snr_db(self) -> float:
        """The ratio with all that this layer is to blame for quantized: the noises add up."""
        own = (None, None) if self.blamed_before else (self.weights_db, self.input_db)
        parts = [db for db in (*own, self.output_db, self.next_weights_db) if db is not None and db < LIMIT_DB]
        return decibels(sum(10 ** (-db / 10) for db in parts)) if parts else LIMIT_DB

    @property
    def part(self) -> Part:
        """The part that loses more."""
        weights = LIMIT_DB if self.weights_db is None else self.weights_db
        values = min(LIMIT_DB if db is None else db for db in (self.output_db, self.input_db))
        return "weights" if weights < values else "activations"


def ranked(records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Return the records, worst first; ties in execution order."""
    return tuple(sorted(records, key=lambda r: (r.snr_db, r.index)))


def unbalanced(peaks: NDArray[np.float64], reading: NDArray[np.float64]) -> bool:
    """Tell whether channels are large in one layer's output and small in the next one's weights, or the reverse.

    `peaks` [C] are the activation's largest magnitudes, `reading` [C] those of the next layer's input weights. True
    where the latter span a factor of 16 and the logarithms of both correlate below -0.6: an equivalent network without
    that exists, and a step of either is wasted on few channels.
    """
    used = (peaks > 0) & (reading > 0)
    if used.sum() < 3 or reading[used].max() < _UNEVEN * reading[used].min():
        return False
    first, second = np.log2(peaks[used]), np.log2(reading[used])
    if first.std() == 0 or second.std() == 0:
        return False
    return float(np.corrcoef(first, second)[0, 1]) < _OPPOSED


def weight_spread(weights: NDArray[np.floating], axis: int | None) -> tuple[float, float]:
    """Return largest over smallest channel peak, and the worst peak over root mean square within a channel.

    Channels of zeros are left out; one channel for `axis` None. (1, 1) for weights that are all 0.
    """
    array = np.asarray(weights, np.float64)
    flat = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    peaks, rms = np.abs(flat).max(axis=1), np.sqrt((flat**2).mean(axis=1))
    used = peaks > 0
    if not used.any():
        return 1.0, 1.0
    return float(peaks[used].max() / peaks[used].min()), float((peaks[used] / rms[used]).max())
