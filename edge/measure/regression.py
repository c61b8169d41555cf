"""Metrics of real-valued outputs: mean absolute error, peak signal-to-noise ratio, signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge.measure.metric import Floats, MeanMetric, Metric, Outputs, signal_to_noise_db

LIMIT_DB = 100.0  # what an error of 0 counts as, so that means and differences stay finite


def _aligned(metric: Metric, output: Any, label: Any) -> tuple[Floats, Floats]:
    """Return output and label in float64 with one shape; only dimensions of 1 may differ."""
    values, wanted = np.asarray(output), np.asarray(label)
    if wanted.dtype.kind not in "iufb":
        raise metric.refusal(f"the label has dtype {wanted.dtype}", "numbers")
    if values.squeeze().shape != wanted.squeeze().shape:
        raise metric.refusal(f"the label has shape {wanted.shape}", f"{values.shape}, as the output has")
    return values.squeeze().astype(np.float64), wanted.squeeze().astype(np.float64)


class MeanAbsoluteError(MeanMetric):
    """Mean of |output - label|, in the output's unit; with labels for several outputs, the mean over the outputs."""

    higher_is_better = False

    def __init__(self, *, output: str | None = None) -> None:
        super().__init__("mae", output=output)

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return the mean absolute error of one sample."""
        if self.output is None and isinstance(label, Mapping) and len(label) > 1:
            if missing := sorted(set(label) - set(outputs)):
                raise self.refusal(f"labels for unknown outputs {missing}", ", ".join(outputs))
            return float(np.mean([self._error(outputs[name], part) for name, part in label.items()]))
        return self._error(self.selected(outputs), self.label_of(label))

    def _error(self, output: Any, label: Any) -> float:
        values, wanted = _aligned(self, output, label)
        return float(np.mean(np.abs(values - wanted)))


class PeakSignalToNoise(MeanMetric):
    """Mean over samples of 10 log10(peak^2 / mean squared error), in dB, at most 100.

    Without a given peak it is 255 for integer labels and 1 for float labels within 0 to 1.
    """

    def __init__(self, peak: float | None = None, *, output: str | None = None) -> None:
        super().__init__("psnr" if peak is None else f"psnr{peak:g}", output=output)
        self.peak = peak

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return the ratio of one sample in dB."""
        wanted = np.asarray(self.label_of(label))
        output, expected = _aligned(self, self.selected(outputs), wanted)
        error = float(np.mean((output - expected) ** 2))
        if math.isnan(error):
            return 0.0
        peak = self.peak or self._peak_of(wanted)
        return LIMIT_DB if error == 0 else min(LIMIT_DB, 10 * math.log10(peak * peak / error))

    def _peak_of(self, label: Any) -> float:
        if label.dtype.kind in "iu":
            return 255.0
        if label.size and (label.min() < 0 or label.max() > 1):
            raise self.refusal(
                f"the label ranges from {label.min():g} to {label.max():g}",
                "integers, or floats from 0 to 1",
                hint="Give the distance from black to white, such as psnr255 or psnr2.",
            )
        return 1.0


class SignalToNoise(MeanMetric):
    """Mean over samples of the signal-to-noise ratio against a reference's outputs, in dB, within +-100.

    The label is the reference's outputs: a mapping by output name, or the array itself. With several outputs and none
    chosen the lowest counts.
    """

    def __init__(self, *, output: str | None = None) -> None:
        super().__init__("snr", output=output)

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return the ratio of one sample in dB."""
        if self.output is None and isinstance(label, Mapping) and len(outputs) > 1:
            if missing := sorted(set(outputs) - set(label)):
                raise self.refusal(f"the reference lacks outputs {missing}", ", ".join(outputs))
            return min(self._ratio(label[name], values) for name, values in outputs.items())
        return self._ratio(self.label_of(label), self.selected(outputs))

    def _ratio(self, reference: Any, output: Any) -> float:
        values, wanted = _aligned(self, output, reference)
        return signal_to_noise_db(wanted, values, limit=LIMIT_DB)
