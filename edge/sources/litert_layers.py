"""LiteRT's layers in PyTorch: convolutions, pooling, dense layers, recurrent layers, resizing, normalization.

SAME padding (TensorFlow's): the output has ceil(size / stride) places, the padding is
max((places - 1) * stride + (kernel - 1) * dilation + 1 - size, 0), its larger half behind.
Convolutions and pools are channel-first in PyTorch, on memory that XNNPACK keeps channel-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.sources.litert_node import ChannelFirst, Node, UnsupportedError, activation, converter

_SAME = 0


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _pads(
    n: Node, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    if n.option("padding", _SAME) != _SAME:
        return [(0, 0)] * len(sizes)
    return [_same(*of_axis) for of_axis in zip(sizes, kernel, stride, dilation, strict=True)]


def _strides(n: Node) -> tuple[int, int]:
    return int(n.option("strideH", 1)), int(n.option("strideW", 1))


def _dilations(n: Node) -> tuple[int, int]:
    return int(n.option("dilationHFactor", 1)) or 1, int(n.option("dilationWFactor", 1)) or 1


def _padded(x: Any, pads: Sequence[tuple[int, int]], value: float = 0.0) -> tuple[Any, tuple[int, ...]]:
    """Return the input and the padding of the layer: equal sides are the layer's own, others are put around it."""
    import torch

    if all(before == after for before, after in pads):
        return x, tuple(before for before, _ in pads)
    flat = [side for pair in reversed(pads) for side in pair]
    return torch.nn.functional.pad(x, flat, value=value), (0,) * len(pads)


def _bias(n: Node, position: int) -> Any:
    return n.made(position, "flat", np.ravel, what="the bias") if n.has(position) else None


@converter("CONV_2D")
def _conv(n: Node) -> ChannelFirst:
    import torch

    x, stride, dilation = n.first(0), _strides(n), _dilations(n)
    weights = n.made(1, "oihw", lambda w: w.transpose(0, 3, 1, 2))
    x, padding = _padded(x, _pads(n, x.shape[2:], weights.shape[2:], stride, dilation))
    groups = x.shape[1] // weights.shape[1]
    y = torch.nn.functional.conv2d(x, weights, _bias(n, 2), stride, padding, dilation, groups)
    return ChannelFirst(n.activated(y))


@converter("DEPTHWISE_CONV_2D")
def _depthwise(n: Node) -> ChannelFirst:
    import torch

    x, stride, dilation = n.first(0), _strides(n), _dilations(n)
    weights = n.made(1, "o1hw", lambda w: w.transpose(3, 0, 1, 2))
    x, padding = _padded(x, _pads(n, x.shape[2:], weights.shape[2:], stride, dilation))
    y = torch.nn.functional.conv2d(x, weights, _bias(n, 2), stride, padding, dilation, x.shape[1])
    return ChannelFirst(n.activated(y))


@converter("TRANSPOSE_CONV")
def _transposed_conv(n: Node) -> ChannelFirst:
    import torch

    x, stride = n.first(2), _strides(n)
    weights = n.made(1, "iohw", lambda w: w.transpose(3, 0, 1, 2))
    sizes, kernel = n.shapes[0][1:3], weights.shape[2:]
    before, extra = [], []
    for size, source, k, s in zip(sizes, x.shape[2:], kernel, stride, strict=True):
        full = (source - 1) * s + k
        cut = max(full - size, 0) // 2 if n.option("padding", _SAME) == _SAME else 0
        before.append(cut)
        extra.append(max(size - (full - 2 * cut), 0))
    y = torch.nn.functional.conv_transpose2d(x, weights, _bias(n, 3), stride, before, extra)
    return ChannelFirst(n.activated(y[:, :, : sizes[0], : sizes[1]]))


def _pool(n: Node) -> tuple[Any, tuple[int, int], tuple[int, int], list[tuple[int, int]]]:
    x, stride = n.first(0), _strides(n)
    kernel = (int(n.option("filterHeight", 1)), int(n.option("filterWidth", 1)))
    return x, kernel, stride, _pads(n, x.shape[2:], kernel, stride, (1, 1))


@converter("MAX_POOL_2D")
def _max_pool(n: Node) -> ChannelFirst:
    import torch

    x, kernel, stride, pads = _pool(n)
    # One place more behind than before: the last row again, which every window over it holds anyway. No infinity
    # (what padding of a maximum would be) gets into the ranges of a quantizer.
    for axis, (before, after) in enumerate(pads, 2):
        if after > before:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], axis)
    y = torch.nn.functional.max_pool2d(x, kernel, stride, [before for before, _ in pads])
    return ChannelFirst(n.activated(y))


@converter("AVERAGE_POOL_2D")
def _average_pool(n: Node) -> ChannelFirst:
    import torch

    x, kernel, stride, pads = _pool(n)
    if not any(map(any, pads)):
        return ChannelFirst(n.activated(torch.nn.functional.avg_pool2d(x, kernel, stride)))
    # The mean is over the places inside of the image: each place's share of the window is divided out.
    share = np.ones((1, 1, 1, 1))
    for axis, (size, k, s, pair) in enumerate(zip(x.shape[2:], kernel, stride, pads, strict=True), 2):
        inside = np.pad(np.ones(size), pair)
        counts = np.array([inside[i : i + k].sum() for i in range(0, len(inside) - k + 1, s)])
        share = share * np.expand_dims(k / counts, tuple(a for a in range(4) if a != axis))
    around = torch.nn.functional.pad(x, [side for pair in reversed(pads) for side in pair])
    y = torch.nn.functional.avg_pool2d(around, kernel, stride)
    return ChannelFirst(n.activated(y * n.keep(f"op{n.op.index}_share", lambda: share.astype(np.float32))))


@converter("FULLY_CONNECTED")
def _dense(n: Node) -> Any:
    import torch

    if n.option("weightsFormat", 0):
        raise UnsupportedError("its weights are shuffled")
    x, weights = n[0], n[1]
    if not n.option("keepNumDims", False):
        x = x.reshape(-1, weights.shape[1])
    bias = _bias(n, 2)
    if n.value(1).constant is None:  # of attention: quantizers take the second operand of `linear` for a parameter
        y = torch.matmul(x, weights.transpose(-1, -2))
        y = y if bias is None else y + bias
    else:
        y = torch.nn.functional.linear(x, weights, bias)
    return n.activated(y).reshape(n.shapes[0])


@converter("BATCH_MATMUL")
def _matmul(n: Node) -> Any:
    import torch

    a = n[0].transpose(-1, -2) if n.option("adjX", False) else n[0]
    b = n[1].transpose(-1, -2) if n.option("adjY", False) else n[1]
    return torch.matmul(a, b)


@converter("EMBEDDING_LOOKUP")
def _embedding(n: Node) -> Any:
    import torch

    return torch.nn.functional.embedding(n[0], n[1])


@converter("RESIZE_BILINEAR")
def _bilinear(n: Node) -> ChannelFirst:
    import torch

    x, size = n.first(0), n.integers(1, "the size")
    corners, half = bool(n.option("alignCorners", False)), bool(n.option("halfPixelCenters", False))
    if list(x.shape[2:]) == size:
        return ChannelFirst(x)
    if corners or half:
        y = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=corners)
        return ChannelFirst(y)
    # The old form: the source coordinate is index * (size / target), from the first pixel's centre on.
    for axis, target in enumerate(size, 2):
        x = _interpolated(n, x, axis, target)
    return ChannelFirst(x)


def _interpolated(n: Node, x: Any, axis: int, target: int) -> Any:
    import torch

    source = x.shape[axis]
    at = np.arange(target, dtype=np.float32) * np.float32(source / target)
    low = np.minimum(np.floor(at).astype(np.int64), source - 1)
    weights = np.zeros((source, target), np.float32)
    np.add.at(weights, (low, np.arange(target)), 1 - (at - low))
    np.add.at(weights, (np.minimum(low + 1, source - 1), np.arange(target)), at - low)
    matrix = n.keep(f"op{n.op.index}_axis{axis}", lambda: weights)
    if axis == 3:
        return torch.matmul(x, matrix)
    return torch.matmul(x.transpose(2, 3), matrix).transpose(2, 3)


@converter("RESIZE_NEAREST_NEIGHBOR")
def _nearest(n: Node) -> ChannelFirst:
    import torch

    x, size = n.first(0), n.integers(1, "the size")
    corners, half = bool(n.option("alignCorners", False)), bool(n.option("halfPixelCenters", False))
    indices = [_places(x.shape[axis], target, corners, half) for axis, target in enumerate(size, 2)]
    plain = [np.arange(t) * s // t for s, t in zip(x.shape[2:], size, strict=True)]
    if all(np.array_equal(a, b) for a, b in zip(indices, plain, strict=True)):
        return ChannelFirst(torch.nn.functional.interpolate(x, size=size, mode="nearest"))
    for axis, index in enumerate(indices, 2):
        x = torch.index_select(x, axis, n.keep(f"op{n.op.index}_axis{axis}", lambda index=index: index))  # type: ignore[misc]
    return ChannelFirst(x)


def _places(source: int, target: int, corners: bool, half: bool) -> Any:
    """Return which source index each output index takes, as LiteRT's kernel computes it in float32."""
    step = np.float32((source - 1) / (target - 1)) if corners and target > 1 else np.float32(source / target)
    at = (np.arange(target, dtype=np.float32) + np.float32(0.5 if half else 0)) * step
    # C's round: halves away from zero.
    index = np.floor(at + np.float32(0.5)) if corners else np.floor(at)
    return np.minimum(index.astype(np.int64), source - 1)


@converter("SOFTMAX")
def _softmax(n: Node) -> Any:
    import torch

    beta = float(n.option("beta", 1.0))
    x = n[0] if beta == 1.0 else n[0] * beta
    return torch.softmax(x, -1)


@converter("LOG_SOFTMAX")
def _log_softmax(n: Node) -> Any:
    import torch

    return torch.log_softmax(n[0], -1)


@converter("L2_NORMALIZATION")
def _l2(n: Node) -> Any:
    import torch

    size = torch.sqrt(torch.clamp((n[0] * n[0]).sum(-1, keepdim=True), min=1e-12))
    return n.activated(n[0] / size)


@converter("LOCAL_RESPONSE_NORMALIZATION")
def _lrn(n: Node) -> ChannelFirst:
    import torch

    x, radius = n.first(0), int(n.option("radius", 0))
    squares = torch.nn.functional.pad(x * x, [0, 0, 0, 0, radius, radius])
    channels = x.shape[1]
    total = sum(squares[:, i : i + channels] for i in range(2 * radius + 1))
    base = float(n.option("bias", 0.0)) + float(n.option("alpha", 0.0)) * total
    return ChannelFirst(x * torch.pow(base, -float(n.option("beta", 0.0))))


@converter("PRELU")
def _prelu(n: Node) -> Any:
    import torch

    alpha, shape = n.value(1), n.value(0).shape
    if len(shape) == 4 and alpha.constant is not None and alpha.constant.size in (1, shape[3]):
        return ChannelFirst(torch.nn.functional.prelu(n.first(0), n.made(1, "flat", np.ravel)))
    return torch.relu(n[0]) - n[1] * torch.relu(-n[0])


@converter("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(n: Node) -> Any:
    """Write the layer out step by step; the state is 0 at the start of each call."""
    import torch

    if any(n.has(i) for i in (9, 10, 11, *range(20, 24))) or not n.has(1):
        raise UnsupportedError("peepholes, layer normalization and coupled gates are not covered")
    clips = [float(n.option(name, 0.0)) for name in ("cellClip", "projClip")]
    x = n[0].transpose(0, 1) if n.option("timeMajor", False) else n[0]  # [batch, time, features]
    inner, outer = (_joined(n, start) for start in (1, 5))
    bias = _joined(n, 12) if n.has(12) else None
    code, units = int(n.option("fusedActivationFunction", 4)), outer.shape[0] // 4
    projected = torch.nn.functional.linear(x, inner, bias)
    hidden, cell, steps = None, None, []
    for t in range(x.shape[1]):
        gates = projected[:, t]
        if hidden is not None:
            gates = gates + torch.nn.functional.linear(hidden, outer)
        i, f, g, o = (gates[:, k * units : (k + 1) * units] for k in range(4))
        new = torch.sigmoid(i) * activation(code, g)
        cell = _clipped(new if cell is None else torch.sigmoid(f) * cell + new, clips[0])
        hidden = torch.sigmoid(o) * activation(code, cell)
        if n.has(16):
            hidden = _clipped(torch.nn.functional.linear(hidden, n[16], n[17] if n.has(17) else None), clips[1])
        steps.append(hidden)
    return torch.stack(steps, 0 if n.option("timeMajor", False) else 1)


def _clipped(x: Any, limit: float) -> Any:
    import torch

    return torch.clamp(x, -limit, limit) if limit else x


def _joined(n: Node, start: int) -> Any:
    parts = [n.constant(i, "the weights") for i in range(start, start + 4)]
    return n.keep(f"op{n.op.index}_{start}", lambda: np.concatenate(parts))
