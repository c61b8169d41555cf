"""Write Edge TPU packages and compiled models for tests, after the schema of libedgetpu's executable.fbs.

No instruction is real: the packages have the structure that a reader meets, with bytes of zeros for parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers

from edge.targets.edgetpu.package import CUSTOM_OP, KINDS, Kind
from edge.targets.litert import edit, flatbuffer


@dataclass(frozen=True, kw_only=True)
class ExecutableFields:
    """What an executable shall say."""

    kind: Kind = "STAND_ALONE"
    parameter_bytes: int = 0
    name: str = "model"
    scratch_bytes: int = 0
    narrow_bytes: int = 1024
    cycles: int = 0
    cycles_64: int = 0
    token: int = 0x1234_5678_9ABC_DEF0


@dataclass(frozen=True, kw_only=True)
class PackageFields:
    """What a package shall say."""

    executables: tuple[ExecutableFields, ...] = field(default_factory=lambda: (ExecutableFields(),))
    min_runtime_version: int = 14
    compiler_version: str = "cl/"


def executable(fields: ExecutableFields) -> bytes:
    """Return the flatbuffer of one executable."""
    b = flatbuffers.Builder(1024)
    stream_bytes = b.CreateByteVector(bytes(16))
    b.StartObject(2)
    b.PrependUOffsetTRelativeSlot(0, stream_bytes, 0)
    stream = b.EndObject()
    b.StartVector(4, 1, 4)
    b.PrependUOffsetTRelative(stream)
    streams = b.EndVector()
    name, chip = b.CreateString(fields.name), b.CreateString("beagle")
    parameters = b.CreateByteVector(bytes(fields.parameter_bytes))
    b.StartObject(17)
    b.PrependUOffsetTRelativeSlot(1, name, 0)
    b.PrependInt32Slot(3, 1, 0)
    b.PrependInt32Slot(4, fields.scratch_bytes, 0)
    b.PrependUOffsetTRelativeSlot(5, streams, 0)
    b.PrependUOffsetTRelativeSlot(6, parameters, 0)
    b.PrependUOffsetTRelativeSlot(10, chip, 0)
    b.PrependInt32Slot(11, fields.cycles, 0)
    b.PrependInt32Slot(12, fields.narrow_bytes, 0)
    b.PrependInt16Slot(13, KINDS.index(fields.kind), 0)
    b.PrependUint64Slot(14, fields.token, 0)
    b.PrependInt64Slot(16, fields.cycles_64, 0)
    b.Finish(b.EndObject())
    return bytes(b.Output())


def package(fields: PackageFields) -> bytes:
    """Return the DWN1 flatbuffer of a package."""
    inner = flatbuffers.Builder(1024)
    entries = [inner.CreateByteVector(executable(e)) for e in fields.executables]
    inner.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        inner.PrependUOffsetTRelative(entry)
    vector = inner.EndVector()
    inner.StartObject(1)
    inner.PrependUOffsetTRelativeSlot(0, vector, 0)
    inner.Finish(inner.EndObject())
    b = flatbuffers.Builder(1024)
    multi = b.CreateByteVector(bytes(inner.Output()))
    version = b.CreateString(fields.compiler_version)
    b.StartObject(8)
    b.PrependInt32Slot(0, fields.min_runtime_version, 0)
    b.PrependUOffsetTRelativeSlot(1, multi, 0)
    b.PrependUOffsetTRelativeSlot(4, version, 0)
    b.Finish(b.EndObject(), b"DWN1")
    return bytes(b.Output())


def options(blob: bytes, *, as_string: bool = True) -> bytes:
    """Return the custom options with a package under the key "4": a string as the compiler writes it, or a blob."""
    b = flexbuffers.Builder()
    with b.Map():
        b.Key("1")
        b.Int(1)
        b.Key("4")
        if as_string:  # the public method takes text only, and the compiler's string is not UTF-8
            b._WriteBlob(blob, append_zero=True, type_=flexbuffers.Type.STRING)
        else:
            b.Blob(blob)
    return bytes(b.Finish())


def compiled(program: bytes, mapped: Sequence[bool], fields: PackageFields | None = None) -> bytes:
    """Return a model as the compiler leaves it: the mapped operators are one custom operator with a package."""
    model = flatbuffer.load(program)
    graph = model.subgraphs[0]
    inside = [op for op, on_chip in zip(graph.operators, mapped, strict=True) if on_chip]
    outside = [op for op, on_chip in zip(graph.operators, mapped, strict=True) if not on_chip]
    if inside:
        outside.insert(_first_user(outside, inside), _custom(model, graph, inside, outside, fields or PackageFields()))
    graph.operators = outside
    return flatbuffer.dump(model)


def _tensors(operators: Sequence[Any], attribute: str) -> list[int]:
    return [int(t) for op in operators for t in getattr(op, attribute) if t >= 0]


def _first_user(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    made = set(_tensors(inside, "outputs"))
    return next((i for i, op in enumerate(outside) if made & {int(t) for t in op.inputs}), len(outside))


def _custom(model: Any, graph: Any, inside: Sequence[Any], outside: Sequence[Any], fields: PackageFields) -> Any:
    view = flatbuffer.graph(model)
    made = set(_tensors(inside, "outputs"))
    taken = [t for t in dict.fromkeys(_tensors(inside, "inputs")) if t not in made and not view.tensors[t].is_constant]
    wanted = set(_tensors(outside, "inputs")) | {int(t) for t in graph.outputs}
    op = flatbuffer.schema().OperatorT()
    op.opcodeIndex = edit.code_index(model, "CUSTOM", 1)
    model.operatorCodes[op.opcodeIndex].customCode = CUSTOM_OP.encode()
    op.inputs, op.outputs = np.asarray(taken, np.int32), np.asarray(sorted(made & wanted), np.int32)
    op.customOptions = np.frombuffer(options(package(fields)), np.uint8)
    return op
