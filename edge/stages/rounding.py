"""Accuracy as the Edge TPU may have it: the int8 program with rounding that differs by a step here and there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import QuantizationError
from edge.measure.metric import Metric
from edge.measure.store import OutputReader
from edge.targets.base import Session

if TYPE_CHECKING:
    from edge.calibration.data import Dataset, Sample

RUNS = 3
# All runs together may cost about so many multiply-accumulates, some seconds on the reference kernels. No clock
# decides: equal builds on machines of other speeds, or with other work to do, must tell the same.
_MOST_MACS = 10**9
_LEAST_SAMPLES, _MOST_SAMPLES = 16, 200


def sensitivity(
    path: Path, samples: Dataset, reference: OutputReader, make: Callable[[], Metric], run: Any
) -> dict[str, Any] | None:
    """Return baseline and noisy scores as JSON-compatible data, None where no operator's rounding can differ.

    `run(session, inputs)` gives real-valued outputs. The larger the network, the fewer samples are used.
    """
    from edge.targets.edgetpu import placement, rounding
    from edge.targets.litert import flatbuffer, inspect

    model = flatbuffer.load(path)
    graph = flatbuffer.graph(model)
    mapped = placement.predict(graph).mapped
    count = _affordable(sum(inspect.macs(graph, op) for op in graph.ops))
    metric = make()

    def score(opened: Session) -> float:
        return _score(opened, itertools.islice(samples, count), reference, make(), run)

    try:
        found = rounding.run_sensitivity(model, score, mapped=mapped, runs=RUNS)
    except QuantizationError:
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    return {
        "mode": found.mode,
        "metric": metric.name,
        "baseline": found.baseline,
        "worst": min(found.scores, key=lambda value: sign * value),
        "mean": sum(found.scores) / len(found.scores),
        "runs": RUNS,
        "rate": found.rate,
        "operators": found.operators,
        "samples": min(count, reference.count),
    }


def _affordable(macs: int) -> int:
    """Return how many samples of a network with so many multiply-accumulates are used."""
    # Noise doubles the work of small networks; the baseline is one run more.
    fits = _MOST_MACS // (2 * (RUNS + 1) * max(macs, 1))
    return max(_LEAST_SAMPLES, min(_MOST_SAMPLES, fits))


def _score(opened: Session, samples: Iterable[Sample], reference: OutputReader, metric: Metric, run: Any) -> float:
    for index, sample in enumerate(samples):
        label = reference.sample(index) if sample.label is None else sample.label
        metric.update(run(opened, sample.inputs), label)
    return metric.value()
