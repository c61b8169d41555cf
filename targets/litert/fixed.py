"""Ranges that the TFLite quantization specification fixes: outputs of softmax, logistic, tanh and two others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.targets.litert import flatbuffer

# Operator -> scale and zero point of its int8 output (the specification's table of operators).
_INT8 = {
    "SOFTMAX": (1 / 256, -128),
    "LOGISTIC": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "L2_NORMALIZATION": (1 / 128, 0),
    "LOG_SOFTMAX": (16 / 256, 127),
}
_INT16 = dict.fromkeys(("SOFTMAX", "LOGISTIC", "TANH"), (1 / 32768, 0))


def apply(model: Any, ranges: Ranges, recipe: Recipe) -> Ranges:
    """Return the ranges with those of fixed outputs as the integer kernels demand, whatever was seen of them."""
    wide = recipe.scheme == "int8x16"
    table, steps = (_INT16, (-32768, 32767)) if wide else (_INT8, (-128, 127))
    limits = dict(ranges.limits)
    for view in flatbuffer.graphs(model):
        for op in view.ops:
            name = view.tensors[op.outputs[0]].name if op.outputs else ""
            if op.name in table and name in limits:
                scale, zero = table[op.name]
                limits[name] = (scale * (steps[0] - zero), scale * (steps[1] - zero))
    return replace(ranges, limits=limits)
