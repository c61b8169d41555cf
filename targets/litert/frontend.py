"""Signal front ends: spectra whose small values no int8 scale holds, and which operators have to be float to keep them.

A network on sound often computes its spectrogram itself: linear transforms, squares, their root or logarithm. Squares
span twice as many decibels as the signal, and root and logarithm bring the small ones out again; in one int8 scale
everything below a 255th of the largest is 0 by then, whatever the estimator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.calibration.recipe import Override, Recipe
from edge.findings import Finding
from edge.targets.litert import coverage, flatbuffer

if TYPE_CHECKING:
    from edge.calibration.ranges import Ranges

# The operator of an override that stands for all operators of a front end.
NAME = "FRONT-END"
_STEEP = frozenset({"LOG", "SQRT", "POW"})
# What a front end does not have: from the first of them on it is the network.
_ACTIVATIONS = frozenset(
    {"RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "ELU", "GELU", "HARD_SWISH"}
    | {"LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX", "UNIDIRECTIONAL_SEQUENCE_LSTM"}
)
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D", "TRANSPOSE_CONV"})
_STEPS = {"int8": 255, "int8x16": 32767}


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """`outputs` are the first tensors that its operators write, in execution order.

    `operator` reads values from `low` to `high` and writes `tensor`: the one that reaches lowest against its range.
    """

    outputs: tuple[str, ...]
    operator: str
    tensor: str
    low: float
    high: float


def find(program: bytes, ranges: Ranges, scheme: str = "int8") -> FrontEnd | None:
    """Return the front end of a prepared float program that the steps of a scheme are too coarse for, None without.

    It is all that a LOG, SQRT or POW below 1 depends on, if no activation function is among it, layers with weights
    come after it, and the operator reads values of less than one step of its input's scale.
    """
    graph = flatbuffer.graph(flatbuffer.load(program))
    steep = [op for op in graph.ops if _is_steep(graph, op) and _too_fine(graph, op, ranges, _STEPS.get(scheme, 255))]
    before = {op.index: _before(graph, op) for op in steep}
    steep = [op for op in steep if not any(_is_learned(graph.ops[i]) for i in before[op.index])]
    inside = sorted(set().union(*(before[op.index] for op in steep)))
    if not inside or not any(op.name in _WEIGHTED and op.index not in inside for op in graph.ops):
        return None
    worst = min(steep, key=lambda op: ranges[_read(graph, op)][0] / ranges[_read(graph, op)][1])
    low, high = ranges[_read(graph, worst)]
    names = [graph.tensors[graph.ops[i].outputs[0]].name for i in inside]
    tensor = graph.tensors[worst.outputs[0]].name
    return FrontEnd(outputs=tuple(names), operator=worst.name, tensor=tensor, low=low, high=high)


def _read(graph: flatbuffer.Graph, op: flatbuffer.Op) -> str:
    return graph.tensors[op.inputs[0]].name


def _is_steep(graph: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    """Tell whether small differences near 0 become large ones."""
    if op.name != "POW":
        return op.name in _STEEP
    exponent = graph.data(op.inputs[1])
    return exponent is not None and bool(exponent.min() > 0 and exponent.max() < 1)


def _too_fine(graph: flatbuffer.Graph, op: flatbuffer.Op, ranges: Ranges, steps: int) -> bool:
    name = _read(graph, op)
    if name not in ranges:
        return False
    low, high = ranges[name]
    return high > 0 and low < (high - min(low, 0.0)) / steps


def _before(graph: flatbuffer.Graph, op: flatbuffer.Op) -> set[int]:
    """Return the operators that one depends on, itself included."""
    producers = graph.producers()
    found, waiting = set(), [op.index]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += [producers[t] for t in graph.ops[index].inputs if t in producers]
    return found


def _is_learned(op: flatbuffer.Op) -> bool:
    return op.name in _ACTIVATIONS or bool(op.option("fusedActivationFunction", 0))


def resolved(recipe: Recipe, program: bytes, ranges: Ranges | None) -> Recipe:
    """Return the recipe with an override for each operator of the front end in place of one that stands for all.

    Where there is no front end, or no range is known, the override stays, and matches nothing.
    """
    if ranges is None or not any(o.operator == NAME for o in recipe.overrides):
        return recipe
    found = find(program, ranges, recipe.scheme)
    if found is None:
        return recipe
    kept = tuple(Override(tensor=f"^{re.escape(name)}$") for name in dict.fromkeys(found.outputs))
    parts = ((replace(k, scheme=o.scheme) for k in kept) if o.operator == NAME else (o,) for o in recipe.overrides)
    return replace(recipe, overrides=tuple(override for part in parts for override in part))


def findings(program: bytes, ranges: Ranges | None, recipe: Recipe, *, integer: bool) -> tuple[Finding, ...]:
    """Return that a front end computes in integers, unless the recipe keeps it float; `integer`: the target must."""
    found = find(program, ranges, recipe.scheme) if ranges is not None and recipe.needs_calibration else None
    if found is None or coverage.kept_float((found.operator, found.tensor), recipe.overrides):
        return ()
    step = (found.high - min(found.low, 0.0)) / _STEPS[recipe.scheme]
    app = "Compute this part in the app and give the network its result"
    made = Finding(
        rule="FRONT_END_COARSE",
        severity="warning",
        op=found.tensor,
        message=f"The network computes a spectrum itself: {found.operator} reads values from {found.low:.3g} to "
        f"{found.high:.3g}, and one {recipe.scheme} step is {step:.3g}. What is smaller becomes 0 before "
        f"{found.operator} brings it out; {len(found.outputs)} operators lead there.",
        fix=f"{app}: this target computes in integers only."
        if integer
        else f"Keep them float: --keep-float front-end (--recipe auto tries it, too). {app} for an Edge TPU.",
    )
    return (made,)
