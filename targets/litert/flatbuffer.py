"""Read, check, view and write LiteRT (TFLite) flatbuffers, through the schema that ai-edge-litert ships.

Nothing here runs a model. `load` refuses files whose structure an interpreter would follow out of bounds: the
interpreters crash on some of them (an operator that names a tensor that is not there).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import SourceError
from edge.signature import Quantization
from edge.targets.litert import verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of buffers: schema.fbs says force_align 16, which the Python generator ignores
_NUMPY = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
    "COMPLEX64": "complex64",
}


@functools.cache
def schema() -> Any:
    """Return the module of generated schema classes; raise MissingPackageError where ai-edge-litert is absent."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        from edge.errors import MissingPackageError

        raise MissingPackageError(
            "Reading a .tflite file needs the package ai-edge-litert, which is not installed.",
            hint="pip install 'edgekit[litert]'",
        ) from error
    return schema_py_generated


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    values = vars(getattr(schema(), enumeration))
    return {v: k for k, v in values.items() if isinstance(v, int) and not k.startswith("_")}


def code_of(operator: str) -> int:
    """Return the builtin operator's number; raise KeyError for a name that the schema does not have."""
    return {name: code for code, name in _names("BuiltinOperator").items()}[operator]


def dtype_code(dtype: str) -> int:
    """Return the schema's TensorType of a dtype such as `int8`."""
    return {_NUMPY.get(name, name.lower()): code for code, name in _names("TensorType").items()}[dtype]


@dataclass(frozen=True)
class Tensor:
    """A view of one tensor. `shape` is the concrete one; `signature_shape` has -1 for dynamic dimensions."""

    index: int
    name: str
    shape: tuple[int, ...]
    signature_shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    is_constant: bool
    is_variable: bool
    buffer: int

    @property
    def elements(self) -> int:
        """Number of elements, 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes as stored."""
        if self.dtype in ("int4", "uint4"):
            return (self.elements + 1) // 2
        if self.dtype == "int2":
            return (self.elements + 3) // 4
        return self.elements * (np.dtype(self.dtype).itemsize if self.dtype in _NUMPY.values() else 1)


@dataclass(frozen=True)
class Op:
    """A view of one operator. Inputs hold -1 for an omitted optional one. `options` is the schema's object or None."""

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    custom: str | None = None

    def option(self, name: str, default: Any = None) -> Any:
        """Return a field of the builtin options, `default` where the operator has none."""
        return getattr(self.options, name, default)


@dataclass(frozen=True)
class Graph:
    """A view of one subgraph: tensors by index, operators in execution order."""

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str
    _buffers: tuple[Any, ...]

    def data(self, tensor: int) -> Array | None:
        """Return the constant value of a tensor in its shape, None for an activation or a packed type."""
        t = self.tensors[tensor]
        raw = self._buffers[t.buffer]
        if not t.is_constant or raw is None or t.dtype not in _NUMPY.values():
            return None
        return np.frombuffer(np.ascontiguousarray(raw).tobytes(), dtype=t.dtype)[: t.elements].reshape(t.shape)

    def producers(self) -> dict[int, int]:
        """Map each produced tensor to the index of its operator."""
        return {t: op.index for op in self.ops for t in op.outputs}

    def consumers(self) -> dict[int, list[int]]:
        """Map each consumed tensor to the indices of its operators."""
        found: dict[int, list[int]] = {}
        for op in self.ops:
            for t in op.inputs:
                if t >= 0:
                    found.setdefault(t, []).append(op.index)
        return found


def _bad(where: str, why: str) -> SourceError:
    return SourceError(
        f"{where} is not a valid LiteRT flatbuffer: {why}.",
        hint="The file is damaged or was written by a faulty tool; convert the model again.",
    )


def load(source: Path | bytes, *, name: str | None = None) -> Any:
    """Return the checked `ModelT` of a `.tflite` file or its bytes; raise SourceError with the reason."""
    where = name or (str(source) if isinstance(source, Path) else "The program")
    try:
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error.strerror}.") from error
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise _bad(where, f"it has no {IDENTIFIER.decode()} identifier")
    try:
        verify.verify(data)
        model = schema().ModelT.InitFromPackedBuf(data, 0)
    except verify.DamagedError as error:
        raise _bad(where, str(error)) from error
    except SourceError:
        raise
    except Exception as error:  # the generated reader raises whatever a wild offset leads to
        raise _bad(where, "it ends early or an offset leads out of the file") from error
    _check(model, where, data)
    return model


def _check(model: Any, where: str, data: bytes) -> None:
    if not model.subgraphs or model.buffers is None or not _has(model.operatorCodes, model.subgraphs):
        raise _bad(where, "it has no graph")
    for buffer in model.buffers:
        if buffer.offset > 1 and buffer.offset + buffer.size > len(data):
            raise _bad(where, "a buffer lies outside of the file")
    _inline_buffers(model, data)
    for number, graph in enumerate(model.subgraphs):
        _check_graph(model, graph, where, f"subgraph {number}")
    for signature in _list(model.signatureDefs):
        if not 0 <= signature.subgraphIndex < len(model.subgraphs):
            raise _bad(where, "a signature names a subgraph that is not there")
        tensors = len(_list(model.subgraphs[signature.subgraphIndex].tensors))
        for entry in [*_list(signature.inputs), *_list(signature.outputs)]:
            _check_indices([entry.tensorIndex], tensors, where, "a signature", optional=False)


def _inline_buffers(model: Any, data: bytes) -> None:
    """Bring buffers that stand behind the flatbuffer (large models, ai-edge-quantizer) into the object."""
    for buffer in model.buffers:
        if buffer.offset > 1 and buffer.size > 0:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0


def _check_graph(model: Any, graph: Any, where: str, place: str) -> None:
    codes, tensors = len(_list(model.operatorCodes)), len(_list(graph.tensors))
    for t in _list(graph.tensors):
        _check_tensor(t, model, where, place)
    _check_indices(_ints(graph.inputs), tensors, where, f"{place}: input", optional=False)
    _check_indices(_ints(graph.outputs), tensors, where, f"{place}: output", optional=False)
    for at, op in enumerate(_list(graph.operators)):
        if not 0 <= op.opcodeIndex < codes:
            raise _bad(where, f"{place}: operator {at} has code {op.opcodeIndex} of {codes}")
        _check_indices(_ints(op.inputs), tensors, where, f"{place}: operator {at} input", optional=True)
        _check_indices(_ints(op.outputs), tensors, where, f"{place}: operator {at} output", optional=False)
        _check_indices(_ints(op.intermediates), tensors, where, f"{place}: operator {at}", optional=True)
        _check_calls(op, len(model.subgraphs), where, f"{place}: operator {at}")


def _check_calls(op: Any, subgraphs: int, where: str, place: str) -> None:
    for field in ("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex", "subgraph"):
        target = getattr(op.builtinOptions, field, 0)
        if isinstance(target, int) and not 0 <= target < subgraphs:
            raise _bad(where, f"{place} calls subgraph {target} of {subgraphs}")


def _has(codes: Any, graphs: Any) -> bool:
    return bool(_list(codes)) or not any(_list(g.operators) for g in graphs)


def _check_tensor(t: Any, model: Any, where: str, place: str) -> None:
    label = text(t.name) or "a tensor"
    if not 0 <= t.buffer < len(model.buffers):
        raise _bad(where, f"{place}: tensor {label!r} names buffer {t.buffer} of {len(model.buffers)}")
    if t.type not in _names("TensorType"):
        raise _bad(where, f"{place}: tensor {label!r} has the unknown type {t.type}")
    shape = _ints(t.shape)
    if any(d < 0 for d in shape):
        raise _bad(where, f"{place}: tensor {label!r} has shape {shape}")
    q = t.quantization
    scales = 0 if q is None or q.scale is None else len(q.scale)
    if scales > 1 and (q.quantizedDimension >= len(shape) or shape[q.quantizedDimension] != scales):
        raise _bad(
            where, f"{place}: tensor {label!r} of shape {shape} has {scales} scales on axis {q.quantizedDimension}"
        )
    data = model.buffers[t.buffer].data
    dtype = _NUMPY.get(_names("TensorType")[t.type])
    if data is not None and len(data) and dtype and t.sparsity is None:
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        if len(data) < needed:
            raise _bad(where, f"{place}: tensor {label!r} needs {needed} bytes and has {len(data)}")


def _check_indices(values: Sequence[int], count: int, where: str, what: str, *, optional: bool) -> None:
    low = -1 if optional else 0
    for value in values:
        if not low <= value < count:
            raise _bad(where, f"{what} names tensor {value} of {count}")


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def text(value: bytes | str | None) -> str:
    """Return a name of the flatbuffer as text; bytes that are no UTF-8 are replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _quantization(q: Any) -> Quantization | None:
    if q is None or q.scale is None or not len(q.scale):
        return None
    scale = tuple(float(s) for s in q.scale)
    zeros = _ints(q.zeroPoint) or (0,) * len(scale)
    if len(zeros) != len(scale) or not all(np.isfinite(scale)) or min(scale) <= 0:
        return None
    return Quantization(scale=scale, zero_point=zeros, axis=q.quantizedDimension if len(scale) > 1 else None)


def _tensor(index: int, t: Any, buffers: tuple[Any, ...]) -> Tensor:
    type_name = _names("TensorType")[t.type]
    shape = _ints(t.shape)
    data = buffers[t.buffer]
    return Tensor(
        index=index,
        name=text(t.name),
        shape=shape,
        signature_shape=_ints(t.shapeSignature) or shape,
        dtype=_NUMPY.get(type_name, type_name.lower()),
        quantization=_quantization(t.quantization),
        is_constant=data is not None and len(data) > 0,
        is_variable=bool(t.isVariable),
        buffer=t.buffer,
    )


def operator_name(model: Any, op: Any) -> tuple[str, int, str | None]:
    """Return an operator's builtin name, its version and its custom code (None for a builtin)."""
    code = model.operatorCodes[op.opcodeIndex]
    # The one-byte field of old files is deprecated; the larger of the two is the real code.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _names("BuiltinOperator").get(number, f"BUILTIN_{number}")
    return name, code.version, text(code.customCode) if name == "CUSTOM" else None


def graph(model: Any, subgraph: int = 0) -> Graph:
    """Return a view of a checked model's subgraph."""
    source = model.subgraphs[subgraph]
    buffers = tuple(b.data for b in model.buffers)
    ops = []
    for index, op in enumerate(_list(source.operators)):
        name, version, custom = operator_name(model, op)
        ops.append(Op(index, name, version, _ints(op.inputs), _ints(op.outputs), op.builtinOptions, custom))
    return Graph(
        tensors=tuple(_tensor(i, t, buffers) for i, t in enumerate(_list(source.tensors))),
        ops=tuple(ops),
        inputs=_ints(source.inputs),
        outputs=_ints(source.outputs),
        name=text(source.name),
        _buffers=buffers,
    )


def graphs(model: Any) -> Iterator[Graph]:
    """Yield a view of each subgraph."""
    for number in range(len(model.subgraphs)):
        yield graph(model, number)


def dump(model: Any) -> bytes:
    """Return the bytes of a `ModelT`, buffers aligned to 16 bytes; the same model gives the same bytes."""
    import flatbuffers

    class AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
        def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 - the library's name
            if x.dtype == np.uint8:
                self.Prep(_ALIGNMENT, x.nbytes)
            return super().CreateNumpyVector(x)

    builder = AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def parameter_bytes(model: Any) -> int:
    """Return the bytes of all constant buffers."""
    return sum(len(b.data) for b in model.buffers if b.data is not None)


def constant(model: Any, tensor: Any) -> Array | None:
    """Return the constant value of a `TensorT` in its shape, None for an activation, a packed or a sparse type."""
    view = _tensor(0, tensor, tuple(b.data for b in model.buffers))
    if not view.is_constant or view.dtype not in _NUMPY.values() or tensor.sparsity is not None:
        return None
    raw = np.ascontiguousarray(model.buffers[tensor.buffer].data)
    return np.frombuffer(raw.tobytes(), view.dtype)[: view.elements].reshape(view.shape)
