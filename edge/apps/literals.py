"""The contract's tensors as literals of a language: the only place where numbers and names enter generated code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge.apps.contract import TensorContract
from edge.postprocess import Postprocess


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """How a language writes what a tensor's contract holds; `number` and `floats` take shortest decimal texts."""

    text: Callable[[str], str]
    enum: Callable[[str, str], str]
    ints: Callable[[Sequence[int]], str]
    floats: Callable[[Sequence[str]], str]
    single: Callable[[str], str]
    double: Callable[[str], str]
    boolean: Callable[[bool], str]
    row: Callable[[Sequence[tuple[str, str]]], str]


def single(value: float) -> str:
    """Return the shortest decimal text that reads back as float32(value)."""
    text = str(np.float32(value))
    return text if any(c in text for c in ".en") else f"{text}.0"


def double(value: float) -> str:
    """Return the shortest decimal text that reads back as the double."""
    return repr(float(value))


def tensor(spec: TensorContract, syntax: Syntax) -> str:
    """Return one tensor as an expression."""
    pre, found = spec.preprocess, spec.quantization
    cells = [
        ("name", syntax.text(spec.name)),
        ("shape", syntax.ints(spec.shape)),
        ("dtype", syntax.enum("DType", spec.dtype)),
        ("sampleDtype", syntax.enum("DType", spec.sample_dtype)),
        ("layout", syntax.enum("Layout", spec.layout.lower())),
        ("quantized", syntax.boolean(found is not None and spec.dtype != "float32")),
        ("quantize", syntax.boolean(spec.quantize)),
        ("image", syntax.boolean(spec.image)),
        ("scale", syntax.double(double(found.scale[0] if found else 1.0))),
        ("zeroPoint", str(found.zero_point[0] if found else 0)),
        ("resize", syntax.enum("Resize", pre.resize)),
        ("fit", syntax.enum("Fit", pre.fit)),
        ("padValue", str(int(min(max(pre.pad_value, 0), 255)))),
        ("colour", syntax.enum("Colour", pre.colour)),
        ("identity", syntax.boolean(pre.is_identity)),
        ("factor", syntax.single(single(pre.scale))),
        ("mean", syntax.floats([single(v) for v in pre.mean])),
        ("std", syntax.floats([single(v) for v in pre.std])),
    ]
    return syntax.row(cells)


def post_values(post: Postprocess, double_suffix: str = "") -> dict[str, str]:
    """Return the `POST_…` places that are written alike in all languages."""
    made = {
        "POST_KIND": post.kind,
        "POST_ACTIVATION": post.activation,
        "POST_SCORE_THRESHOLD": single(post.score_threshold),
        "POST_IOU_THRESHOLD": double(post.iou_threshold),
        "POST_CORNERS": {
            "yxyx": "a, b, c, d",
            "xyxy": "b, a, d, c",
            "cxcywh": "b - d / 2, a - c / 2, b + d / 2, a + c / 2",
        }[post.box_format],
        # Offsets from an anchor, in the order y, x, height, width.
        **{f"POST_D{k}": v for k, v in zip("YXHW", "abcd" if post.box_format == "yxyx" else "badc", strict=True)},
        **{f"POST_S{k}": double(v) for k, v in zip("YXHW", post.box_scales, strict=True)},
    }
    for name in (
        "output",
        "top_k",
        "boxes",
        "scores",
        "classes",
        "count",
        "first_class",
        "max_detections",
        "class_axis",
        "box_values",
    ):
        made[f"POST_{name.upper()}"] = str(getattr(post, name))
    for name in ("transposed", "box_pixels", "nms", "class_agnostic"):
        made[f"POST_{name.upper()}"] = str(getattr(post, name)).lower()
    for name in ("input_height", "input_width"):
        made[f"POST_{name.upper()}"] = f"{getattr(post, name)}.0{double_suffix}"
    return made


def rows_of(values: Sequence[float], suffix: str = "") -> str:
    """Return float32 numbers as lines of eight, each ended by a comma."""
    texts = [f"{single(v)}{suffix}" for v in values]
    return "\n".join("        " + ", ".join(texts[i : i + 8]) + "," for i in range(0, len(texts), 8))
