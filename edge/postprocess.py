"""From a model's outputs to a result: the reference that every generated language repeats.

All values arrive as float32 (stored integers dequantized). Sums, exponentials and boxes are computed in float64 in the
order written here and rounded to float32 once at the end, so that other languages differ by their `exp` at most.

1. Activation: softmax exp(x - max) / sum, left to right; sigmoid 1 / (1 + exp(-x)).
2. Classification: the `top_k` largest scores, best first; of equal scores the lower index first.
3. Detection: boxes to (top, left, bottom, right) in shares of the input; the best class of each box from `first_class`
   on; scores at or above `score_threshold`; greedy suppression of boxes whose intersection over union with a better
   one is above `iou_threshold`, per class unless `class_agnostic`. With anchors (centre y, centre x, height, width) the
   values of a box are offsets dy, dx, dh, dw: centre y = dy / sy * height + y, the same across, height =
   exp(min(dh / sh, 700)) * height of the anchor (or dh / sh * height where `size_decoding` is linear); Liu et al.
   2016, arXiv 1512.02325, section 2.2, with the scales of TensorFlow's box coder.
4. Segmentation: per pixel the class of the largest score, of equal scores the lower one; one channel: score >= 0.5.
5. Embedding: x / sqrt(sum of x * x), left to right; zeros stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Kind = Literal["classification", "detection", "segmentation", "embedding", "raw"]
Activation = Literal["none", "softmax", "sigmoid"]
BoxFormat = Literal["yxyx", "xyxy", "cxcywh"]
SizeDecoding = Literal["exp", "linear"]


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """What becomes of the outputs; numbers of outputs are positions, -1 where there is none.

    `output` holds the scores of a classification, the map of a segmentation or the vector of an embedding.
    Detection: `boxes` and `scores`, optionally `classes` and `count`. Where `boxes` equals `scores` the one output has
    four box values and then the scores of the classes per box (`transposed`: per row), else `box_values` values per box
    of which the first four count. `anchors` are float32 numbers, four per box; then `box_format` tells the order of the
    offsets only: height before width (`yxyx`) or width before height (the others), and `box_scales` are the divisors
    (y, x, height, width). `class_axis` is the axis of a segmentation's scores, 0 where the output holds classes.
    """

    kind: Kind = "raw"
    activation: Activation = "none"
    output: int = 0
    top_k: int = 5
    boxes: int = -1
    scores: int = -1
    classes: int = -1
    count: int = -1
    transposed: bool = False
    box_format: BoxFormat = "yxyx"
    box_pixels: bool = False
    input_height: int = 1
    input_width: int = 1
    first_class: int = 0
    score_threshold: float = 0.25
    iou_threshold: float = 0.45
    max_detections: int = 100
    nms: bool = True
    class_agnostic: bool = False
    box_values: int = 4
    anchors: tuple[float, ...] = ()
    box_scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    size_decoding: SizeDecoding = "exp"
    class_axis: int = -1


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A class and its score."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A class, its score, and the box in shares (0 to 1) of the model's input."""

    index: int
    label: str
    score: float
    top: float
    left: float
    bottom: float
    right: float


def activate(values: Floats, activation: Activation) -> NDArray[np.float64]:
    """Return the scores of one vector (step 1)."""
    reals = [float(v) for v in values.ravel()]
    if activation == "softmax":
        largest = max(reals)
        powers = [math.exp(v - largest) for v in reals]
        total = 0.0
        for power in powers:
            total += power
        reals = [power / total for power in powers]
    elif activation == "sigmoid":
        reals = [_sigmoid(v) for v in reals]
    return np.array(reals, np.float64)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value >= -700 else 0.0


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if 0 <= index < len(labels) else ""


def classify(outputs: Sequence[Floats], post: Postprocess, labels: Sequence[str]) -> list[Classification]:
    """Return the best classes (step 2)."""
    scores = activate(outputs[post.output], post.activation)
    order = np.argsort(-scores, kind="stable")[: post.top_k]
    return [
        Classification(index=int(i), label=_label(labels, int(i)), score=float(np.float32(scores[i]))) for i in order
    ]


def _candidates(outputs: Sequence[Floats], post: Postprocess) -> tuple[Floats, Floats, list[int] | None]:
    """Return boxes [N, 4], scores [N, C] and, where an output holds them, the class of each box."""
    if post.boxes == post.scores:
        values = outputs[post.boxes]
        values = values.reshape(values.shape[-2:])
        values = values.T if post.transposed else values
        return values[:, :4], values[:, 4:], None
    boxes = outputs[post.boxes].reshape(-1, post.box_values)
    scores = outputs[post.scores].reshape(len(boxes), -1)
    classes = None if post.classes < 0 else [round(float(c)) for c in outputs[post.classes].ravel()]
    count = len(boxes) if post.count < 0 else min(len(boxes), max(0, round(float(outputs[post.count].ravel()[0]))))
    return boxes[:count], scores[:count], classes


def _decoded(box: Sequence[float], anchor: Sequence[float], post: Postprocess) -> tuple[float, float, float, float]:
    """Return centre y, centre x, height and width of offsets from an anchor."""
    dy, dx, dh, dw = box if post.box_format == "yxyx" else (box[1], box[0], box[3], box[2])
    y, x, height, width = anchor
    sy, sx, sh, sw = post.box_scales
    sizes = (dh / sh, dw / sw)
    tall, wide = (math.exp(min(s, 700.0)) for s in sizes) if post.size_decoding == "exp" else sizes
    return dy / sy * height + y, dx / sx * width + x, tall * height, wide * width


def _corners(row: int, box: Floats, post: Postprocess) -> tuple[float, float, float, float]:
    a, b, c, d = (float(v) for v in box[:4])
    if post.anchors:
        y, x, height, width = _decoded((a, b, c, d), post.anchors[4 * row : 4 * row + 4], post)
        corners = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    elif post.box_format == "cxcywh":
        corners = (b - d / 2, a - c / 2, b + d / 2, a + c / 2)
    else:
        corners = (a, b, c, d) if post.box_format == "yxyx" else (b, a, d, c)
    if not post.box_pixels:
        return corners
    h, w = float(post.input_height), float(post.input_width)
    return corners[0] / h, corners[1] / w, corners[2] / h, corners[3] / w


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    shared = height * width
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def detect(outputs: Sequence[Floats], post: Postprocess, labels: Sequence[str]) -> list[Detection]:
    """Return the boxes that are kept, best first (step 3)."""
    boxes, scores, classes = _candidates(outputs, post)
    found = []
    for row in range(len(boxes)):
        values = activate(scores[row], post.activation)[post.first_class :]
        best = int(values.argmax())
        score = float(np.float32(values[best]))
        if score >= np.float32(post.score_threshold):
            index = classes[row] if classes is not None else best + post.first_class
            found.append((index, score, _corners(row, boxes[row], post)))
    found.sort(key=lambda f: -f[1])
    kept: list[tuple[int, float, tuple[float, float, float, float]]] = []
    for candidate in found:
        if len(kept) == post.max_detections:
            break
        if not (post.nms and any(_suppresses(k, candidate, post) for k in kept)):
            kept.append(candidate)
    return [_detection(index, score, corners, labels) for index, score, corners in kept]


def _suppresses(kept: Any, candidate: Any, post: Postprocess) -> bool:
    rivals = post.class_agnostic or kept[0] == candidate[0]
    return bool(rivals and _overlap(kept[2], candidate[2]) > post.iou_threshold)


def _detection(index: int, score: float, corners: tuple[float, ...], labels: Sequence[str]) -> Detection:
    top, left, bottom, right = (float(np.float32(v)) for v in corners)
    return Detection(
        index=index, label=_label(labels, index), score=score, top=top, left=left, bottom=bottom, right=right
    )


def segment(outputs: Sequence[Floats], post: Postprocess) -> NDArray[np.int32]:
    """Return the class of each pixel, [height, width] (step 4)."""
    values = outputs[post.output]
    if post.class_axis == 0:
        return np.asarray(np.rint(values.reshape(values.shape[1:3])), np.int32)
    scores = np.moveaxis(values[0], post.class_axis - 1, -1)
    if scores.shape[-1] == 1:
        return np.asarray(scores[..., 0] >= np.float32(0.5), np.int32)
    return np.asarray(scores.argmax(axis=-1), np.int32)


def embed(outputs: Sequence[Floats], post: Postprocess) -> Floats:
    """Return the vector of length 1 (step 5)."""
    values = [float(v) for v in outputs[post.output].ravel()]
    total = 0.0
    for value in values:
        total += value * value
    length = math.sqrt(total)
    return np.array([v / length if length > 0 else 0.0 for v in values]).astype(np.float32)


def flat(outputs: Sequence[Floats], post: Postprocess) -> Floats:
    """Return the whole result as one vector, as golden vectors keep it."""
    if post.kind == "classification":
        return np.array([v for c in classify(outputs, post, ()) for v in (c.index, c.score)], np.float32)
    if post.kind == "detection":
        rows = [(d.index, d.score, d.top, d.left, d.bottom, d.right) for d in detect(outputs, post, ())]
        return np.array(rows, np.float32).ravel()
    if post.kind == "segmentation":
        return segment(outputs, post).ravel().astype(np.float32)
    if post.kind == "embedding":
        return embed(outputs, post)
    return np.concatenate([o.ravel().astype(np.float32) for o in outputs])


def result(outputs: Sequence[Floats], post: Postprocess, labels: Sequence[str]) -> Any:
    """Return what an app gets: a list of classes or detections, a mask, a vector, or the outputs themselves."""
    if post.kind == "classification":
        return classify(outputs, post, labels)
    if post.kind == "detection":
        return detect(outputs, post, labels)
    if post.kind == "segmentation":
        return segment(outputs, post)
    return embed(outputs, post) if post.kind == "embedding" else list(outputs)
