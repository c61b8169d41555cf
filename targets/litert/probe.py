"""Look into running programs: per-channel peaks and means of intermediate tensors, signal-to-noise of outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.targets.litert import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def channel_peaks(
    program: bytes, samples: Iterable[Any], tensors: Collection[int], *, threads: int
) -> dict[int, Floats]:
    """Return the largest magnitude per last-axis channel of each float tensor over the samples, [C]."""
    opened = session.LiteRTSession(program, kernels="xnnpack", threads=threads, preserve=True)
    found: dict[int, Floats] = {}
    for sample in samples:
        opened.invoke(sample.inputs)
        for index in tensors:
            values = np.abs(opened.tensor(index))
            peaks = values.reshape(-1, values.shape[-1]).max(axis=0).astype(np.float64)
            found[index] = np.maximum(found[index], peaks) if index in found else peaks
    return found


class Noise:
    """Signal and noise of each output against float references, summed over samples, in bounded memory."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, reference: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Take the outputs of one sample; integer outputs (class numbers) count as they are."""
        for name, wanted in reference.items():
            real = np.asarray(wanted, np.float64)
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += float(np.sum(real * real))
            sums[1] += float(np.sum((np.asarray(found[name], np.float64) - real) ** 2))

    @property
    def snr_db(self) -> float:
        """The mean over outputs of 10 log10(signal / noise), each within 0 noise -> 100 dB and no signal -> 0 dB."""
        values = [_db(signal, noise) for signal, noise in self._sums.values()]
        return float(np.mean(values)) if values else 0.0


def _db(signal: float, noise: float) -> float:
    if noise <= 0:
        return 100.0
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -100.0, 100.0))


def snr_db(program: bytes, inputs: Iterable[Mapping[str, Any]], references: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean signal-to-noise ratio of a program's outputs against float references, in dB."""
    opened = session.LiteRTSession(program, kernels="builtin", threads=1)
    noise = Noise()
    for values, wanted in zip(inputs, references, strict=True):
        noise.add(wanted, session.run_float(opened, values))
    return noise.snr_db
