"""Weight steps with the least squared error: weights are clipped in the float program, before a quantizer sees them.

Quantizers take the step from the largest weight of a channel; with the ones beyond the threshold cut off, that is the
step wanted. The float program that everything is compared with stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.calibration import weights as arithmetic
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.targets.litert import coverage, edit, flatbuffer, repair
from edge.targets.litert.simulate import CHANNEL_AXIS


def clipped(program: bytes, ranges: Ranges, recipe: Recipe) -> bytes:
    """Return a prepared float program whose weights are cut off where int8 steps then err least.

    Layers that the recipe's overrides keep float, and weights that other operators read, are left alone.
    """
    model = flatbuffer.load(program)
    graph = flatbuffer.graph(model)
    readers = graph.consumers()
    for op in graph.ops:
        if op.name not in CHANNEL_AXIS or _overridden(graph, op, recipe) or len(readers[op.inputs[1]]) > 1:
            continue
        values = graph.data(op.inputs[1])
        if values is not None and values.dtype == np.float32 and values.size:
            edit.set_constant(model, model.subgraphs[0].tensors[op.inputs[1]], _cut(values, op.name, recipe))
    # Cutting off what made room for a bias would bring its overflow back.
    repair.lift_dead_channels(model, ranges, 32767 if recipe.scheme == "int8x16" else 255)
    return flatbuffer.dump(model)


def _overridden(graph: flatbuffer.Graph, op: flatbuffer.Op, recipe: Recipe) -> bool:
    name = graph.tensors[op.outputs[0]].name
    return any(coverage.matches(o, op.name, name) for o in recipe.overrides)


def _cut(values: Any, operator: str, recipe: Recipe) -> Any:
    axis = CHANNEL_AXIS[operator]
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    tensorwise = recipe.granularity == "tensor" or operator in recipe.per_tensor_operators
    if tensorwise:
        limit: Any = arithmetic.mse_thresholds(rows.reshape(1, -1))[0]
    else:
        shape = [1] * values.ndim
        shape[axis] = values.shape[axis]
        limit = arithmetic.mse_thresholds(rows).reshape(shape)
    return np.clip(values, -limit, limit).astype(np.float32)
