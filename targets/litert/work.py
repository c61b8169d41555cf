"""What each operator of a flatbuffer makes a CPU do, for targets/roofline.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge import codec
from edge.targets import roofline
from edge.targets.base import Target
from edge.targets.litert import flatbuffer, inspect
from edge.targets.litert.flatbuffer import Graph, Op, Tensor
from edge.targets.roofline import Arithmetic, Kernel, Work

_FREE = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"))
_EIGHT_BIT: tuple[Arithmetic, ...] = ("int8", "uint8")
_PACKED = frozenset(("int8", "uint8", "int4", "uint4", "int2"))
_CONTROL = frozenset(("WHILE", "IF", "CALL", "CALL_ONCE"))


def work_of(graphs: Sequence[Graph]) -> tuple[tuple[Work, ...], str | None]:
    """Return the work of a program's operators, and why there can be no prediction (None where there can).

    Parameters that XNNPACK unpacks when it loads a program (a DEQUANTIZE of a constant) count with their unpacked size,
    and the operator that unpacks them counts nothing.
    """
    if reason := _reason(graphs):
        return (), reason
    (graph,) = graphs
    unpacked = {op.outputs[0] for op in graph.ops if _unpacks(graph, op)}
    kept = [op for op in graph.ops if op.name not in _FREE and not _unpacks(graph, op)]
    return tuple(_work(graph, op, unpacked) for op in kept), None


def predicted_latency(path: Path, target: Target | None) -> Mapping[str, Any]:
    """Return `latency_ms`, intervals by number of threads, or `latency_note`; nothing for a target without a roofline.

    As many threads as the target's option `threads` asks for come first, then one. Raises ConfigError, SourceError.
    """
    known = roofline.roofline_of(target.hardware, f"target {target.name}") if target else None
    if target is None or known is None:
        return {}
    found, reason = work_of(list(flatbuffer.graphs(flatbuffer.load(path))))
    if reason is not None:
        return {"latency_note": f"no latency is predicted: {reason}"}
    threads = (int(target.options.get("threads", 1)), 1)
    return {"latency_ms": {name: codec.to_json(i) for name, i in roofline.predict(found, known, threads).items()}}


def _reason(graphs: Sequence[Graph]) -> str | None:
    names = {op.name for g in graphs for op in g.ops}
    if len(graphs) != 1 or names & _CONTROL:
        return "how often its subgraphs run is not known before"
    if custom := next((op.custom for op in graphs[0].ops if op.custom), None):
        return f"the cost of the custom operator {custom} is not known"
    if any(t.dtype == "int16" and not t.is_constant for t in graphs[0].tensors):
        return "int16 activations run on kernels that no published latency tells of"
    # The first dimension is the batch, and its stored size is 1.
    if any(-1 in t.signature_shape[1:] for t in graphs[0].tensors):
        return "it has dynamic dimensions"
    return None


def _unpacks(graph: Graph, op: Op) -> bool:
    return op.name == "DEQUANTIZE" and graph.tensors[op.inputs[0]].is_constant


def _work(graph: Graph, op: Op, unpacked: set[int]) -> Work:
    used = [graph.tensors[t] for t in op.inputs if t >= 0]
    parameters = [t for t in used if t.is_constant or t.index in unpacked]
    activations = [t for t in used if not t.is_constant and t.index not in unpacked]
    made = [graph.tensors[t] for t in op.outputs]
    macs, arithmetic = inspect.macs(graph, op), _arithmetic(activations or made, parameters)
    kernel: Kernel = "depthwise" if op.name == "DEPTHWISE_CONV_2D" else "dense" if macs else "other"
    return Work(
        kernel=kernel,
        arithmetic=arithmetic,
        macs=macs,
        activations=tuple(t.nbytes for t in (*activations, *made)),
        parameter_bytes=sum(t.nbytes for t in parameters),
        published=not macs or arithmetic in ("float32", *{t.dtype for t in activations}),
    )


def _arithmetic(activations: Sequence[Tensor], parameters: Sequence[Tensor]) -> Arithmetic:
    """Return the activations' integers, or int8 where XNNPACK quantizes float activations as it runs (dynamic)."""
    for integer in _EIGHT_BIT:
        if any(t.dtype == integer for t in activations):
            return integer
    weights = max(parameters, key=lambda t: t.elements, default=None)
    return "int8" if weights is not None and weights.dtype in _PACKED else "float32"
