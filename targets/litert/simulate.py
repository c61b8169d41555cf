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
from edge.targets.litert import contract, edit, flatbuffer

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


def simulated(
    program: bytes, ranges: Ranges, recipe: Recipe, *, weights: Collection[int], activations: Collection[str]
) -> bytes:
    """Return the float program with the constants of the operators at indices `weights`, and the tensors named in
    `activations`, quantized and dequantized as the recipe has it (int8 or int16 activations, int8 weights).

    Names without a range are passed over. Biases stay float: int32 in steps of s_in * s_w is finer than float32 needs.
    """
    model = flatbuffer.load(program)
    view = flatbuffer.graph(model)
    for op in view.ops:
        if op.index in weights:
            _round_weights(model, view, op, recipe)
    chosen = {t.index: ranges[t.name] for t in view.tensors if t.name in activations and t.name in ranges}
    _insert(model, chosen, "int16" if recipe.scheme == "int8x16" else "int8")
    return flatbuffer.dump(model)


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


def _insert(model: Any, chosen: Mapping[int, tuple[float, float]], dtype: str) -> None:
    """Let all readers of the chosen tensors read them after QUANTIZE and DEQUANTIZE."""
    if not chosen:
        return
    graph = model.subgraphs[0]
    renamed: dict[int, int] = {}
    operators: list[Any] = []

    def pass_through(tensor: int) -> None:
        made, renamed[tensor] = _conversion(model, graph, tensor, chosen[tensor], dtype)
        operators.extend(made)

    for tensor in graph.inputs:
        if int(tensor) in chosen:
            pass_through(int(tensor))
    for op in graph.operators:
        op.inputs = np.asarray([renamed.get(int(t), int(t)) for t in op.inputs], np.int32)
        operators.append(op)
        for tensor in op.outputs:
            if int(tensor) in chosen:
                pass_through(int(tensor))
    graph.operators = operators
    names = contract.contract_of(model)
    graph.outputs = np.asarray([renamed.get(int(t), int(t)) for t in graph.outputs], np.int32)
    for entry in (e for s in model.signatureDefs or () for e in s.outputs or ()):
        tensor = names.outputs[flatbuffer.text(entry.name)]
        entry.tensorIndex = renamed.get(tensor, tensor)


def _conversion(model: Any, graph: Any, tensor: int, limits: tuple[float, float], dtype: str) -> tuple[list[Any], int]:
    schema = flatbuffer.schema()
    source = graph.tensors[tensor]
    parameters = affine.parameters(*limits, dtype, symmetric=dtype == "int16")
    indices = [tensor]
    for suffix, kind in (("quantized", dtype), ("dequantized", "float32")):
        made = schema.TensorT()
        made.name, made.buffer, made.type = source.name + f";{suffix}".encode(), 0, flatbuffer.dtype_code(kind)
        made.shape, made.shapeSignature = source.shape, source.shapeSignature
        if kind == dtype:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.asarray(parameters.scale, np.float32)
            made.quantization.zeroPoint = np.asarray(parameters.zero_point, np.int64)
        graph.tensors.append(made)
        indices.append(len(graph.tensors) - 1)
    operators = []
    for name, version, (before, after) in (("QUANTIZE", 1, indices[:2]), ("DEQUANTIZE", 2, indices[1:])):
        op = schema.OperatorT()
        op.opcodeIndex = edit.code_index(model, name, 3 if dtype == "int16" and name == "DEQUANTIZE" else version)
        op.inputs, op.outputs = np.asarray([before], np.int32), np.asarray([after], np.int32)
        operators.append(op)
    return operators, indices[-1]
