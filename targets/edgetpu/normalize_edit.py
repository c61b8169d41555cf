"""Edit the schema's object tree of one graph: operators, tensors, constants, and the clean-up after it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


_NUMPY_DTYPES = ("int8", "uint8", "int32", "int64", "float32", "int16", "float16", "bool")
# Versions of the operators that rewrites make, for int8; `lower_versions` takes uint8 down.
_VERSIONS = {
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "RESHAPE": 1,
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
}


class Editor:
    """A `ModelT` under edit. Tensors are named by index into the first subgraph; operators are the schema's objects."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.graph.tensors = list(self.graph.tensors)
        self.graph.operators = list(self.graph.operators or [])
        self._dtypes = {flatbuffer.dtype_code(name): name for name in _NUMPY_DTYPES}

    def operators(self, name: str, *, inputs: int = 1, options: bool = True) -> list[Any]:
        """Return the operators of a kind that have their first `inputs` inputs (and their options)."""
        return [
            op
            for op in self.graph.operators
            if flatbuffer.operator_name(self.model, op)[0] == name
            and (op.builtinOptions is not None or not options)
            and sum(t >= 0 for t in (op.inputs if op.inputs is not None else ())[:inputs]) == inputs
        ]

    def label(self, op: Any) -> str:
        """Return the name of an operator's first output."""
        return flatbuffer.text(self.tensor(op.outputs[0]).name)

    def tensor(self, index: int) -> Any:
        """Return the schema's tensor."""
        return self.graph.tensors[index]

    def shape(self, index: int) -> list[int]:
        """Return a tensor's concrete shape."""
        shape = self.graph.tensors[index].shape
        return [] if shape is None else [int(d) for d in shape]

    def constant(self, index: int) -> Array | None:
        """Return a constant's value in its shape, None for an activation or an omitted input."""
        if index < 0:
            return None
        data = self.model.buffers[self.tensor(index).buffer].data
        dtype = self.dtype(index)
        if data is None or not len(data) or dtype not in _NUMPY_DTYPES:
            return None
        shape = self.shape(index)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(np.ascontiguousarray(data).tobytes(), dtype)[:count].reshape(shape)

    def dtype(self, index: int) -> str:
        """Return a tensor's dtype, `other` for what numpy does not have."""
        return self._dtypes.get(self.tensor(index).type, "other")

    def copy_quantization(self, index: int) -> Any:
        """Return a copy of a tensor's quantization parameters."""
        return copy.deepcopy(self.tensor(index).quantization)

    def scales(self, index: int) -> int:
        """Return the number of a tensor's scales, 0 where it is not quantized."""
        quantization = self.tensor(index).quantization
        return 0 if quantization is None or quantization.scale is None else len(quantization.scale)

    def same_quantization(self, a: int, b: int) -> bool:
        """Answer whether two tensors store the same numbers for the same values."""
        first, second = self.tensor(a), self.tensor(b)
        views = [flatbuffer.graph(self.model).tensors[t] for t in (a, b)]
        return first.type == second.type and views[0].quantization == views[1].quantization is not None

    def add_constant(self, value: Array, *, name: str = "", like: int | None = None, quantization: Any = None) -> int:
        """Add a constant and return its index; `like` lends its name."""
        module = flatbuffer.schema()
        buffer = module.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        label = flatbuffer.text(self.tensor(like).name) if like is not None else f"edgekit/{name}"
        code = flatbuffer.dtype_code(str(value.dtype))
        return self._add_tensor(list(value.shape), code, len(self.model.buffers) - 1, label, quantization)

    def add_activation(self, shape: list[int], *, like: int) -> int:
        """Add an activation with dtype and quantization of another one and return its index."""
        source = self.tensor(like)
        label = f"{flatbuffer.text(source.name)}/edgekit{len(self.graph.tensors)}"
        return self._add_tensor(shape, source.type, 0, label, self.copy_quantization(like))

    def _add_tensor(self, shape: list[int], code: int, buffer: int, name: str, quantization: Any) -> int:
        tensor = flatbuffer.schema().TensorT()
        tensor.shape = np.array(shape, np.int32)
        tensor.type = code
        tensor.buffer = buffer
        tensor.name = name.encode()
        tensor.quantization = quantization
        tensor.hasRank = True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def channels(self, index: int, begin: int, count: int) -> int:
        """Add a constant with some of another's output channels (axis 0), scales included, and return its index."""
        value = self.constant(index)
        if value is None:
            return index
        quantization = self.copy_quantization(index)
        if quantization is not None and quantization.scale is not None and len(quantization.scale) == len(value) > 1:
            quantization.scale = quantization.scale[begin : begin + count]
            quantization.zeroPoint = quantization.zeroPoint[begin : begin + count]
        return self.add_constant(value[begin : begin + count], like=index, quantization=quantization)

    def become(self, op: Any, name: str, options: Any) -> None:
        """Turn an operator into another kind with new options."""
        op.opcodeIndex = self._code(flatbuffer.code_of(name), _VERSIONS[name])
        op.builtinOptions = options
        op.builtinOptionsType = _options_type(options)

    def insert_before(self, op: Any, name: str, inputs: list[int], outputs: list[int], options: Any) -> None:
        """Add an operator in front of another one."""
        new = flatbuffer.schema().OperatorT()
        new.inputs, new.outputs = list(inputs), list(outputs)
        self.become(new, name, options)
        place = next(i for i, other in enumerate(self.graph.operators) if other is op)
        self.graph.operators.insert(place, new)

    def remove(self, op: Any) -> None:
        """Take an operator out."""
        self.graph.operators = [other for other in self.graph.operators if other is not op]

    def replace_uses(self, old: int, new: int) -> None:
        """Let all operators read another tensor."""
        for op in self.graph.operators:
            op.inputs = [new if t == old else int(t) for t in op.inputs]

    def set_version(self, op: Any, version: int) -> None:
        """Give one operator another version; other operators of its kind keep theirs."""
        old = self.model.operatorCodes[op.opcodeIndex]
        op.opcodeIndex = self._code(max(old.builtinCode, old.deprecatedBuiltinCode), version)

    def _code(self, builtin: int, version: int) -> int:
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
                return index
        code = flatbuffer.schema().OperatorCodeT()
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def remove_dead_operators(self) -> list[tuple[str, str]]:
        """Remove operators none of whose outputs is read; return their kinds and labels."""
        removed = []
        needed = {int(t) for t in self.graph.outputs}
        kept = []
        for op in reversed(self.graph.operators):
            if needed & {int(t) for t in op.outputs} or not len(op.outputs) or self._writes_state(op):
                needed |= {int(t) for t in op.inputs}
                kept.append(op)
            else:
                removed.append((flatbuffer.operator_name(self.model, op)[0], self.label(op)))
        self.graph.operators = kept[::-1]
        return removed[::-1]

    def _writes_state(self, op: Any) -> bool:
        return any(t >= 0 and self.tensor(t).isVariable for t in op.inputs)

    def compact(self) -> None:
        """Drop tensors, buffers and operator codes that nothing names, and renumber the rest."""
        self._compact_tensors()
        self._compact_buffers()
        used = sorted({op.opcodeIndex for op in self.graph.operators})
        place = {old: new for new, old in enumerate(used)}
        self.model.operatorCodes = [self.model.operatorCodes[i] for i in used]
        for op in self.graph.operators:
            op.opcodeIndex = place[op.opcodeIndex]

    def _compact_tensors(self) -> None:
        used = {int(t) for t in (*self.graph.inputs, *self.graph.outputs)}
        for op in self.graph.operators:
            used |= {int(t) for part in (op.inputs, op.outputs, op.intermediates) if part is not None for t in part}
        signatures = [s for d in self.model.signatureDefs or [] for s in (*(d.inputs or []), *(d.outputs or []))]
        used |= {s.tensorIndex for s in signatures}
        order = sorted(used - {-1})
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        self.graph.tensors = [self.graph.tensors[i] for i in order]
        self.graph.inputs = [place[int(t)] for t in self.graph.inputs]
        self.graph.outputs = [place[int(t)] for t in self.graph.outputs]
        for op in self.graph.operators:
            for field in ("inputs", "outputs", "intermediates"):
                if getattr(op, field) is not None:
                    setattr(op, field, [place[int(t)] for t in getattr(op, field)])
        for signature in signatures:
            signature.tensorIndex = place[signature.tensorIndex]

    def _compact_buffers(self) -> None:
        metadata = list(self.model.metadata or [])
        # Buffer 0 is the empty one by convention of the format.
        used = sorted({0} | {t.buffer for t in self.graph.tensors} | {m.buffer for m in metadata})
        place = {old: new for new, old in enumerate(used)}
        self.model.buffers = [self.model.buffers[i] for i in used]
        for tensor in (*self.graph.tensors, *metadata):
            tensor.buffer = place[tensor.buffer]


def _options_type(options: Any) -> int:
    if options is None:
        return 0
    return int(getattr(flatbuffer.schema().BuiltinOptions, type(options).__name__.removesuffix("T")))
