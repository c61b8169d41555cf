"""Move TRANSPOSE operators down a graph, so that those of branches meet and cancel.

Three rewrites, each exact in real arithmetic, for detection heads that flatten their feature maps and join them:
4. reshape(transpose(x, [0, 3, 1, 2]), [n, c, h*w]) is transpose(reshape(x, [n, h*w, c]), [0, 2, 1]).
   And back: reshape(transpose(x, [0, 2, 1]), [n, c, h, w]) is transpose(reshape(x, [n, h, w, c]), [0, 3, 1, 2]), for
   convolutions over series, which are those of images with one row.
5. concat(transpose(x1, P), …, transpose(xk, P)) along axis a is transpose(concat(x1, …, xk) along P[a], P).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

_TO_FIRST, _SWAP = (0, 3, 1, 2), (0, 2, 1)


def permutation(graph: fb.Graph, op: fb.Op | None) -> tuple[int, ...] | None:
    """Return the constant permutation of a TRANSPOSE, None for another operator."""
    if op is None or op.name != "TRANSPOSE" or (value := graph.data(op.inputs[1])) is None:
        return None
    return tuple(int(v) for v in value.ravel())


def behind_reshape(model: Any, graph: fb.Graph) -> bool:
    """Apply rewrite 4 once, in either direction; tell whether it fitted."""
    producers, consumers = graph.producers(), graph.consumers()
    for op in graph.ops:
        first = graph.ops[producers[op.inputs[0]]] if op.name == "RESHAPE" and op.inputs[0] in producers else None
        if first is None or len(consumers[op.inputs[0]]) > 1 or first.outputs[0] in graph.outputs:
            continue
        before, after = graph.tensors[first.outputs[0]].shape, graph.tensors[op.outputs[0]].shape
        if (moved := _moved(permutation(graph, first), before, after)) is not None:
            _swap(model, graph, op, first, *moved)
            return True
    return False


def _moved(
    p: tuple[int, ...] | None, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shape of the reshape that comes first and the permutation behind it; None where none is known."""
    if p == _TO_FIRST and len(before) == 4:
        n, c, h, w = before
        return ((n, h * w, c), _SWAP) if after == (n, c, h * w) else None
    if p == _SWAP and len(after) == 4 and after[:2] == before[:2] and after[2] * after[3] == before[2]:
        return (after[0], after[2], after[3], after[1]), _TO_FIRST
    return None


def _swap(model: Any, graph: fb.Graph, op: fb.Op, first: fb.Op, shape: tuple[int, ...], p: tuple[int, ...]) -> None:
    main = model.subgraphs[0]
    name = graph.tensors[op.outputs[0]].name
    sizes = np.array(shape, np.int32)
    reshape, transpose = main.operators[op.index], copy.copy(main.operators[first.index])
    made = _activation(main, op.outputs[0], f"{name}/channel_last", shape)
    reshape.inputs = [first.inputs[0], edit.add_constant(model, main, f"{name}/shape", sizes)]
    if reshape.builtinOptions is not None:
        reshape.builtinOptions = copy.copy(reshape.builtinOptions)
        reshape.builtinOptions.newShape = sizes
    reshape.outputs = [made]
    transpose.inputs = [made, edit.add_constant(model, main, f"{name}/swap", np.array(p, np.int32))]
    transpose.outputs = [op.outputs[0]]
    main.operators.insert(op.index + 1, transpose)


def behind_concat(model: Any, graph: fb.Graph) -> bool:
    """Apply rewrite 5 once; tell whether it fitted."""
    producers, consumers = graph.producers(), graph.consumers()
    for op in graph.ops:
        if op.name != "CONCATENATION" or len(op.inputs) < 2:
            continue
        firsts = [graph.ops[producers[i]] if i in producers else None for i in op.inputs]
        found = {permutation(graph, f) for f in firsts}
        alone = all(len(consumers[i]) == 1 and i not in graph.outputs for i in op.inputs)
        if len(found) != 1 or None in found or not alone:
            continue
        p = next(iter(found)) or ()
        _join(model, graph, op, [f for f in firsts if f is not None], p)
        return True
    return False


def _join(model: Any, graph: fb.Graph, op: fb.Op, firsts: Sequence[fb.Op], p: tuple[int, ...]) -> None:
    main = model.subgraphs[0]
    result = graph.tensors[op.outputs[0]]
    joined = tuple(result.shape[p.index(axis)] for axis in range(len(p)))
    concat = main.operators[op.index]
    transpose = copy.copy(main.operators[firsts[0].index])
    axis = int(op.option("axis", 0))
    concat.builtinOptions = copy.copy(concat.builtinOptions)
    concat.builtinOptions.axis = p[axis % len(p)]
    concat.inputs = [f.inputs[0] for f in firsts]
    concat.outputs = [_activation(main, op.outputs[0], f"{result.name}/joined", joined)]
    transpose.inputs = [concat.outputs[0], firsts[0].inputs[1]]
    transpose.outputs = [op.outputs[0]]
    main.operators.insert(op.index + 1, transpose)


def _activation(main: Any, like: int, name: str, shape: Sequence[int]) -> int:
    """Append a tensor of the dtype of `like`, without a value, and return its index."""
    tensor = copy.copy(main.tensors[like])
    tensor.name, tensor.shape = name, np.array(shape, np.int32)
    tensor.shapeSignature = None
    main.tensors.append(tensor)
    return len(main.tensors) - 1
