"""Float programs in which chosen tensors lose what quantization would take from them, to tell which ones hurt.

The graph stays float: weights are replaced by their quantized values, and activations pass through a QUANTIZE and a
DEQUANTIZE operator. So any subset of a model can be quantized alone, which no quantizer offers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from edge.calibration import affine
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.signature import Quantization
from edge.targets.litert import edit, flatbuffer

# Operators whose constant second input is quantized per channel, and the axis of its output channels.
CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
_LIMIT = 127


def weight_quantization(values: Any, axis: int | None) -> Quantization:
    """Return symmetric int8 parameters of a weight array, per channel of `axis` or one for all; zeros get scale 1e-9.

    scale = max |w| / 127, zero point 0, as the TFLite specification demands of weights.
    """
    array = np.asarray(values, np.float64)
    if axis is None or array.shape[axis] == 1:
        return Quantization(scale=(max(float(np.abs(array).max(initial=0.0)), 1e-9) / _LIMIT,), zero_point=(0,))
    peaks = np.abs(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)).max(axis=1)
    scales = tuple(float(s) for s in np.maximum(peaks, 1e-9) / _LIMIT)
    return Quantization(scale=scales, zero_point=(0,) * len(scales), axis=axis)


class Simulation:
    """A float program in which the constants of the operators at indices `weights`, and the tensors named in
    `activations`, are quantized and dequantized as the recipe has it (int8 or int16 activations, int8 weights).

    Names without a range are passed over. Biases stay float: int32 in steps of s_in * s_w is finer than float32 needs.
    """

    def __init__(
        self, program: bytes, ranges: Ranges, recipe: Recipe, *, weights: Collection[int], activations: Collection[str]
    ) -> None:
        self._model = flatbuffer.load(program)
        self._dtype = "int16" if recipe.scheme == "int8x16" else "int8"
        view = flatbuffer.graph(self._model)
        for op in view.ops:
            if op.index in weights:
                _round_weights(self._model, view, op, recipe)
        chosen = {t.index: t.name for t in view.tensors if t.name in activations and t.name in ranges}
        self._stored = _insert(self._model, chosen, self._dtype)
        for name in self._stored:
            self.set_range(name, ranges[name])

    def set_range(self, tensor: str, limits: tuple[float, float]) -> None:
        """Quantize a simulated activation over another interval; raise KeyError for one that is not simulated."""
        parameters = affine.parameters(*limits, self._dtype, symmetric=self._dtype == "int16")
        quantization = self._stored[tensor].quantization
        quantization.scale = np.asarray(parameters.scale, np.float32)
        quantization.zeroPoint = np.asarray(parameters.zero_point, np.int64)

    def program(self) -> bytes:
        """Return the flatbuffer; its inputs and outputs are the float program's."""
        return flatbuffer.dump(self._model)


def _round_weights(model: Any, view: flatbuffer.Graph, op: flatbuffer.Op, recipe: Recipe) -> None:
    for position, index in enumerate(op.inputs):
        if index < 0 or view.tensors[index].dtype != "float32" or (position == 2 and op.name in CHANNEL_AXIS):
            continue
        values = view.data(index)
        if values is None:
            continue
        tensorwise = recipe.granularity == "tensor" or op.name in recipe.per_tensor_operators
        axis = None if tensorwise or position != 1 else CHANNEL_AXIS.get(op.name)
        parameters = weight_quantization(values, axis)
        stored = affine.quantize(values, parameters, "int8")
        edit.set_constant(model, model.subgraphs[0].tensors[index], affine.dequantize(stored, parameters))


def _insert(model: Any, chosen: Mapping[int, str], dtype: str) -> dict[str, Any]:
    """Let all readers of the chosen tensors read them after QUANTIZE and DEQUANTIZE; return the integer tensors."""
    graph = model.subgraphs[0]
    renamed: dict[int, int] = {}
    operators: list[Any] = []
    stored: dict[str, Any] = {}

    def pass_through(tensors: Any) -> None:
        for tensor in (int(t) for t in tensors):
            if tensor in chosen:
                made, stored[chosen[tensor]], renamed[tensor] = _conversion(model, graph, tensor, dtype)
                operators.extend(made)

    pass_through(graph.inputs)
    for op in graph.operators:
        op.inputs = np.asarray([renamed.get(int(t), int(t)) for t in op.inputs], np.int32)
        operators.append(op)
        pass_through(op.outputs)
    graph.operators = operators
    graph.outputs = np.asarray([renamed.get(int(t), int(t)) for t in graph.outputs], np.int32)
    for entry in (e for s in model.signatureDefs or () for e in s.outputs or ()):
        entry.tensorIndex = renamed.get(int(entry.tensorIndex), int(entry.tensorIndex))
    return stored


def _conversion(model: Any, graph: Any, tensor: int, dtype: str) -> tuple[list[Any], Any, int]:
    """Append QUANTIZE and DEQUANTIZE of a tensor; return the operators, the integer tensor, the float one's index."""
    schema = flatbuffer.schema()
    source = graph.tensors[tensor]
    indices = [tensor]
    for suffix, kind in (("quantized", dtype), ("dequantized", "float32")):
        made = schema.TensorT()
        made.name, made.buffer, made.type = source.name + f";{suffix}".encode(), 0, flatbuffer.dtype_code(kind)
        made.shape, made.shapeSignature = source.shape, source.shapeSignature
        graph.tensors.append(made)
        indices.append(len(graph.tensors) - 1)
    stored = graph.tensors[indices[1]]
    stored.quantization = schema.QuantizationParametersT()
    operators = []
    for name, version, ends in (("QUANTIZE", 1, indices[:2]), ("DEQUANTIZE", 2, indices[1:])):
        op = schema.OperatorT()
        op.opcodeIndex = edit.code_index(model, name, 3 if dtype == "int16" and name == "DEQUANTIZE" else version)
        op.inputs, op.outputs = np.asarray(ends[:1], np.int32), np.asarray(ends[1:], np.int32)
        operators.append(op)
    return operators, stored, indices[-1]
