"""Metrics of classifiers: top-k, binary accuracy, area under the ROC curve, agreement with a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.measure.metric import Floats, Indices, MeanMetric, Metric, Outputs, class_index

_SLACK = 0.01  # a dequantized probability may lie a rounding outside 0 to 1


def class_scores(metric: Metric, outputs: Outputs) -> NDArray[Any]:
    """Return the output that counts as a vector of class scores, shape (classes,)."""
    values = metric.selected(outputs)
    vector = values.reshape(-1)
    if vector.size < 2 or max(values.shape) != vector.size:
        raise metric.refusal(f"the output has shape {values.shape}", "(1, classes) with at least 2 classes")
    return vector


def rank_of(scores: NDArray[Any], index: int) -> int:
    """Return how many classes come before `index`; equal scores count in class order, NaN scores come first."""
    ahead = ~(scores <= scores[index])
    return int(ahead.sum() + (scores[:index] == scores[index]).sum())


class TopK(MeanMetric):
    """Share of samples whose class is among the k highest scores; ties, frequent in int8, go to the lower class."""

    def __init__(self, k: int = 1, *, output: str | None = None) -> None:
        super().__init__(f"top{k}", output=output)
        self.k = k

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return 1 where the label's class is among the k highest, else 0."""
        scores = class_scores(self, outputs)
        return float(rank_of(scores, class_index(self, label, scores.size)) < self.k)


class Binary(MeanMetric):
    """Share of samples on the right side of a threshold, for one output value and labels 0 and 1.

    Without a threshold the value must be a probability and 0.5 is the border; `binary0` is for a logit.
    """

    def __init__(self, threshold: float | None = None, *, output: str | None = None) -> None:
        super().__init__("binary" if threshold is None else f"binary{threshold:g}", output=output)
        self.threshold = threshold

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return 1 where `value >= threshold` agrees with the label, else 0."""
        values = self.selected(outputs)
        if values.size != 1:
            raise self.refusal(f"the output has shape {values.shape}", "a single value")
        value = float(values.reshape(-1)[0])
        if self.threshold is None and not np.isnan(value) and not -_SLACK <= value <= 1 + _SLACK:
            raise self.refusal(f"the output is {value:g}", "a probability", hint="For a logit use metric binary0.")
        positive = value >= (0.5 if self.threshold is None else self.threshold)
        return float(not np.isnan(value) and positive == bool(class_index(self, label, 2)))


class Agreement(MeanMetric):
    """Share of samples with the same highest class as a reference, for data without labels.

    The label is the reference's outputs: a mapping by output name, or the array itself.
    """

    def __init__(self, *, output: str | None = None) -> None:
        super().__init__("agreement", output=output)

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return 1 where both have their highest score at the same class, else 0."""
        scores = class_scores(self, outputs)
        expected = np.asarray(self.label_of(label)).reshape(-1)
        if expected.size != scores.size:
            raise self.refusal(f"the reference has {expected.size} values", f"{scores.size}, as the output has")
        return float(rank_of(scores, int(expected.argmax())) == 0)


class AreaUnderCurve(Metric):
    """Area under the ROC curve for labels 0 and 1: the chance that a positive ranks above a negative, ties half.

    The score is the single output value, or the second of two.
    """

    def __init__(self, *, output: str | None = None) -> None:
        super().__init__("auc", output=output)
        self._values: list[float] = []
        self._labels: list[int] = []

    def update(self, outputs: Outputs, label: Any) -> None:
        """Take one sample."""
        values = self.selected(outputs).reshape(-1)
        if values.size not in (1, 2) or np.isnan(values).any():
            raise self.refusal(
                f"the output is {values[:5]}", "one number, or two of which the second is the positive's"
            )
        wanted = class_index(self, label, 2)
        self._values.append(float(values[-1]))
        self._labels.append(wanted)

    def value(self) -> float:
        """Return the area, 0 to 1."""
        if not self._values:
            raise self.no_samples()
        area = self.resample(np.arange(len(self)))
        if np.isnan(area):
            raise DataError(
                f"metric auc needs samples of both classes; all {len(self)} labels are {self._labels[0]}",
                hint="Add samples of the other class to the evaluation data.",
            )
        return area

    def resample(self, indices: Indices) -> float:
        """Return the area over the samples at `indices`; NaN where they are all of one class."""
        return area_under_curve(np.asarray(self._values)[indices], np.asarray(self._labels)[indices])

    def __len__(self) -> int:
        return len(self._values)


def area_under_curve(scores: Floats, labels: NDArray[Any]) -> float:
    """Return the Mann-Whitney form of the area: (R - P (P + 1) / 2) / (P N) with R the positives' midrank sum."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    return float((midranks[place][labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
