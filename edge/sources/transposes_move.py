"""Move TRANSPOSE operators down a graph, so that those of branches meet and cancel.

Two rewrites, each exact in real arithmetic, for detection heads that flatten their feature maps and join them:
4. reshape(transpose(x, [0, 3, 1, 2]), [n, c, h*w]) is transpose(reshape(x, [n, h*w, c]), [0, 2, 1]).
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
    """Apply rewrite 4 once; tell whether it fitted."""
    producers, consumers = graph.producers(), graph.consumers()
    for op in graph.ops:
        first = graph.ops[producers[op.inputs[0]]] if op.name == "RESHAPE" and op.inputs[0] in producers else None
        if first is None or permutation(graph, first) != _TO_FIRST or len(consumers[op.inputs[0]]) > 1:
            continue
        n, c, h, w = graph.tensors[first.outputs[0]].shape
        if graph.tensors[op.outputs[0]].shape != (n, c, h * w) or first.outputs[0] in graph.outputs:
            continue
        main = model.subgraphs[0]
        name = graph.tensors[op.outputs[0]].name
        flat = _activation(main, op.outputs[0], f"{name}/channel_last", (n, h * w, c))
        reshape = main.operators[op.index]
        transpose = copy.copy(main.operators[first.index])
        shape = np.array([n, h * w, c], np.int32)
        reshape.inputs = [first.inputs[0], edit.add_constant(model, main, f"{name}/shape", shape)]
        if reshape.builtinOptions is not None:
            reshape.builtinOptions = copy.copy(reshape.builtinOptions)
            reshape.builtinOptions.newShape = shape
        reshape.outputs = [flat]
        transpose.inputs = [flat, edit.add_constant(model, main, f"{name}/swap", np.array(_SWAP, np.int32))]
        transpose.outputs = [op.outputs[0]]
        main.operators.insert(op.index + 1, transpose)
        return True
    return False


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
