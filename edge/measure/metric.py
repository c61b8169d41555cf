"""What a metric is: an accumulator over samples, in the user's units, that a paired bootstrap can resample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.errors import DataError
from edge.measure import statistics

Outputs = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Metric(ABC):
    """One number over a data set, collected sample by sample.

    `update` takes one sample: real-valued outputs (dequantized) by name, with a batch dimension of 1, and the label.
    `output` names the output that counts where the model has several. Not safe for use from several threads.
    """

    higher_is_better: bool = True
    resamples: ClassVar[int] = statistics.RESAMPLES

    def __init__(self, name: str, *, output: str | None = None) -> None:
        self.name = name
        self.output = output

    @abstractmethod
    def update(self, outputs: Outputs, label: Any) -> None:
        """Take one sample. Raises DataError where the label or the outputs are not what the metric needs."""

    @abstractmethod
    def value(self) -> float:
        """Return the metric over all samples so far. Raises DataError where it is not defined for them."""

    @abstractmethod
    def resample(self, indices: Indices) -> float:
        """Return the metric over the samples at `indices` (repetitions allowed), NaN where it is not defined."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def scores(self) -> Floats | None:
        """One score per sample whose mean is the metric, or None for a metric that is no mean."""
        return None

    def selected(self, outputs: Outputs) -> NDArray[Any]:
        """Return the output that counts."""
        if self.output is not None and self.output in outputs:
            return outputs[self.output]
        if self.output is None and len(outputs) == 1:
            return next(iter(outputs.values()))
        given = ", ".join(outputs)
        if self.output is None:
            raise DataError(
                f"metric {self.name} needs one output, the model has {len(outputs)}: {given}",
                hint=f"Name the output that counts: {self.name}@{next(iter(outputs), 'OUTPUT')}",
            )
        raise DataError(f"metric {self.name} asks for output {self.output!r}; the model has: {given}")

    def label_of(self, label: Any) -> Any:
        """Return the part of a label by output name that belongs to the output that counts."""
        if not isinstance(label, Mapping):
            return label
        if self.output in label:
            return label[self.output]
        if self.output is None and len(label) == 1:
            return next(iter(label.values()))
        raise self.refusal(f"the label has entries for {', '.join(map(str, label))}", "one for the output that counts")

    def refusal(self, received: str, accepted: str, *, hint: str | None = None) -> DataError:
        """Return an error about the sample in hand."""
        return DataError(f"metric {self.name}, sample {len(self)}: {received}; accepted: {accepted}", hint=hint)

    def no_samples(self) -> DataError:
        """Return the error of a metric that was asked for its value too early."""
        return DataError(f"metric {self.name} has seen no samples", hint="Give labelled data with --evaluation.")


class MeanMetric(Metric):
    """A metric that is the mean of one score per sample."""

    def __init__(self, name: str, *, output: str | None = None) -> None:
        super().__init__(name, output=output)
        self._scores: list[float] = []

    @abstractmethod
    def score(self, outputs: Outputs, label: Any) -> float:
        """Return the score of one sample."""

    def update(self, outputs: Outputs, label: Any) -> None:
        """Take one sample."""
        self._scores.append(self.score(outputs, label))

    def value(self) -> float:
        """Return the mean score."""
        if not self._scores:
            raise self.no_samples()
        return float(np.mean(self._scores))

    def resample(self, indices: Indices) -> float:
        """Return the mean score of the samples at `indices`."""
        return float(np.mean(np.asarray(self._scores)[indices]))

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def scores(self) -> Floats:
        """One score per sample, in order."""
        return np.asarray(self._scores, np.float64)


def is_one_hot(values: NDArray[Any]) -> bool:
    """Tell whether a vector of at least two values has a single 1 and else 0."""
    return bool(values.size > 1 and np.isin(values, (0, 1)).all() and values.sum() == 1)


def class_index(metric: Metric, label: Any, classes: int) -> int:
    """Return the class that a label names: an integer in any wrapping, or a one-hot vector of `classes` values."""
    values = np.asarray(metric.label_of(label)).squeeze()
    if values.ndim == 1 and values.size == classes and is_one_hot(values):
        return int(values.argmax())
    if values.ndim or values.dtype.kind not in "iubf" or not float(values).is_integer():
        raise metric.refusal(
            f"the label has shape {values.shape} and dtype {values.dtype}",
            f"a class number, or a one-hot vector of {classes} values",
        )
    if not 0 <= int(values) < classes:
        raise metric.refusal(f"the label is {int(values)}", f"0 to {classes - 1}, as the output has {classes} classes")
    return int(values)


def signal_to_noise_db(reference: ArrayLike, candidate: ArrayLike, *, limit: float = 100.0) -> float:
    """Return 10 log10(sum(ref^2) / sum((ref - cand)^2)) in dB, within +-`limit`; what is not finite gives -`limit`."""
    first, second = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if np.array_equal(first, second):
        return limit
    with np.errstate(invalid="ignore", over="ignore"):
        signal, noise = float(np.sum(first**2)), float(np.sum((first - second) ** 2))
    if not (np.isfinite(signal) and np.isfinite(noise)) or signal == 0:
        return -limit
    return limit if noise == 0 else float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -limit, limit))
