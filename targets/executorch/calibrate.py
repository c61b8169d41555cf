"""Ranges for PT2E graphs by edgekit's own estimators: observers that ask `calibration.ranges`, fed sample by sample."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.ranges import Estimator, NonFiniteError, Ranges
from edge.errors import DataError, QuantizationError
from edge.isolate import Progress, no_progress
from edge.signature import Signature
from edge.targets.executorch import carrier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge.calibration.data import Dataset

# Of an activation that is 0 for all samples: any scale represents it, but XNNPACK refuses a ratio of input, weight and
# output scales above 256, so that it must not be tiny.
_SCALE_OF_ZERO = 2.0**-12


@functools.cache
def observer_class() -> Any:
    """Return the observer: a PT2E module that hands values to an estimator and takes scale and zero point from it."""
    import torch
    from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

    class EstimatorObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
        """Activations only: one interval per tensor. `tensor` is the name that the estimator knows it by."""

        def __init__(self, *, estimator: Estimator, tensor: str, like: Any) -> None:
            super().__init__(
                dtype=like.dtype,
                qscheme=like.qscheme,
                quant_min=like.quant_min,
                quant_max=like.quant_max,
                eps=float(torch.finfo(torch.float32).tiny),
            )
            self.estimator, self.tensor = estimator, tensor
            self.least_step = 0.0

        def forward(self, values: Any) -> Any:
            self.estimator.update(self.tensor, values.detach().numpy())
            return values

        def calculate_qparams(self) -> Any:
            low, high = self.estimator.limits().get(self.tensor, (0.0, 0.0))
            if low == high == 0.0:
                high = _SCALE_OF_ZERO * (self.quant_max - self.quant_min)
            # The interval that is quantized has 0 in it.
            span = max(high, 0.0) - min(low, 0.0)
            wider = max(1.0, self.least_step * (self.quant_max - self.quant_min) / span)
            low, high = low * wider, high * wider
            return self._calculate_qparams(torch.tensor([low]), torch.tensor([high]))

    return EstimatorObserver


def install(graph: Any, estimator: Estimator) -> int:
    """Replace the observers of static activations in a prepared graph by the estimator's; return how many tensors."""
    observed = list(_observed(graph))
    # Shared observers stay shared: one interval for all the tensors of a concatenation, with the constants among them.
    tensors = {id(found): node.args[0].name for node, found in reversed(observed) if node.args[0].op != "get_attr"}
    made: dict[int, Any] = {}
    for node, found in observed:
        if id(found) not in tensors:
            continue
        if id(found) not in made:
            made[id(found)] = observer_class()(estimator=estimator, tensor=tensors[id(found)], like=found)
        graph.set_submodule(node.target, made[id(found)])
    return len(made)


def _observed(graph: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the nodes that call an observer of static values with one interval per tensor, and the observer."""
    from torchao.quantization.pt2e import FakeQuantizeBase
    from torchao.quantization.pt2e.observer import ObserverBase

    for node in graph.graph.nodes:
        found = graph.get_submodule(node.target) if node.op == "call_module" else None
        # coremltools' quantizer brings fake quantization by a moving average, made for training.
        if not isinstance(found, (ObserverBase, FakeQuantizeBase)) or getattr(found, "is_dynamic", False):
            continue
        if hasattr(found, "quant_min") and "per_channel" not in str(getattr(found, "qscheme", "")):
            yield node, found


def collect(
    graph: Any, signature: Signature, samples: Dataset, estimator: Estimator, *, progress: Progress = no_progress
) -> Ranges:
    """Run all samples through a prepared graph, one in memory at a time, and return the ranges found.

    Raises DataError for no samples or one that does not fit or holds NaN, QuantizationError where the model itself
    computes NaN or an infinity, naming tensor and sample.
    """
    count = 0
    for number in range(estimator.passes):
        estimator.start_pass(number)
        count = _one_pass(graph, signature, samples, progress)
    if count == 0:
        raise DataError("The calibration data has no samples.", hint="Give at least a few hundred representative ones.")
    return Ranges(limits=estimator.limits(), samples=count, estimator=estimator.name)


def _one_pass(graph: Any, signature: Signature, samples: Iterable[Any], progress: Progress) -> int:
    known = getattr(samples, "count", None)  # of a list it is a method
    total = known if isinstance(known, int) else None
    count = 0
    for count, sample in enumerate(samples, start=1):
        _see(graph, signature, sample.inputs, count)
        if count % 16 == 0 or count == total:
            progress("calibrating", count / total if total else 0.0)
    return count


def _see(graph: Any, signature: Signature, inputs: Any, number: int) -> None:
    import torch

    for name, values in inputs.items():
        if np.issubdtype(np.asarray(values).dtype, np.floating) and not np.isfinite(values).all():
            raise DataError(
                f"Calibration sample {number}: input {name!r} holds NaN or an infinity.",
                hint="Remove or repair that sample.",
            )
    try:
        with torch.no_grad():
            graph(*carrier.as_tensors(signature, inputs))
    except DataError as error:
        raise DataError(f"Calibration sample {number}: {error.message}", hint=error.hint) from error
    except NonFiniteError as error:
        raise QuantizationError(
            f"The float model computes {error.value} in tensor {error.tensor!r} for calibration sample {number}.",
            hint="Check that sample's preprocessing, or the layer that makes this tensor (a division by 0, "
            "a logarithm of 0, an overflow).",
        ) from error
