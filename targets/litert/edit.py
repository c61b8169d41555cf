"""Small edits of a `ModelT` in place: tensors, constants, operator codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def set_constant(model: Any, tensor: Any, values: Array) -> None:
    """Give a `TensorT` a constant value of its own, with shape and dtype; other users of its old buffer keep it."""
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    tensor.shape = np.asarray(np.shape(values), np.int32)
    tensor.shapeSignature = None
    tensor.type = flatbuffer.dtype_code(str(values.dtype))


def add_constant(model: Any, graph: Any, name: str, values: Array) -> int:
    """Append a constant tensor to a `SubGraphT` and return its index."""
    tensor = flatbuffer.schema().TensorT()
    tensor.name = name.encode()
    set_constant(model, tensor, values)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def code_index(model: Any, operator: str, version: int = 1) -> int:
    """Return the index of a builtin operator's code, added where it is not there."""
    code = flatbuffer.code_of(operator)
    for index, known in enumerate(model.operatorCodes):
        if max(known.builtinCode, known.deprecatedBuiltinCode) == code and known.version == version:
            return index
    entry = flatbuffer.schema().OperatorCodeT()
    entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
    model.operatorCodes.append(entry)
    return len(model.operatorCodes) - 1


def drop_unused_buffers(model: Any) -> None:
    """Remove the buffers that nothing refers to; buffer 0 is the empty one by convention and stays first."""
    tensors = [t for graph in model.subgraphs for t in graph.tensors or ()]
    users = [*tensors, *(model.metadata or ())]
    used = sorted({0, *(int(user.buffer) for user in users), *_list_of(model.metadataBuffer)})
    places = {old: new for new, old in enumerate(used)}
    model.buffers = [model.buffers[old] for old in used]
    for user in users:
        user.buffer = places[int(user.buffer)]
    if _list_of(model.metadataBuffer):
        model.metadataBuffer = np.asarray([places[b] for b in _list_of(model.metadataBuffer)], np.int32)


def _list_of(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def prune(model: Any) -> None:
    """Remove tensors of the main graph that nothing names, and buffers that no tensor uses. One subgraph only."""
    graph = model.subgraphs[0]
    ends = [e for s in model.signatureDefs or [] for e in [*(s.inputs or []), *(s.outputs or [])]]
    used = {*_list_of(graph.inputs), *_list_of(graph.outputs), *(int(e.tensorIndex) for e in ends)}
    for op in graph.operators:
        used.update(i for field in (op.inputs, op.outputs, op.intermediates) for i in _list_of(field))
    kept = [i for i in range(len(graph.tensors)) if i in used]
    places = {-1: -1, **{old: new for new, old in enumerate(kept)}}

    def moved(indices: Any) -> Any:
        return np.array([places[i] for i in _list_of(indices)], np.int32)

    graph.tensors = [graph.tensors[i] for i in kept]
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for op in graph.operators:
        op.inputs, op.outputs = moved(op.inputs), moved(op.outputs)
        if op.intermediates is not None:
            op.intermediates = moved(op.intermediates)
    for entry in ends:
        entry.tensorIndex = places[int(entry.tensorIndex)]
    drop_unused_buffers(model)
