"""Remove TRANSPOSE operators that a channel-first source leaves inside of a channel-last program.

Six rewrites of the flatbuffer's graph, each exact in real arithmetic. P is a permutation, x a tensor of shape s:
1. transpose(transpose(x, P), Q) with P[Q[i]] = i is x.
2. reduce(transpose(x, P), axes) without kept dimensions is reduce(x, P[axes]), where P keeps the order of the others.
3. flatten(transpose(x, P)) @ W.T with P[0] = 0 is flatten(x) @ W'.T, the columns of W permuted from the order of
   transpose(x, P) to that of x.
6. transpose(x, P) where P keeps the order of the dimensions above 1 (one channel: mono sound, gray images) is a
   reshape.
Reflections that were written with transpositions are replaced first: see edge.sources.mirror. Rewrites 4 and 5, which
bring the TRANSPOSE operators of branches together, stand in edge.sources.transposes_move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.sources.carrier import count, prune, replace_tensor
from edge.sources.mirror import mirror_pads
from edge.sources.transposes_move import behind_concat, behind_reshape, permutation
from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_REDUCTIONS = frozenset({"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"})


def remove_transposes(model: Any) -> int:
    """Apply the rewrites until none fits; return how many TRANSPOSE operators went. Changes the model in place."""
    mirror_pads(model)
    before = count(model, "TRANSPOSE")
    rules = (_cancel, _reduce, _flatten, behind_reshape, behind_concat, _reshape)
    changed = False
    while any(rule(model, fb.graph(model)) for rule in rules):
        changed = True
    _drop_dead(model)
    removed = before - count(model, "TRANSPOSE")
    if changed or removed:
        prune(model)
    return removed


def _producer(graph: fb.Graph, producers: dict[int, int], tensor: int) -> fb.Op | None:
    return graph.ops[producers[tensor]] if tensor in producers else None


def _cancel(model: Any, graph: fb.Graph) -> bool:
    producers, consumers = graph.producers(), graph.consumers()
    for op in graph.ops:
        first = _producer(graph, producers, op.inputs[0]) if op.name == "TRANSPOSE" else None
        p, q = permutation(graph, first), permutation(graph, op)
        if first is None or p is None or q is None or tuple(p[i] for i in q) != tuple(range(len(p))):
            continue
        source, result = first.inputs[0], op.outputs[0]
        # An output must not become an input, a constant or the same tensor twice.
        if result in graph.outputs and (source not in producers or source in graph.outputs):
            continue
        if result not in graph.outputs and not consumers.get(result):
            continue  # dead: done before
        replace_tensor(model, result, source)
        return True
    return False


def _reduce(model: Any, graph: fb.Graph) -> bool:
    producers = graph.producers()
    for op in graph.ops:
        if op.name not in _REDUCTIONS or op.option("keepDims", default=True):
            continue
        transpose = _producer(graph, producers, op.inputs[0])
        p, axes = permutation(graph, transpose), graph.data(op.inputs[1])
        if transpose is None or p is None or axes is None:
            continue
        reduced = {int(a) % len(p) for a in axes.ravel()}
        kept = [p[i] for i in range(len(p)) if i not in reduced]
        if kept != sorted(kept):
            continue
        moved = np.array(sorted(p[i] for i in reduced), np.int32)
        target = model.subgraphs[0].operators[op.index]
        name = f"{graph.tensors[op.outputs[0]].name}/axes"
        target.inputs = [transpose.inputs[0], edit.add_constant(model, model.subgraphs[0], name, moved)]
        return True
    return False


def _flatten(model: Any, graph: fb.Graph) -> bool:
    producers = graph.producers()
    for op in graph.ops:
        transpose = _producer(graph, producers, op.inputs[0]) if op.name == "RESHAPE" else None
        p = permutation(graph, transpose)
        if transpose is None or p is None or p[0] != 0:
            continue
        shape = graph.tensors[transpose.outputs[0]].shape
        readers = _dense_readers(graph, op, shape)
        if not readers:
            continue
        for weights in {reader.inputs[1] for reader in readers}:
            _permute_columns(model, graph, weights, shape, p, readers)
        model.subgraphs[0].operators[op.index].inputs = [transpose.inputs[0], *op.inputs[1:]]
        return True
    return False


def _dense_readers(graph: fb.Graph, reshape: fb.Op, shape: tuple[int, ...]) -> list[fb.Op]:
    """Return the FULLY_CONNECTED readers of a flattening RESHAPE, none where anything else reads it too."""
    flat = reshape.outputs[0]
    readers = [graph.ops[i] for i in graph.consumers().get(flat, [])]
    dense = all(
        op.name == "FULLY_CONNECTED"
        and op.inputs[0] == flat
        and op.inputs[1] != flat
        and _is_float(graph, op.inputs[1])
        for op in readers
    )
    fits = graph.tensors[flat].shape == (shape[0], int(np.prod(shape[1:])))
    return readers if dense and fits and flat not in graph.outputs else []


def _is_float(graph: fb.Graph, tensor: int) -> bool:
    value = graph.data(tensor)
    return value is not None and value.dtype == np.float32


def _permute_columns(
    model: Any, graph: fb.Graph, weights: int, shape: tuple[int, ...], p: tuple[int, ...], readers: list[fb.Op]
) -> None:
    value = graph.data(weights)
    if value is None:
        raise AssertionError("the caller checked that the weights are constant")
    # Axis 0 stays the output unit; source axis j stands at position p.index(j) of the transposed order.
    order = (0, *(p.index(j) for j in range(1, len(p))))
    moved = value.reshape(len(value), *shape[1:]).transpose(order).reshape(value.shape)
    tensor = graph.tensors[weights]
    ours = {op.index for op in readers}
    shared = any(t.buffer == tensor.buffer and t.index != weights for t in graph.tensors)
    if not shared and set(graph.consumers()[weights]) <= ours:
        buffer = model.buffers[tensor.buffer]
        buffer.data = np.frombuffer(np.ascontiguousarray(moved).tobytes(), np.uint8)
        return
    copy = edit.add_constant(model, model.subgraphs[0], f"{tensor.name}/channel_last", moved)
    for op in readers:
        if op.inputs[1] == weights:
            model.subgraphs[0].operators[op.index].inputs = [op.inputs[0], copy, *op.inputs[2:]]


def _reshape(model: Any, graph: fb.Graph) -> bool:
    for op in graph.ops:
        p, shape = permutation(graph, op), graph.tensors[op.inputs[0]].shape if op.inputs else ()
        moved = [i for i in p or () if shape[i] != 1]
        if p is None or moved != sorted(moved):
            continue
        main, wanted = model.subgraphs[0], np.array(graph.tensors[op.outputs[0]].shape, np.int32)
        raw = main.operators[op.index]
        name = f"{graph.tensors[op.outputs[0]].name}/shape"
        raw.inputs = [op.inputs[0], edit.add_constant(model, main, name, wanted)]
        raw.opcodeIndex = edit.code_index(model, "RESHAPE")
        raw.builtinOptions = fb.schema().ReshapeOptionsT()
        raw.builtinOptions.newShape = wanted
        raw.builtinOptionsType = fb.schema().BuiltinOptions.ReshapeOptions
        return True
    return False


def _drop_dead(model: Any) -> None:
    graph = fb.graph(model)
    live = {t for op in graph.ops for t in op.inputs} | set(graph.outputs)
    dead = {op.index for op in graph.ops if op.name == "TRANSPOSE" and not live & set(op.outputs)}
    if dead:
        model.subgraphs[0].operators = [op for i, op in enumerate(model.subgraphs[0].operators) if i not in dead]
        _drop_dead(model)
