"""The lowest version of each operator that has the features an operator uses, for 8-bit tensors.

Facts from TensorFlow's `lite/tools/versioning/op_version.cc`: what each version added.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.targets.litert.flatbuffer import Graph, Op

# int8 needs version 2 and uint8 version 1, whatever newer versions added (int16, more dimensions, strings, ...).
_INT8_IS_2 = frozenset(
    {
        *(
            "ADD",
            "SUB",
            "AVERAGE_POOL_2D",
            "MAX_POOL_2D",
            "CONCATENATION",
            "LOGISTIC",
            "TANH",
            "SOFTMAX",
            "MEAN",
            "SUM",
        ),
        *(
            "PACK",
            "PAD",
            "RELU",
            "RELU6",
            "MAXIMUM",
            "MINIMUM",
            "TRANSPOSE",
            "STRIDED_SLICE",
            "SLICE",
            "SPLIT",
            "RSQRT",
        ),
        *("SQUARED_DIFFERENCE", "L2_NORMALIZATION", "SPACE_TO_DEPTH", "REDUCE_MAX", "REDUCE_MIN"),
    }
)
_EIGHT_BIT = ("int8", "uint8")


def minimum_version(graph: Graph, op: Op) -> int | None:
    """Return the lowest version that covers the operator, None where it is not an 8-bit operator we know."""
    tensors = [graph.tensors[t] for t in (*op.inputs, *op.outputs) if t >= 0]
    data = [t for t in tensors if t.dtype not in ("int32", "int64")]
    if op.name == "QUANTIZE":
        eight = all(t.dtype in (*_EIGHT_BIT, "float32") for t in data)
        return 1 if eight and not any(t.quantization and t.quantization.axis is not None for t in data) else None
    if not data or any(t.dtype not in _EIGHT_BIT for t in data) or any(len(t.shape) > 4 for t in tensors):
        return None
    if any(t.dtype == "int64" for t in tensors):  # 64-bit biases and indices came with later versions
        return None
    if op.name in _INT8_IS_2:
        return None if _has_new_option(op) else _signed(graph, op, 2)
    special = _SPECIAL.get(op.name)
    return special(graph, op) if special else None


def _has_new_option(op: Op) -> bool:
    return any(bool(op.option(name, 0)) for name in ("ellipsisMask", "newAxisMask", "offset"))


def _signed(graph: Graph, op: Op, version: int) -> int:
    # The kind of the first 8-bit tensor decides; SPLIT and TRANSPOSE_CONV have arguments in front of it.
    first = next(graph.tensors[t] for t in op.inputs if t >= 0 and graph.tensors[t].dtype in _EIGHT_BIT)
    return version if first.dtype == "int8" else 1


def _convolution(graph: Graph, op: Op) -> int | None:
    source, weights = (graph.tensors[t] for t in op.inputs[:2])
    grouped = op.name == "CONV_2D" and source.shape[-1] != weights.shape[-1]
    return None if grouped or op.option("quantizedBiasType", 0) else _signed(graph, op, 3)


def _depthwise(graph: Graph, op: Op) -> int | None:
    dilated = op.option("dilationWFactor", 1) != 1 or op.option("dilationHFactor", 1) != 1
    return max(_signed(graph, op, 3), 2 if dilated else 1)


def _fully_connected(graph: Graph, op: Op) -> int | None:
    if op.option("quantizedBiasType", 0) or any(graph.tensors[t].quantization is None for t in op.inputs[:2]):
        return None
    if len(op.inputs) == 2:
        return 6
    if op.option("keepNumDims", False):
        return 5
    weights = graph.tensors[op.inputs[1]].quantization
    if weights is not None and weights.axis is not None:
        return None  # per-channel weights are newer than the compiler
    return max(_signed(graph, op, 4), 2 if op.option("weightsFormat", 0) else 1)


def _multiply(graph: Graph, op: Op) -> int | None:
    first, second, result = (graph.tensors[t].quantization for t in (*op.inputs[:2], op.outputs[0]))
    if first is None or second is None or result is None:
        return None
    if first.scale[0] * second.scale[0] / result.scale[0] >= 1:
        return 3  # rescaling by 1 or more came with version 3
    return _signed(graph, op, 2)


def _transpose_convolution(graph: Graph, op: Op) -> int | None:
    if op.option("fusedActivationFunction", 0) or op.option("quantizedBiasType", 0):
        return None
    return 3 if len(op.inputs) > 3 and op.inputs[3] >= 0 else _signed(graph, op, 2)


def _resize_bilinear(graph: Graph, op: Op) -> int | None:
    return 3 if op.option("halfPixelCenters", False) else _signed(graph, op, 2)


def _resize_nearest(graph: Graph, op: Op) -> int | None:
    new = op.option("halfPixelCenters", False) or op.option("alignCorners", False)
    return 3 if new else _signed(graph, op, 2)


def _one(graph: Graph, op: Op) -> int | None:
    del graph, op
    return 1


_SPECIAL: dict[str, Callable[[Graph, Op], int | None]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "MUL": _multiply,
    "TRANSPOSE_CONV": _transpose_convolution,
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "RESHAPE": _one,
    "SQUEEZE": _one,
    "PRELU": _one,
}
