"""Build small LiteRT flatbuffers for tests: float or integer graphs, operator by operator, without any framework."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.signature import Quantization
from edge.targets.litert import edit, flatbuffer

# Operators whose options table must be present: operator -> (table, fields).
_DEFAULT_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "CONV_2D": (
        "Conv2DOptions",
        {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1},
    ),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1, "dilationHFactor": 1, "dilationWFactor": 1},
    ),
    "TRANSPOSE_CONV": ("TransposeConvOptions", {"padding": 0, "strideH": 2, "strideW": 2}),
    "FULLY_CONNECTED": ("FullyConnectedOptions", {}),
    "MAX_POOL_2D": ("Pool2DOptions", {"padding": 1, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}),
    "AVERAGE_POOL_2D": (
        "Pool2DOptions",
        {"padding": 1, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2},
    ),
    "CONCATENATION": ("ConcatenationOptions", {"axis": -1}),
    "SOFTMAX": ("SoftmaxOptions", {"beta": 1.0}),
    "ADD": ("AddOptions", {}),
    "SUB": ("SubOptions", {}),
    "MUL": ("MulOptions", {}),
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": 0.1}),
    "REDUCE_MAX": ("ReducerOptions", {"keepDims": False}),
    "REDUCE_MIN": ("ReducerOptions", {"keepDims": False}),
    "MEAN": ("ReducerOptions", {"keepDims": False}),
    "SQUEEZE": ("SqueezeOptions", {}),
    "MINIMUM": ("MaximumMinimumOptions", {}),
    "MAXIMUM": ("MaximumMinimumOptions", {}),
    "SELECT_V2": ("SelectV2Options", {}),
    "BATCH_MATMUL": ("BatchMatMulOptions", {}),
    "TRANSPOSE": ("TransposeOptions", {}),
    "GATHER": ("GatherOptions", {"axis": 0}),
}


def f32(values: ArrayLike) -> NDArray[np.float32]:
    """Return an array of float32."""
    return np.asarray(values, np.float32)


def i32(values: ArrayLike) -> NDArray[np.int32]:
    """Return an array of int32."""
    return np.asarray(values, np.int32)


class GraphBuilder:
    """Collects tensors and operators; methods return tensor indices, `build` the bytes.

    A constant given as float array is stored as float32; `quantization` with an integer dtype makes an integer tensor.
    """

    def __init__(self) -> None:
        schema = flatbuffer.schema()
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.model.metadata = []
        self.graph = schema.SubGraphT()
        self.graph.name = b"main"
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self._inputs: list[int] = []
        self._outputs: list[tuple[str, int]] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        quantization: Quantization | None = None,
        *,
        dynamic: Sequence[int] | None = None,
    ) -> int:
        """Add an activation; `dynamic` is its shape signature with -1 where a dimension is dynamic."""
        schema = flatbuffer.schema()
        made = schema.TensorT()
        made.name, made.buffer, made.type = name.encode(), 0, flatbuffer.dtype_code(dtype)
        made.shape = np.asarray(shape, np.int32)
        made.shapeSignature = None if dynamic is None else np.asarray(dynamic, np.int32)
        self._quantize(made, quantization)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def input(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        quantization: Quantization | None = None,
        *,
        dynamic: Sequence[int] | None = None,
    ) -> int:
        """Add a graph input."""
        index = self.tensor(name, shape, dtype, quantization, dynamic=dynamic)
        self._inputs.append(index)
        return index

    def const(self, name: str, values: ArrayLike, quantization: Quantization | None = None) -> int:
        """Add a constant; Python floats become float32, Python integers int32."""
        array = np.asarray(values)
        array = array.astype({"float64": np.float32, "int64": np.int32}.get(str(array.dtype), array.dtype))
        index = edit.add_constant(self.model, self.graph, name, array)
        self._quantize(self.graph.tensors[index], quantization)
        return index

    def op(
        self,
        operator: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        name: str | None = None,
        dtype: str = "float32",
        quantization: Quantization | None = None,
        version: int = 1,
        custom: str | None = None,
        **options: Any,
    ) -> int:
        """Add an operator with one output of `shape` and return that output."""
        output = self.tensor(name or f"{operator.lower()}_{len(self.graph.operators)}", shape, dtype, quantization)
        made = flatbuffer.schema().OperatorT()
        made.opcodeIndex = edit.code_index(self.model, operator, version)
        if custom is not None:
            self.model.operatorCodes[made.opcodeIndex].customCode = custom.encode()
        made.inputs, made.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
        self._set_options(made, operator, options)
        self.graph.operators.append(made)
        return output

    def conv(self, source: int, weights: ArrayLike, bias: ArrayLike | None, **options: Any) -> int:
        """Add a float CONV_2D with VALID padding, stride 1 and weights [out, height, width, in]."""
        kernel = np.asarray(weights, np.float32)
        batch, height, width, _ = self.graph.tensors[source].shape
        shape = (batch, height - kernel.shape[1] + 1, width - kernel.shape[2] + 1, kernel.shape[0])
        return self.op("CONV_2D", self._weighted("conv", source, kernel, bias), shape, **options)

    def fully_connected(self, source: int, weights: ArrayLike, bias: ArrayLike | None = None, **options: Any) -> int:
        """Add a float FULLY_CONNECTED with weights [out, in]."""
        kernel = np.asarray(weights, np.float32)
        shape = (*self.graph.tensors[source].shape[:-1], kernel.shape[0])
        return self.op("FULLY_CONNECTED", self._weighted("fc", source, kernel, bias), shape, **options)

    def output(self, tensor: int, name: str) -> None:
        """Declare a graph output."""
        self._outputs.append((name, tensor))

    def build(self, *, signature: bool = True) -> bytes:
        """Return the flatbuffer; without `signature` it has no SignatureDef, as files of old converters."""
        self.graph.inputs = np.asarray(self._inputs, np.int32)
        self.graph.outputs = np.asarray([t for _, t in self._outputs], np.int32)
        self.model.signatureDefs = [self._signature()] if signature else []
        return flatbuffer.dump(self.model)

    def _weighted(self, kind: str, source: int, weights: Any, bias: ArrayLike | None) -> list[int]:
        number = len(self.graph.operators)
        inputs = [source, self.const(f"{kind}_{number}/weights", weights)]
        if bias is not None:
            inputs.append(self.const(f"{kind}_{number}/bias", np.asarray(bias, np.float32)))
        return inputs

    def _signature(self) -> Any:
        schema = flatbuffer.schema()
        made = schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = b"serving_default", 0
        inputs = [(flatbuffer.text(self.graph.tensors[t].name), t) for t in self._inputs]
        made.inputs, made.outputs = self._maps(inputs), self._maps(self._outputs)
        return made

    @staticmethod
    def _maps(entries: Sequence[tuple[str, int]]) -> list[Any]:
        made = []
        for name, tensor in entries:
            entry = flatbuffer.schema().TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), tensor
            made.append(entry)
        return made

    @staticmethod
    def _quantize(tensor: Any, quantization: Quantization | None) -> None:
        if quantization is None:
            return
        tensor.quantization = flatbuffer.schema().QuantizationParametersT()
        tensor.quantization.scale = np.asarray(quantization.scale, np.float32)
        tensor.quantization.zeroPoint = np.asarray(quantization.zero_point, np.int64)
        tensor.quantization.quantizedDimension = quantization.axis or 0

    @staticmethod
    def _set_options(made: Any, operator: str, fields: dict[str, Any]) -> None:
        table, defaults = _DEFAULT_OPTIONS.get(operator, (None, {}))
        if table is None:
            return
        schema = flatbuffer.schema()
        made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
        made.builtinOptions = getattr(schema, f"{table}T")()
        for name, value in {**defaults, **fields}.items():
            setattr(made.builtinOptions, name, value)


class Samples:
    """A data set in memory: every iteration yields the same samples, each with `inputs` as the toolkit's data sets."""

    def __init__(self, inputs: Sequence[dict[str, Any]]) -> None:
        self._inputs = list(inputs)

    def __iter__(self) -> Any:
        return iter([SimpleNamespace(id=str(i), inputs=values, label=None) for i, values in enumerate(self._inputs)])

    def __len__(self) -> int:
        return len(self._inputs)


def normal_samples(shapes: dict[str, Sequence[int]], count: int = 16, seed: int = 0) -> Samples:
    """Return `count` samples of standard normal float32 inputs."""
    rng = np.random.default_rng(seed)
    return Samples([{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)])
