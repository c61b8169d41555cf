"""Outputs that join branches of different size: one int8 scale for boxes in pixels and scores below 1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.recipe import Override, Recipe
from edge.findings import Finding
from edge.targets.litert import flatbuffer
from edge.targets.litert.session import LiteRTSession, run_float

if TYPE_CHECKING:
    from edge.calibration.ranges import Ranges

# int8 has 8 bits: a branch 16 times smaller than its neighbour keeps 4 of them. At an output, where nothing follows
# that could make up for it and a split costs only a copy, losing 2 bits is worth telling.
_FACTOR = 16.0
FACTOR_AT_OUTPUT = 4.0
# Where the user asks for splits, one lost bit is enough.
FACTOR_TO_SPLIT = 2.0
_SAMPLES = 16
# What stands between a joint and the output without changing values.
_PASSING = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "CONCATENATION"})


def find_clashes(program: bytes, ranges: Ranges, *, at_output: float = FACTOR_AT_OUTPUT) -> tuple[Finding, ...]:
    """Return a HEAD_SCALE_CLASH per CONCATENATION whose inputs' ranges differ more than 16-fold.

    An error where the joined tensor is an output of the network (from `at_output`-fold on), else a warning.
    """
    graph = flatbuffer.graph(flatbuffer.load(program))
    found = []
    for op in graph.ops:
        if op.name not in ("CONCATENATION", "PACK"):
            continue
        sizes = {graph.tensors[t].name: _size(ranges, graph.tensors[t].name) for t in op.inputs}
        known = {name: size for name, size in sizes.items() if size > 0}
        end = _reaches_output(graph, op.outputs[0])
        factor = at_output if end else _FACTOR
        if len(known) < 2 or max(known.values()) <= factor * min(known.values()):
            continue
        large, small = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        found.append(
            Finding(
                rule="HEAD_SCALE_CLASH",
                severity="error" if end else "warning",
                op=graph.tensors[op.outputs[0]].name,
                message=f"{op.name} joins {large!r} (up to {known[large]:.3g}) and {small!r} "
                f"(up to {known[small]:.3g}) in one int8 scale: a step is {2 * known[large] / 255:.3g}.",
                fix="Return the branches as outputs of their own, or bring both to one size (boxes in 0 to 1)."
                if end
                else "Bring the branches to one size before they are joined.",
            )
        )
    return tuple(found)


def joint_tail(program: bytes, joint: str) -> tuple[str, ...]:
    """Return the tensors written from a joint (by name) to the output: kept float, each branch keeps its own scale."""
    graph = flatbuffer.graph(flatbuffer.load(program))
    tensor = next(t.index for t in graph.tensors if t.name == joint)
    names = [joint]
    while tensor not in graph.outputs:
        following = [graph.ops[r] for r in graph.consumers().get(tensor, []) if graph.ops[r].name in _PASSING]
        if not following:
            break
        tensor = following[0].outputs[0]
        names.append(graph.tensors[tensor].name)
    return tuple(names)


def _size(ranges: Ranges, name: str) -> float:
    return max(map(abs, ranges[name])) if name in ranges else 0.0


def _reaches_output(graph: flatbuffer.Graph, tensor: int) -> bool:
    if tensor in graph.outputs:
        return True
    readers = graph.consumers().get(tensor, [])
    return any(graph.ops[r].name in _PASSING and _reaches_output(graph, graph.ops[r].outputs[0]) for r in readers)


def split_recipe(program: bytes, recipe: Recipe, joints: Iterable[str]) -> Recipe:
    """Return the recipe with everything from the joints on in float, outputs too: each branch keeps its own scale."""
    names = dict.fromkeys(name for joint in joints for name in joint_tail(program, joint))
    kept = tuple(Override(tensor=f"^{re.escape(name)}$") for name in names)
    return replace(recipe, overrides=(*recipe.overrides, *kept), output_io="float32")


def signal_to_noise_db(program: bytes, quantized: bytes, samples: Iterable[Any]) -> float:
    """Return the worst over outputs and columns of 10 log10(sum ref^2 / sum err^2), in dB, over some samples.

    Columns are indices of the last axis: a loss in the scores is not hidden behind large boxes.
    """
    opened = [LiteRTSession(p, kernels="xnnpack", threads=1) for p in (program, quantized)]
    signal: dict[str, Any] = {}
    noise: dict[str, Any] = {}
    for sample in itertools.islice(samples, _SAMPLES):
        reference, found = (run_float(session, sample.inputs) for session in opened)
        for name, values in reference.items():
            columns = np.asarray(values, np.float64).reshape(-1, values.shape[-1] if values.ndim else 1)
            error = columns - np.asarray(found[name], np.float64).reshape(columns.shape)
            signal[name] = signal.get(name, 0.0) + (columns**2).sum(0)
            noise[name] = noise.get(name, 0.0) + (error**2).sum(0)
    ratios = np.concatenate([np.atleast_1d(signal[n]) / np.maximum(noise[n], 1e-30) for n in signal])
    return float(10 * np.log10(max(float(ratios.min()), 1e-10)))
