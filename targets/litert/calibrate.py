"""Stream samples through a float flatbuffer and hand every activation to a range estimator."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge.calibration.quality import Growth
from edge.calibration.ranges import Estimator, NonFiniteError, Ranges
from edge.errors import DataError, QuantizationError, SourceError
from edge.isolate import Progress, no_progress
from edge.targets.litert import contract, flatbuffer, session

if TYPE_CHECKING:
    from numpy.typing import NDArray


def collect(
    program: bytes, samples: Iterable[Any], estimator: Estimator, *, threads: int = 2, progress: Progress = no_progress
) -> Ranges:
    """Return the ranges of all float activations of subgraph 0, one sample in memory at a time.

    Raises DataError for no samples, a sample that does not fit or that holds NaN, QuantizationError where the model
    itself computes NaN or an infinity, naming tensor and sample.
    """
    total = _total(samples)
    growth = Growth(estimator, total or 0)
    watcher = _Watcher(program, growth, threads)
    count = 0
    for number in range(estimator.passes):
        growth.start_pass(number)
        count = _one_pass(watcher, samples, progress)
    if count == 0:
        raise DataError("The calibration data has no samples.", hint="Give at least a few hundred representative ones.")
    findings = growth.findings() if count == total else ()
    return Ranges(limits=growth.limits(), samples=count, estimator=estimator.name, findings=findings)


def _total(samples: Iterable[Any]) -> int | None:
    count = len(samples) if isinstance(samples, Sized) else getattr(samples, "count", None)
    return count if isinstance(count, int) else None


def _one_pass(watcher: _Watcher, samples: Iterable[Any], progress: Progress) -> int:
    total = _total(samples)
    count = 0
    for count, sample in enumerate(samples, start=1):
        try:
            watcher.see(sample.inputs, count)
        except DataError as error:
            raise DataError(f"Calibration sample {count}: {error.message}", hint=error.hint) from error
        if count % 16 == 0 or count == total:
            progress("calibrating", count / total if total else 0.0)
    return count


class _Watcher:
    """A float program that keeps all its tensors readable."""

    def __init__(self, program: bytes, estimator: Estimator, threads: int) -> None:
        model = flatbuffer.load(program)
        graph = flatbuffer.graph(model)
        self._estimator = estimator
        self._names = {t: name for name, t in contract.contract_of(model).inputs.items()}
        # XNNPACK gives outputs that nothing reads (parts of a SPLIT) no memory; quantizers want their ranges too.
        read = {*graph.outputs, *graph.consumers()}
        unread = any(t not in read for op in graph.ops for t in op.outputs)
        kernels = "builtin" if unread else "xnnpack"
        self._session = session.LiteRTSession(program, kernels=kernels, threads=threads, preserve=True)
        watched = {*graph.inputs, *(t for op in graph.ops for t in op.outputs)}
        self._tensors = [
            (index, graph.tensors[index].name)
            for index in sorted(watched)
            if graph.tensors[index].dtype == "float32" and not graph.tensors[index].is_constant
        ]

    def see(self, inputs: Any, number: int) -> None:
        for name, values in inputs.items():
            if np.issubdtype(np.asarray(values).dtype, np.floating) and not np.isfinite(values).all():
                raise DataError(f"input {name!r} holds NaN or an infinity.", hint="Remove or repair that sample.")
        self._session.invoke(inputs)
        for index, name in self._tensors:
            try:
                self._estimator.update(name, cast("NDArray[np.float32]", self._session.tensor(index)))
            except NonFiniteError as error:
                raise QuantizationError(
                    f"The float model computes {error.value} in tensor {name!r} for calibration sample {number}.",
                    hint="Check that sample's preprocessing, or the layer that makes this tensor (a division by 0, "
                    "a logarithm of 0, an overflow).",
                ) from error


def run_reference(program: bytes, samples: Iterable[Any], *, limit: int) -> list[dict[str, Any]]:
    """Return the outputs of a float program for the first `limit` samples."""
    opened = session.LiteRTSession(program, kernels="xnnpack", threads=1)
    found: list[dict[str, Any]] = []
    for sample in samples:
        if len(found) == limit:
            break
        try:
            found.append(opened.run(sample.inputs))
        except SourceError as error:
            raise QuantizationError(f"The float model does not run: {error.message}", hint=error.hint) from error
    return found
