"""What can be said of a flatbuffer without running it: operators, memory, work, findings."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from edge.findings import Finding
from edge.targets import arena
from edge.targets.base import Inspection, Operator
from edge.targets.litert import contract, coverage, flatbuffer
from edge.targets.litert.flatbuffer import Graph, Op

_ALIGNMENT = 16
_INTEGER_ACTIVATIONS = frozenset({"int8", "uint8", "int16"})
# (operator, version) that a runtime was seen to lack, and the first release that may have it: tflite-runtime 2.14.0
# refuses GATHER_ND version 5. Converters write the exact number into the file, which is preferred.
_NEEDED_RUNTIME = {("GATHER_ND", 5): "2.15.0"}


def inspect_program(path: Path) -> Inspection:
    """Return the inspection of a `.tflite` file. Raises SourceError for what is no valid program."""
    model = flatbuffer.load(path)
    views = list(flatbuffer.graphs(model))
    found = coverage.of(model)
    return Inspection(
        operators=tuple(
            Operator(
                index=op.index,
                op=op.custom or op.name,
                outputs=tuple(view.tensors[t].name for t in op.outputs),
                subgraph=number,
            )
            for number, view in enumerate(views)
            for op in view.ops
        ),
        parameter_bytes=flatbuffer.parameter_bytes(model),
        arena_bytes=arena_bytes(views[0]),
        signature=contract.signature_of(model),
        findings=_findings(model, views, found),
        details=_details(path, model, views, found),
    )


def _details(path: Path, model: Any, views: list[Graph], found: coverage.Coverage) -> dict[str, Any]:
    work = [(op, macs(view, op)) for view in views for op in view.ops]
    by_operator: Counter[str] = Counter()
    versions: dict[str, set[int]] = {}
    for op, count in work:
        by_operator[op.name] += count
        versions.setdefault(op.custom or op.name, set()).add(op.version)
    integer = found.total - len(found.left_float)
    return {
        "size_bytes": path.stat().st_size,
        "subgraphs": len(views),
        "operator_counts": dict(Counter(op.custom or op.name for op, _ in work)),
        "operator_versions": {name: sorted(numbers) for name, numbers in sorted(versions.items())},
        "macs": sum(by_operator.values()),
        "macs_by_operator": {name: count for name, count in by_operator.items() if count},
        "macs_per_operator": [count for _, count in work],
        "integer_operators": integer,
        "float_operators": len(found.left_float),
        "inner_conversions": found.conversions,
        "min_runtime_version": min_runtime_version(model),
        "live_bytes": live_bytes(views[0]),
        "arena_note": "activations of subgraph 0; scratch buffers of kernels come on top",
    }


def arena_bytes(view: Graph) -> int:
    """Return the bytes of the activation arena, offsets aligned to 16, without scratch buffers of kernels."""
    return arena.planned_bytes((size, first, last) for size, first, last, _ in _lifetimes(view))


def live_bytes(view: Graph) -> list[int]:
    """Return the bytes of all activations that are held while each operator of a subgraph runs, in order."""
    held = [0] * len(view.ops)
    for size, first, last, _ in _lifetimes(view):
        for index in range(max(first, 0), min(last, len(held) - 1) + 1):
            held[index] += size
    return held


def _lifetimes(view: Graph) -> list[tuple[int, int, int, int]]:
    """Return (size, first operator, last operator, tensor) of every activation; -1 and n are before and after all."""
    first = dict.fromkeys(view.inputs, -1)
    last = dict.fromkeys(view.inputs, -1)
    for op in view.ops:
        for t in op.outputs:
            first.setdefault(t, op.index)
            last[t] = max(last.get(t, -1), op.index)
        for t in op.inputs:
            if t in first:
                last[t] = op.index
    for t in view.outputs:
        last[t] = len(view.ops)
    for tensor in view.tensors:
        if tensor.is_variable:
            first[tensor.index], last[tensor.index] = -1, len(view.ops)
    return [
        (-(-view.tensors[t].nbytes // _ALIGNMENT) * _ALIGNMENT, begin, last[t], t)
        for t, begin in first.items()
        if not view.tensors[t].is_constant
    ]


def macs(view: Graph, op: Op) -> int:
    """Return the multiply-accumulates of one operator; 0 for what is no convolution or matrix product.

    CONV_2D: elements of the output times kernel height, width and input channels of one group (the weights' [1:]).
    """
    shapes = [view.tensors[t].shape if t >= 0 else () for t in op.inputs]
    out = view.tensors[op.outputs[0]].elements if op.outputs else 0
    work = 0
    match op.name:
        case "CONV_2D":
            work = out * math.prod(shapes[1][1:])
        case "DEPTHWISE_CONV_2D":
            work = out * math.prod(shapes[1][1:3])
        case "FULLY_CONNECTED":
            work = out * shapes[1][-1]
        case "TRANSPOSE_CONV":
            work = math.prod(shapes[2]) * math.prod(shapes[1][:3])
        case "CONV_3D":
            work = out * math.prod(shapes[1][:4])
        case "BATCH_MATMUL":
            work = out * shapes[0][-2 if op.option("adjX", default=False) else -1]
        case "UNIDIRECTIONAL_SEQUENCE_LSTM":
            work = _lstm_macs(view, op)
    return work


def _lstm_macs(view: Graph, op: Op) -> int:
    steps = view.tensors[op.inputs[0]].elements // max(1, view.tensors[op.inputs[0]].shape[-1])
    weights = [t for t in op.inputs[1:9] if t >= 0]  # four gates, from the input and from the recurrent state
    return steps * sum(view.tensors[t].elements for t in weights)


def min_runtime_version(model: Any) -> str | None:
    """Return the oldest TensorFlow Lite runtime that has the operators' versions, None where it is not known."""
    stated = [
        bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode(errors="replace")
        for entry in model.metadata or ()
        if flatbuffer.text(entry.name) == "min_runtime_version" and model.buffers[entry.buffer].data is not None
    ]
    used = {(op.name, op.version) for view in flatbuffer.graphs(model) for op in view.ops}
    needed = [version for key, version in _NEEDED_RUNTIME.items() if key in used]
    return max(filter(None, (*stated, *needed)), key=_version_key, default=None)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _findings(model: Any, views: list[Graph], found: coverage.Coverage) -> tuple[Finding, ...]:
    made = [*_custom(views), *_dynamic(views), *_transposes(views[0])]
    activations = {t.dtype for v in views for t in v.tensors if not t.is_constant and t.quantization is not None}
    if activations & _INTEGER_ACTIVATIONS:
        made.extend(coverage.findings(found))
    if "int16" in activations and len(model.subgraphs) == 1:
        made.append(
            Finding(
                rule="INT16_SLOW",
                severity="info",
                message="XNNPACK has no int16 kernels: on a CPU this runs about 20 times slower than float.",
                fix="Use int8 or float on CPUs; int16 activations pay on accelerators that have them.",
            )
        )
    return tuple(made)


def _custom(views: list[Graph]) -> list[Finding]:
    names = sorted({op.custom for v in views for op in v.ops if op.custom})
    return [
        Finding(
            rule="CUSTOM_OP",
            severity="error",
            op=name,
            message=f"{name} is a custom operator: a plain LiteRT runtime cannot run it.",
            fix="Convert without SELECT_TF_OPS, or move the operator out of the model.",
        )
        for name in names
    ]


def _dynamic(views: list[Graph]) -> list[Finding]:
    names = [t.name for v in views for t in v.tensors if -1 in t.signature_shape]
    if not names:
        return []
    return [
        Finding(
            rule="DYNAMIC_SHAPE",
            severity="warning",
            op=names[0],
            message=f"{len(names)} tensors have dynamic dimensions, the first is {names[0]!r}.",
            fix="Convert with fixed shapes: accelerators refuse dynamic ones and CPUs plan memory at run time.",
        )
    ]


def _transposes(view: Graph) -> list[Finding]:
    made = []
    for op in view.ops:
        side = "input" if op.name == "TRANSPOSE" and op.inputs[0] in view.inputs else None
        if op.name == "TRANSPOSE" and op.outputs[0] in view.outputs:
            side = side or "output"
        if side:
            made.append(
                Finding(
                    rule="TRANSPOSE_AT_ENDS",
                    severity="warning",
                    op=view.tensors[op.outputs[0]].name,
                    message=f"A TRANSPOSE stands at the {side}: the program keeps the channel-first layout.",
                    fix="Build with the layout channel-last.",
                )
            )
    return made
