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


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One operator, or one input of the network (operator `INPUT`, index -1).

    `weights_db` and `output_db` are the signal-to-noise ratios of the network's outputs with only this layer's weights,
    or only its output tensor, quantized; None where there is nothing to quantize. `saturated` is the share of the
    output's values outside of its range; `channel_spread` largest over smallest peak of the weights' output channels;
    `peak_to_rms` the worst within a channel: what an int8 step is relative to ordinary weights.
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

    @property
    def snr_db(self) -> float:
        """The ratio with both quantized: the noises add up."""
        parts = [db for db in (self.weights_db, self.output_db) if db is not None and db < LIMIT_DB]
        return decibels(sum(10 ** (-db / 10) for db in parts)) if parts else LIMIT_DB

    @property
    def part(self) -> Part:
        """The part that loses more."""
        weights = LIMIT_DB if self.weights_db is None else self.weights_db
        return "weights" if weights < (LIMIT_DB if self.output_db is None else self.output_db) else "activations"


def ranked(records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Return the records, worst first; ties in execution order."""
    return tuple(sorted(records, key=lambda r: (r.snr_db, r.index)))


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
