"""What a linear layer reads for single positions of its output: convolutions as rows of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_SAME = 0  # schema: Padding


def is_plain(graph: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    """Tell whether `rows` knows the layer: a grouped convolution is not, nor packed weights of a dense layer."""
    source, weights = graph.tensors[op.inputs[0]].shape, graph.tensors[op.inputs[1]].shape
    if op.name == "FULLY_CONNECTED":
        return len(weights) == 2 and not op.option("weightsFormat", 0)
    if op.name == "CONV_2D":
        return len(source) == 4 and source[3] == weights[3]
    return op.name == "DEPTHWISE_CONV_2D" and len(source) == 4 and weights[3] % source[3] == 0


def row_size(graph: flatbuffer.Graph, op: flatbuffer.Op) -> int:
    """Return how many numbers `rows` takes per position."""
    weights = graph.tensors[op.inputs[1]]
    return weights.elements if op.name == "DEPTHWISE_CONV_2D" else weights.elements // weights.shape[0]


def rows(graph: flatbuffer.Graph, op: flatbuffer.Op, values: Any, made: Sequence[int], positions: Any) -> Floats:
    """Return what positions of the output read of the input `values` (real units): [P, K], depthwise [P, C, K].

    Positions count the elements of the output, of shape `made`, without its last axis. K runs over (height, width,
    channel) for CONV_2D, over (height, width) for DEPTHWISE_CONV_2D, as in their weights. Padding is 0.
    """
    weights = graph.tensors[op.inputs[1]].shape
    if op.name == "FULLY_CONNECTED":
        return np.asarray(values.reshape(-1, weights[1])[positions], np.float32)
    (_, height, width, _), (_, rows_out, columns_out, _) = values.shape, made
    image, row = np.divmod(positions, rows_out * columns_out)
    row, column = np.divmod(row, columns_out)
    down, top, bottom = _window(op, "H", weights[1], height, rows_out)
    across, left, right = _window(op, "W", weights[2], width, columns_out)
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = row[:, None] * op.option("strideH") + down
    x = column[:, None] * op.option("strideW") + across
    found = padded[image[:, None, None], y[:, :, None], x[:, None, :]].astype(np.float32)  # [P, kh, kw, C]
    if op.name == "CONV_2D":
        return np.asarray(found.reshape(len(positions), -1))
    found = np.repeat(found, weights[3] // values.shape[3], axis=3)
    return np.ascontiguousarray(found.reshape(len(positions), -1, weights[3]).transpose(0, 2, 1))


def _window(op: flatbuffer.Op, axis: str, size: int, length: int, made: int) -> tuple[Any, int, int]:
    """Return the offsets that a kernel reads along an axis, and the padding before and after."""
    stride, dilation = int(op.option(f"stride{axis}")), int(op.option(f"dilation{axis}Factor", 1))
    reach = (made - 1) * stride + (size - 1) * dilation + 1
    missing = max(0, reach - length)
    before = missing // 2 if op.option("padding") == _SAME else 0
    return np.arange(size) * dilation, before, missing - before
