"""Which postprocessing a model gets: from its task and the shapes of its outputs, and what the user says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import anchors
from edge import postprocess_options as options
from edge.apps.contract import TensorContract
from edge.artifact import Manifest
from edge.errors import ConfigError
from edge.postprocess import BoxFormat, Kind, Postprocess
from edge.signature import Task

_NAME_PARTS = {"boxes": ("box",), "scores": ("score",), "classes": ("class",), "count": ("num", "count")}


def given_by(declared: Mapping[str, Any], text: str, outputs: Sequence[TensorContract]) -> dict[str, Any]:
    """Return the fields that the artifact declares, those of a command line on top, outputs as positions.

    Raises ConfigError with every problem.
    """
    found = {**declared, **options.from_text(text)}
    problems = []
    for key in options.OUTPUTS:
        if key in found:
            place = _output(found[key], outputs)
            if place is None:
                problems.append(f"{key} is {found[key]!r}; accepted: a name of an output or its position")
            found[key] = place
    if problems:
        raise ConfigError(f"postprocess: {'; '.join(problems)}; outputs: {_listed(outputs)}", hint=options.EXAMPLE)
    return found


def _output(value: str | int, outputs: Sequence[TensorContract]) -> int | None:
    names = [t.name for t in outputs]
    if value in names:
        return names.index(str(value))
    place = int(value) if isinstance(value, int) or value.isdigit() else -1
    return place if 0 <= place < len(names) else None


# A model that does not state its task tells it by the metric that it was checked with.
_METRICS: Mapping[str, Task] = {
    "top1": "classification",
    "top5": "classification",
    "miou": "segmentation",
    "ap50": "detection",
    "ap50-95": "detection",
}


def task_of(manifest: Manifest) -> Task:
    """Return the task of an artifact: the declared one, else that of the metric it was checked with."""
    accuracy = manifest.metrics.accuracy
    if manifest.signature.task != "other" or accuracy is None:
        return manifest.signature.task
    return _METRICS.get(accuracy.metric, "other")


def resolve(
    task: Task,
    given: Mapping[str, Any],
    inputs: Sequence[TensorContract],
    outputs: Sequence[TensorContract],
    golden: Mapping[str, NDArray[np.float32]],
) -> Postprocess:
    """Return the postprocessing: what is given, else by the task and the outputs' shapes; raise ConfigError.

    `golden` holds real outputs by name, [vectors, ...]: a classifier whose outputs are no shares that sum to 1 gets a
    softmax unless `activation` is given.
    """
    height, width = _input_size(inputs)
    given = {**given, **({"anchors": _anchors(given["anchors"], height, width)} if "anchors" in given else {})}
    if "box_scales" in given:
        given = {**given, "box_scales": tuple(given["box_scales"])}
    post = replace(Postprocess(kind=_KINDS[task]), **given)
    if post.kind == "detection":
        post = _detection(replace(post, input_height=height, input_width=width), given, outputs)
    elif post.kind == "segmentation":
        post = _segmentation(post, given, outputs, (height, width))
    elif post.kind == "classification":
        post = _classification(post, given, outputs, golden)
    return post


def _anchors(value: Any, height: int, width: int) -> tuple[float, ...]:
    """Return the numbers of anchors that a file held, or that a generator makes for this input."""
    if not isinstance(value, Mapping):
        return tuple(value)
    return anchors.generate(anchors.read_table(value), height, width)


_KINDS: Mapping[Task, Kind] = {
    "classification": "classification",
    "detection": "detection",
    "segmentation": "segmentation",
    "regression": "raw",
    "other": "raw",
}


def _input_size(inputs: Sequence[TensorContract]) -> tuple[int, int]:
    for tensor in inputs:
        if tensor.image:
            return (tensor.shape[2], tensor.shape[3]) if tensor.layout == "NCHW" else (tensor.shape[1], tensor.shape[2])
    return 1, 1


def _classification(
    post: Postprocess,
    given: Mapping[str, Any],
    outputs: Sequence[TensorContract],
    golden: Mapping[str, NDArray[np.float32]],
) -> Postprocess:
    tensor = outputs[post.output]
    classes = math.prod(tensor.shape)
    post = replace(post, top_k=max(1, min(post.top_k, classes)))
    if "activation" in given or classes < 2 or tensor.name not in golden:
        return post
    rows = golden[tensor.name].reshape(-1, classes)
    step = tensor.quantization.scale[0] * classes if tensor.quantization else 0.0
    shares = bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=max(0.02, step)))
    return post if shares else replace(post, activation="softmax")


def _detection(post: Postprocess, given: Mapping[str, Any], outputs: Sequence[TensorContract]) -> Postprocess:
    if "boxes" not in given and "scores" not in given:
        post = _found_outputs(post, given, outputs)
    if min(post.boxes, post.scores) < 0:
        raise ConfigError(
            f"A detection needs the outputs of boxes and scores; the model has {_listed(outputs)}.",
            hint=options.EXAMPLE,
        )
    shape = outputs[post.boxes].shape
    if post.boxes == post.scores:
        rows, columns = shape[-2:]
        if min(rows, columns) < 5:
            raise ConfigError(
                f"An output {list(shape)} cannot hold boxes and scores of one row each.", hint=options.EXAMPLE
            )
        transposed = post.transposed if "transposed" in given else rows < columns
        style: BoxFormat = post.box_format if "box_format" in given else "cxcywh"
        count = columns if transposed else rows
        return _fitting_anchors(replace(post, transposed=transposed, box_format=style), count)
    # A row may hold more than a box, such as key points.
    values = shape[-1] if len(shape) > 2 and shape[-1] > 4 else 4
    boxes = math.prod(shape) // values
    if math.prod(shape) % values or math.prod(outputs[post.scores].shape) % max(boxes, 1):
        raise ConfigError(
            f"Boxes {list(shape)} and scores {list(outputs[post.scores].shape)} do not fit.", hint=options.EXAMPLE
        )
    return _fitting_anchors(replace(post, box_values=values), boxes)


def _fitting_anchors(post: Postprocess, boxes: int) -> Postprocess:
    if post.anchors and len(post.anchors) != 4 * boxes:
        raise ConfigError(
            f"There are {len(post.anchors) // 4} anchors; the model has {boxes} boxes.",
            hint="Generated anchors follow from strides, scales and ratios, and from the size of the image input.",
        )
    return post


def _found_outputs(post: Postprocess, given: Mapping[str, Any], outputs: Sequence[TensorContract]) -> Postprocess:
    """Find boxes, scores, classes and count by their names, else by shape."""
    if len(outputs) == 1:
        return replace(post, boxes=0, scores=0)
    found = {
        role: next((i for i, t in enumerate(outputs) if _named(t.name, parts)), -1)
        for role, parts in _NAME_PARTS.items()
    }
    if found["boxes"] < 0 or found["scores"] < 0:
        if len(outputs) == 4:
            # The order of TFLite_Detection_PostProcess.
            found = {"boxes": 0, "classes": 1, "scores": 2, "count": 3}
        else:
            boxes = next((i for i, t in enumerate(outputs) if t.shape[-1] == 4), -1)
            found = {"boxes": boxes, "scores": next((i for i in range(len(outputs)) if i != boxes), -1)}
    done = found.get("classes", -1) >= 0 and found.get("count", -1) >= 0
    chosen: dict[str, Any] = {k: v for k, v in found.items() if k not in given}
    return replace(post, **chosen, nms=given.get("nms", not done))


def _named(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name.lower() for part in parts)


def _segmentation(
    post: Postprocess, given: Mapping[str, Any], outputs: Sequence[TensorContract], size: tuple[int, int]
) -> Postprocess:
    tensor = outputs[post.output]
    if "class_axis" in given:
        if post.class_axis not in (0, 1, 3) or len(tensor.shape) != (4 if post.class_axis else 3):
            raise ConfigError(f"class_axis is {post.class_axis}; accepted: 1 or 3 of four dimensions, 0 of three.")
        return post
    if len(tensor.shape) == 3:
        return replace(post, class_axis=0)
    if len(tensor.shape) != 4:
        raise ConfigError(f"A segmentation needs an output of 3 or 4 dimensions; received {list(tensor.shape)}.")
    first = tensor.layout == "NCHW" or (tensor.layout != "NHWC" and tensor.shape[2:] == size)
    return replace(post, class_axis=1 if first else 3)


def _listed(outputs: Sequence[TensorContract]) -> str:
    return ", ".join(f"{t.name[:40]!r} {list(t.shape)}" for t in outputs)
