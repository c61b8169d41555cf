"""Outputs that join branches of different size: one int8 scale for boxes in pixels and scores below 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.findings import Finding
from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from edge.calibration.ranges import Ranges

# int8 has 8 bits: a branch 16 times smaller than its neighbour keeps 4 of them.
_FACTOR = 16.0
# What stands between a joint and the output without changing values.
_PASSING = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS"})


def find_clashes(program: bytes, ranges: Ranges) -> tuple[Finding, ...]:
    """Return a HEAD_SCALE_CLASH per CONCATENATION whose inputs' ranges differ more than 16-fold.

    An error where the joined tensor is an output of the network, else a warning.
    """
    graph = flatbuffer.graph(flatbuffer.load(program))
    found = []
    for op in graph.ops:
        if op.name not in ("CONCATENATION", "PACK"):
            continue
        sizes = {graph.tensors[t].name: _size(ranges, graph.tensors[t].name) for t in op.inputs}
        known = {name: size for name, size in sizes.items() if size > 0}
        if len(known) < 2 or max(known.values()) <= _FACTOR * min(known.values()):
            continue
        large, small = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        end = _reaches_output(graph, op.outputs[0])
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
