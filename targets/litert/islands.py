"""Operators that quantizers leave float although integers can compute them: written otherwise before, closed after.

Before quantizing, exact in real arithmetic: SQUARE(x) is MUL(x, x), NEG(x) is MUL(x, -1). After quantizing, an operator
that stands alone between DEQUANTIZE and QUANTIZE becomes its int8 form, which LiteRT's kernels compute by a table of
256 values (LOG, EXP) or by comparing (REDUCE_MAX, REDUCE_MIN: the scale of the input, then a QUANTIZE to the output's).
And an int8 DIV gets a divisor that is never 0.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edge.targets.litert import edit, flatbuffer

# Operator -> the first version with an int8 kernel. By a table: x -> quantize(f(dequantize(x))).
_BY_TABLE = {"LOG": 2, "EXP": 2}
_BY_COMPARING = {"REDUCE_MAX": 2, "REDUCE_MIN": 2}


def write_otherwise(model: Any) -> int:
    """Replace SQUARE and NEG of floats by MUL, in place; return how many."""
    done = 0
    for number, graph in enumerate(model.subgraphs):
        view = flatbuffer.graph(model, number)
        for raw, op in zip(graph.operators or (), view.ops, strict=True):
            if op.name not in ("SQUARE", "NEG") or view.tensors[op.inputs[0]].dtype != "float32":
                continue
            second = op.inputs[0]
            if op.name == "NEG":
                name = f"{view.tensors[op.outputs[0]].name}/minus_one"
                second = edit.add_constant(model, graph, name, np.array([-1.0], np.float32))
            raw.inputs = np.array([op.inputs[0], second], np.int32)
            raw.opcodeIndex = edit.code_index(model, "MUL")
            raw.builtinOptions = flatbuffer.schema().MulOptionsT()
            raw.builtinOptionsType = flatbuffer.schema().BuiltinOptions.MulOptions
            done += 1
    return done


def close(model: Any) -> int:
    """Give operators of the tables that stand between DEQUANTIZE and QUANTIZE their int8 form, in place."""
    done = 0
    while len(model.subgraphs) == 1 and _close_one(model):
        done += 1
    if done:
        edit.prune(model)
    return done


def _close_one(model: Any) -> bool:
    view = flatbuffer.graph(model)
    producers, consumers = view.producers(), view.consumers()
    for op in view.ops:
        version = {**_BY_TABLE, **_BY_COMPARING}.get(op.name)
        if version is None or op.inputs[0] not in producers or op.outputs[0] in view.outputs:
            continue
        before, after = view.ops[producers[op.inputs[0]]], [view.ops[i] for i in consumers.get(op.outputs[0], [])]
        if before.name != "DEQUANTIZE" or len(after) != 1 or after[0].name != "QUANTIZE":
            continue
        source, result = before.inputs[0], after[0].outputs[0]
        if {view.tensors[t].dtype for t in (source, result)} != {"int8"}:
            continue
        _rewire(model, view, op, source, after[0], version)
        return True
    return False


def _rewire(
    model: Any, view: flatbuffer.Graph, op: flatbuffer.Op, source: int, after: flatbuffer.Op, version: int
) -> None:
    graph = model.subgraphs[0]
    raw = graph.operators[op.index]
    raw.opcodeIndex = edit.code_index(model, op.name, version)
    raw.inputs = np.array([source, *op.inputs[1:]], np.int32)
    result = after.outputs[0]
    same = view.tensors[source].quantization == view.tensors[result].quantization
    dropped = set()
    if op.name in _BY_TABLE or same:
        raw.outputs = np.array([result], np.int32)
        dropped.add(after.index)
    else:
        # The float tensor between becomes int8 in the source's scale; QUANTIZE stays, to the result's.
        between = graph.tensors[op.outputs[0]]
        between.type, between.quantization = flatbuffer.dtype_code("int8"), graph.tensors[source].quantization
        requantize = graph.operators[after.index]
        requantize.opcodeIndex = edit.code_index(model, "QUANTIZE", 2)
    readers = view.consumers()[op.inputs[0]]
    if readers == [op.index] and op.inputs[0] not in view.outputs:
        dropped.add(view.producers()[op.inputs[0]])
    graph.operators = [o for i, o in enumerate(graph.operators) if i not in dropped]


def guard_divisions(model: Any) -> int:
    """Keep int8 divisors of one sign from being 0, in place; return how many.

    The kernel of DIV refuses to run where a divisor's stored value is its zero point, which a small value rounds to. A
    divisor of at least one step, by MAXIMUM (or MINIMUM below zero), changes no other result. Divisors of both signs
    cannot be helped so.
    """
    done, at = 0, 0
    while len(model.subgraphs) == 1:
        view = flatbuffer.graph(model)
        op = next((o for o in view.ops[at:] if _divides_by_small(view, o)), None)
        if op is None:
            break
        _guard(model, view, op)
        done, at = done + 1, op.index + 2
    return done


def _divides_by_small(view: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    if op.name != "DIV":
        return False
    divisor = view.tensors[op.inputs[1]]
    ends = divisor.quantization is not None and divisor.quantization.zero_point[0] in (-128, 127)
    return divisor.dtype == "int8" and not divisor.is_constant and ends


def _guard(model: Any, view: flatbuffer.Graph, op: flatbuffer.Op) -> None:
    graph, schema = model.subgraphs[0], flatbuffer.schema()
    divisor = view.tensors[op.inputs[1]]
    assert divisor.quantization is not None
    zero = divisor.quantization.zero_point[0]
    step = np.full([1] * len(divisor.shape), zero + (1 if zero < 0 else -1), np.int8)
    least = edit.add_constant(model, graph, f"{divisor.name}/one_step", step)
    made = copy.copy(graph.tensors[divisor.index])
    made.name, made.buffer = f"{divisor.name}/not_zero", 0
    graph.tensors[least].quantization = made.quantization
    graph.tensors.append(made)
    guard = schema.OperatorT()
    guard.opcodeIndex = edit.code_index(model, "MAXIMUM" if zero < 0 else "MINIMUM", 2)
    guard.inputs = np.array([divisor.index, least], np.int32)
    guard.outputs = np.array([len(graph.tensors) - 1], np.int32)
    guard.builtinOptions = schema.MaximumMinimumOptionsT()
    guard.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
    graph.operators[op.index].inputs = np.array([op.inputs[0], len(graph.tensors) - 1], np.int32)
    graph.operators.insert(op.index, guard)
