"""Look into running programs: per-channel peaks and means of intermediate tensors, signal-to-noise of outputs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.data import spread
from edge.targets.litert import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LEAST = 16
_MOST_BYTES = 128 * 2**20


def channel_peaks(
    program: bytes, inputs: Iterable[Mapping[str, Any]], tensors: Collection[int], *, threads: int
) -> dict[int, Floats]:
    """Return the largest magnitude per last-axis channel of each float tensor over the samples, [C]."""
    opened = session.LiteRTSession(program, kernels="xnnpack", threads=threads, preserve=True)
    found: dict[int, Floats] = {}
    for values_of in inputs:
        opened.invoke(values_of)
        for index in tensors:
            values: Any = np.abs(np.asarray(opened.tensor(index), np.float64))
            peaks = values.reshape(-1, values.shape[-1]).max(axis=0)
            found[index] = np.maximum(found[index], peaks) if index in found else peaks
    return found


def spread_inputs(samples: Iterable[Any], count: int) -> list[dict[str, Any]]:
    """Return the inputs of up to `count` samples, spread evenly where the number of samples is known, else the first.

    At most 128 MB are held, but 16 samples in any case.
    """
    first = next(iter(samples), None)
    if first is None:
        return []
    size = sum(np.asarray(v).nbytes for v in first.inputs.values())
    count = min(count, max(_LEAST, _MOST_BYTES // max(1, size)))
    total = getattr(samples, "count", None)
    if not isinstance(total, int):
        total = len(samples) if isinstance(samples, Sized) else None
    chosen = set(spread(total, count)) if total is not None else set(range(count))
    return [dict(s.inputs) for i, s in enumerate(itertools.islice(samples, max(chosen) + 1)) if i in chosen]


def outputs(program: bytes, inputs: Iterable[Mapping[str, Any]], *, threads: int = 1) -> list[dict[str, Any]]:
    """Return the real-valued outputs of a program, float or quantized, for each of the inputs."""
    opened = session.LiteRTSession(program, kernels="builtin", threads=threads)
    return [session.run_float(opened, values) for values in inputs]
