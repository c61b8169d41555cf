"""How far a program's outputs are from the float ones, as one number that outliers among the samples do not decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LIMIT_DB = 100.0


class Noise:
    """Signal and noise per sample and output, collected one sample at a time: two numbers each are kept."""

    def __init__(self) -> None:
        self._sums: dict[str, list[tuple[float, float]]] = {}

    def add(self, found: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Take the outputs of one sample; integer outputs (class numbers) count as they are."""
        for name, values in reference.items():
            wanted = np.asarray(values, np.float64)
            error = np.asarray(found[name], np.float64) - wanted
            self._sums.setdefault(name, []).append((float(np.sum(wanted**2)), float(np.sum(error**2))))

    def ratios(self) -> Floats:
        """Return noise / signal per sample, the mean over outputs, [N]: sum (found - ref)^2 / sum ref^2.

        The ratio is taken per sample before any mean: else the samples with the largest values would decide alone,
        while a classifier errs on those with small margins. Signals below 1e-3 of an output's mean count as that.
        """
        parts = []
        for sums in self._sums.values():
            signal, noise = np.asarray(sums, np.float64).T
            parts.append(noise / np.maximum(signal, max(1e-3 * float(signal.mean()), 1e-30)))
        return np.asarray(np.mean(parts, axis=0)) if parts else np.zeros(0)

    @property
    def outputs_db(self) -> dict[str, float]:
        """The signal-to-noise ratio of each output by name, in dB, formed as that of all."""
        found = {}
        for name, sums in self._sums.items():
            one = Noise()
            one._sums = {name: sums}
            found[name] = one.snr_db
        return found

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio: of the mean of the ratios, in dB."""
        ratios = self.ratios()
        return decibels(float(ratios.mean())) if ratios.size else 0.0


def collect(found: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> Noise:
    """Return the noise of outputs against float references, sample by sample."""
    noise = Noise()
    for outputs, wanted in zip(found, references, strict=True):
        noise.add(outputs, wanted)
    return noise


def decibels(ratio: float) -> float:
    """Return -10 log10 of a noise to signal ratio, within +-100 dB. Worked number: 0.01 -> 20 dB."""
    return float(np.clip(-10 * np.log10(max(ratio, 10 ** (-LIMIT_DB / 10))), -LIMIT_DB, LIMIT_DB))


def snr_db(found: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> float:
    """Return the signal-to-noise ratio of outputs against float references, in dB (see `Noise.ratios`)."""
    return collect(found, references).snr_db
