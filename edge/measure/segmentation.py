"""Mean intersection over union of a segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.measure.metric import Floats, Indices, Metric, Outputs

VOID = 255  # label of pixels that do not count, as in Pascal VOC and Cityscapes


class MeanIntersectionOverUnion(Metric):
    """Mean over classes of intersection / union, pixels counted over the whole data set.

    The label is an integer mask (H, W); pixels of 255 do not count. The output is (1, H, W, classes) or (1, classes, H,
    W) scores, (1, H, W, 1) probabilities of class 1, or (1, H, W) integer classes. Classes that neither side shows do
    not count.
    """

    def __init__(self, *, output: str | None = None) -> None:
        super().__init__("miou", output=output)
        self._counts: list[NDArray[np.int64]] = []  # per sample (3, classes): intersection, predicted, labelled
        self._stack: Floats | None = None

    def update(self, outputs: Outputs, label: Any) -> None:
        """Take one sample."""
        mask = np.asarray(self.label_of(label))
        if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):
            mask = mask[0] if mask.shape[0] == 1 else mask[:, :, 0]
        if mask.ndim != 2 or mask.dtype.kind not in "iub":
            raise self.refusal(f"the label has shape {mask.shape} and dtype {mask.dtype}", "an integer mask (H, W)")
        predicted, classes = self._prediction(self.selected(outputs), mask.shape)
        counted = mask != VOID
        wanted, found = mask[counted].astype(np.int64), predicted[counted].astype(np.int64)
        classes = classes or int(max(wanted.max(initial=0), found.max(initial=0))) + 1
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < classes:
            raise self.refusal(
                f"the mask has values {wanted.min()} to {wanted.max()}", f"0 to {classes - 1}, and {VOID} for no class"
            )
        hits = np.bincount(wanted[wanted == found], minlength=classes)
        sides = (np.bincount(side, minlength=classes) for side in (found, wanted))
        self._counts.append(np.stack([hits, *sides]))
        self._stack = None

    def _prediction(self, output: NDArray[Any], shape: tuple[int, ...]) -> tuple[NDArray[Any], int]:
        """Return the predicted mask and the number of classes, 0 where the output does not say it."""
        if output.ndim == 4 and output.shape[1:3] == shape:
            if output.shape[3] == 1:
                return output[0, :, :, 0] >= 0.5, 2
            return output[0].argmax(axis=2), output.shape[3]
        if output.ndim == 4 and output.shape[2:] == shape:
            return (output[0, 0] >= 0.5, 2) if output.shape[1] == 1 else (output[0].argmax(axis=0), output.shape[1])
        if output.ndim == 3 and output.shape[1:] == shape:
            return np.rint(output[0]).astype(np.int64), 0
        raise self.refusal(f"the output has shape {output.shape} and the mask {shape}", "the same height and width")

    def value(self) -> float:
        """Return the mean over classes, 0 to 1."""
        if not self._counts:
            raise self.no_samples()
        mean = self.resample(np.arange(len(self)))
        if np.isnan(mean):
            raise DataError("metric miou: no pixel of any mask counts", hint=f"Masks of only {VOID} have no classes.")
        return mean

    def resample(self, indices: Indices) -> float:
        """Return the mean over classes of the samples at `indices`; NaN where no pixel counts."""
        hits, found, wanted = np.tensordot(np.bincount(indices, minlength=len(self)), self._stacked(), axes=1)
        union = found + wanted - hits
        seen = union > 0
        return float(np.mean(hits[seen] / union[seen])) if seen.any() else float("nan")

    def _stacked(self) -> Floats:
        """Return the counts as (samples, 3, classes), made once and not for every resample."""
        if self._stack is None:
            classes = max(sample.shape[1] for sample in self._counts)
            padded = [np.pad(sample, ((0, 0), (0, classes - sample.shape[1]))) for sample in self._counts]
            self._stack = np.stack(padded).astype(np.float64)
        return self._stack

    def __len__(self) -> int:
        return len(self._counts)
