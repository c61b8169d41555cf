"""Average precision of a detector, as the COCO evaluation defines it (area "all", 100 detections per image and class).

Arrays of one sample, after decoding and non-maximum suppression:

- output boxes, (1, N, 4) or (N, 4); scores, (1, N) or (N,); classes, the same, whole numbers; optionally the number
  of valid detections, one value. They are found by `box`, `score`, `class` and `num` or `count` in the outputs' names,
  else by order: boxes, classes, scores, count, as TFLite_Detection_PostProcess has them.
- the label, a mapping of `boxes`, (M, 4), `classes`, (M,), and optionally `crowd`, (M,) of 0 and 1.

Boxes are two opposite corners, (y, x, y, x) or (x, y, x, y), pixels or shares, the same way on both sides. Class
numbers are compared as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.measure.metric import Floats, Indices, Metric, Outputs

Bools = NDArray[np.bool_]

MAX_DETECTIONS = 100
THRESHOLDS_50 = (0.5,)
THRESHOLDS_50_95 = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_RECALLS = np.linspace(0, 1, 101)
_NAME_PARTS = {"boxes": ("box",), "scores": ("score",), "classes": ("class",), "count": ("num", "count")}


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """Detections of one class in one image, best first; `hit` and `ignored` are (thresholds, detections)."""

    scores: Floats
    hit: Bools
    ignored: Bools
    objects: int


@dataclass(frozen=True, kw_only=True)
class _Pooled:
    """Detections of one class over all images, best first; `image` says where each is from, `objects` is per image."""

    image: Indices
    hit: Bools
    ignored: Bools
    objects: Indices


def box_overlaps(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """Return the intersection over union of boxes (D, 4) with others (G, 4), shape (D, G).

    For a crowd region the intersection is divided by the box's own area.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area, other_area = (np.prod(side[:, 2:] - side[:, :2], axis=1) for side in (boxes, others))
    union = np.where(crowd, area[:, None], area[:, None] + other_area - shared)
    overlaps: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps


def match(overlaps: Floats, crowd: Bools, thresholds: Sequence[float]) -> tuple[Bools, Bools]:
    """Match detections, best first, with objects; return (hit, ignored), each (thresholds, detections).

    Each detection takes the free object that it overlaps most, at or above the threshold; only where there is none a
    crowd region, which any number of detections may take and which counts neither for nor against.
    """
    limits = np.minimum(np.asarray(thresholds), 1 - 1e-10)[:, None]
    hit = np.zeros((len(thresholds), len(overlaps)), np.bool_)
    ignored = np.zeros_like(hit)
    free = np.broadcast_to(~crowd, (len(thresholds), crowd.size)).copy()
    for index, row in enumerate(overlaps):
        fits = (row >= limits) & free
        best = np.where(fits, row, -1.0).argmax(axis=1) if crowd.size else np.zeros(len(thresholds), np.int64)
        hit[:, index] = fits.any(axis=1)
        ignored[:, index] = ~hit[:, index] & ((row >= limits) & crowd).any(axis=1)
        rows = np.flatnonzero(hit[:, index])
        free[rows, best[rows]] = False
    return hit, ignored


def average_precision(hit: Bools, ignored: Bools, objects: int) -> float:
    """Return the mean over thresholds of precision at 101 recalls, each the best at that recall or beyond."""
    found = np.cumsum(hit, axis=1, dtype=np.float64)
    wrong = np.cumsum(~hit & ~ignored, axis=1, dtype=np.float64)
    precision = found / np.maximum(found + wrong, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    places = [np.searchsorted(row, _RECALLS, side="left") for row in found / objects]
    return float(np.mean([row[place] for row, place in zip(padded, places, strict=True)]))


class AveragePrecision(Metric):
    """Mean over classes of average precision at IoU 0.5 (`ap50`), or over IoU 0.5 to 0.95 (`ap50-95`)."""

    resamples: ClassVar[int] = 500

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS_50, *, output: str | None = None) -> None:
        super().__init__("ap50" if len(thresholds) == 1 else "ap50-95", output=output)
        self.thresholds = tuple(thresholds)
        self._samples = 0
        self._matched: dict[int, dict[int, _Matched]] = {}  # by class, then by image
        self._pools: list[_Pooled] | None = None

    def update(self, outputs: Outputs, label: Any) -> None:
        """Take one image."""
        boxes, scores, classes = self._detections(outputs)
        objects, object_classes, crowd = self._objects(label)
        for number in np.union1d(classes, object_classes):
            chosen = np.flatnonzero(classes == number)
            order = chosen[np.argsort(-scores[chosen], kind="stable")][:MAX_DETECTIONS]
            there = object_classes == number
            overlaps = box_overlaps(boxes[order], objects[there], crowd[there])
            hit, ignored = match(overlaps, crowd[there], self.thresholds)
            self._matched.setdefault(int(number), {})[self._samples] = _Matched(
                scores=scores[order], hit=hit, ignored=ignored, objects=int((~crowd[there]).sum())
            )
        self._samples += 1
        self._pools = None

    def _detections(self, outputs: Outputs) -> tuple[Floats, Floats, Indices]:
        parts = _by_role(outputs)
        if parts is None:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
            raise self.refusal(f"the outputs are {shapes}", "boxes, scores and classes, see edge.measure.detection")
        boxes = parts["boxes"].reshape(-1, 4).astype(np.float64)
        scores, classes = parts["scores"].reshape(-1).astype(np.float64), parts["classes"].reshape(-1)
        if not len(boxes) == len(scores) == len(classes):
            raise self.refusal(f"{len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes", "the same number")
        valid = np.arange(len(boxes)) < (int(parts["count"].reshape(-1)[0]) if "count" in parts else len(boxes))
        valid &= np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
        return boxes[valid], scores[valid], np.rint(classes[valid]).astype(np.int64)

    def _objects(self, label: Any) -> tuple[Floats, Indices, Bools]:
        if not isinstance(label, Mapping) or not {"boxes", "classes"} <= set(label):
            raise self.refusal(f"the label is a {type(label).__name__}", "a mapping with boxes and classes")
        boxes = np.asarray(label["boxes"], np.float64)
        classes = np.asarray(label["classes"]).reshape(-1).astype(np.int64)
        crowd = np.asarray(label.get("crowd", np.zeros(classes.size))).reshape(-1).astype(np.bool_)
        if boxes.size != 4 * classes.size or crowd.size != classes.size:
            raise self.refusal(
                f"boxes {boxes.shape}, classes {classes.shape}, crowd {crowd.shape}", "(M, 4), (M,) and (M,)"
            )
        boxes = boxes.reshape(-1, 4)
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise self.refusal(
                "a labelled box has its second corner before its first",
                "(low, low, high, high)",
                hint="Boxes given as corner, width and height must be turned to two corners.",
            )
        return boxes, classes, crowd

    def value(self) -> float:
        """Return the mean over the classes that have objects, 0 to 1."""
        if not self._samples:
            raise self.no_samples()
        mean = self.resample(np.arange(self._samples))
        if np.isnan(mean):
            raise DataError(f"metric {self.name}: no image has a labelled object")
        return mean

    def resample(self, indices: Indices) -> float:
        """Return the mean over classes for the images at `indices`; NaN where they show no object."""
        times = np.bincount(indices, minlength=self._samples)
        if self._pools is None:
            self._pools = [self._pool(images) for images in self._matched.values()]
        values = []
        for pool in self._pools:
            if objects := int(times @ pool.objects):
                places = np.repeat(np.arange(pool.image.size), times[pool.image])
                values.append(average_precision(pool.hit[:, places], pool.ignored[:, places], objects))
        return float(np.mean(values)) if values else float("nan")

    def _pool(self, images: dict[int, _Matched]) -> _Pooled:
        order = np.argsort(-np.concatenate([part.scores for part in images.values()]), kind="stable")
        objects = np.zeros(self._samples, np.int64)
        objects[list(images)] = [part.objects for part in images.values()]
        return _Pooled(
            image=np.repeat(list(images), [part.scores.size for part in images.values()])[order],
            hit=np.concatenate([part.hit for part in images.values()], axis=1)[:, order],
            ignored=np.concatenate([part.ignored for part in images.values()], axis=1)[:, order],
            objects=objects,
        )

    def __len__(self) -> int:
        return self._samples


def _by_role(outputs: Outputs) -> dict[str, NDArray[Any]] | None:
    """Return boxes, scores, classes and perhaps count; None where the outputs do not fit."""
    named = {
        role: next((array for name, array in outputs.items() if any(part in name.lower() for part in parts)), None)
        for role, parts in _NAME_PARTS.items()
    }
    found = {role: array for role, array in named.items() if array is not None}
    if len({id(array) for array in found.values()}) < len(found) or not {"boxes", "scores", "classes"} <= set(found):
        found = dict(zip(("boxes", "classes", "scores", "count"), outputs.values(), strict=False))
    if not {"boxes", "scores", "classes"} <= set(found) or found["boxes"].shape[-1:] != (4,):
        return None
    return found
