"""ONNX convolutions, pools, normalizations, recurrent layers and resizing, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.sources.onnx_node import Node, UnsupportedError, converter
from edge.sources.onnx_ops import pad_constant


def _functional() -> Any:
    import torch

    return torch.nn.functional


def _spatial(n: Node, name: str, rank: int, default: int = 1) -> list[int]:
    return [int(v) for v in n.attribute(name) or [default] * rank]


def _pads(n: Node, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial dimension, `auto_pad` and `ceil_mode` resolved."""
    rank = len(sizes)
    strides, dilations = _spatial(n, "strides", rank), _spatial(n, "dilations", rank)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = n.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, (-(-size // s) - 1) * s + r - size) for size, s, r in zip(sizes, strides, reach, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if auto == "SAME_UPPER" else (large, small)
    pads = [0] * (2 * rank) if auto == "VALID" else _spatial(n, "pads", 2 * rank, 0)
    begin, end = pads[:rank], pads[rank:]
    if n.attribute("ceil_mode", 0):
        for i, (size, s, r) in enumerate(zip(sizes, strides, reach, strict=True)):
            steps = -(-(size + begin[i] + end[i] - r) // s)
            if steps * s >= size + begin[i]:
                steps -= 1  # a window may not start in the padding after the input
            end[i] = max(end[i], steps * s + r - size - begin[i])
    return begin, end


@converter("Conv")
def _conv(n: Node) -> Any:
    x, weights = n[0], n[1]
    rank = x.dim() - 2
    begin, end = _pads(n, x.shape[2:], weights.shape[2:])
    padding: list[int] = begin
    if begin != end:
        x, padding = pad_constant(x, [0, 0, *begin], [0, 0, *end], 0.0), [0] * rank
    function = getattr(_functional(), f"conv{rank}d")
    strides, dilations = _spatial(n, "strides", rank), _spatial(n, "dilations", rank)
    return function(x, weights, n.get(2), strides, padding, dilations, n.attribute("group", 1))


@converter("ConvTranspose")
def _conv_transpose(n: Node) -> Any:
    x, weights = n[0], n[1]
    rank = x.dim() - 2
    strides, dilations = _spatial(n, "strides", rank), _spatial(n, "dilations", rank)
    extra = _spatial(n, "output_padding", rank, 0)
    full = [
        (size - 1) * s + d * (k - 1) + 1
        for size, s, d, k in zip(x.shape[2:], strides, dilations, weights.shape[2:], strict=True)
    ]
    begin, end = _transposed_pads(n, x.shape[2:], strides, full, extra)
    function = getattr(_functional(), f"conv_transpose{rank}d")
    same = begin == end and not any(extra)
    padding = begin if same else [0] * rank
    y = function(x, weights, n.get(2), strides, padding, 0, n.attribute("group", 1), dilations)
    if same:
        return y
    if any(e > p for e, p in zip(extra, end, strict=True)) and n.get(2) is not None:
        raise UnsupportedError("output_padding is larger than the padding, with a bias")
    cut = [e - p for e, p in zip(extra, end, strict=True)]
    return pad_constant(y, [0, 0, *(-b for b in begin)], [0, 0, *cut], 0.0)


def _transposed_pads(
    n: Node, sizes: Sequence[int], strides: Sequence[int], full: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank, wanted, auto = len(full), n.attribute("output_shape"), n.attribute("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * s for size, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = _spatial(n, "pads", 2 * rank, 0)
        return pads[:rank], pads[rank:]
    total = [f + e - w for f, e, w in zip(full, extra, list(wanted)[-rank:], strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


@converter("MaxPool")
def _max_pool(n: Node) -> Any:
    if n.outputs > 1:
        raise UnsupportedError("the indices of the maxima are used")
    x, kernel = n[0], [int(k) for k in n.attribute("kernel_shape")]
    rank = len(kernel)
    strides, dilations = _spatial(n, "strides", rank), _spatial(n, "dilations", rank)
    begin, end = _pads(n, x.shape[2:], kernel)
    padding = begin
    if begin != end or any(2 * p > k for p, k in zip(begin, kernel, strict=True)):
        x, padding = _repeat_edges(x, begin, end, dilations), [0] * rank
    return getattr(_functional(), f"max_pool{rank}d")(x, kernel, strides, padding, dilations)


def _repeat_edges(x: Any, begin: Sequence[int], end: Sequence[int], dilations: Sequence[int]) -> Any:
    """Return `x` with its edges repeated: a window that reaches over an edge holds it already, so maxima stay.

    Unlike minus infinity, which integers cannot store, the edge needs no number of its own.
    """
    import torch

    if any(d > 1 for d in dilations):
        return pad_constant(x, [0, 0, *begin], [0, 0, *end], -math.inf)
    for axis, (b, e) in enumerate(zip(begin, end, strict=True), start=2):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat([first] * b + [x] + [last] * e, axis) if b or e else x
    return x


@converter("AveragePool", "LpPool")
def _average_pool(n: Node) -> Any:
    if n.kind == "LpPool":
        raise UnsupportedError("there is no such pool")
    x, kernel = n[0], [int(k) for k in n.attribute("kernel_shape")]
    rank = len(kernel)
    if any(d > 1 for d in _spatial(n, "dilations", rank)):
        raise UnsupportedError("it is dilated")
    strides = _spatial(n, "strides", rank)
    begin, end = _pads(n, x.shape[2:], kernel)
    padded = pad_constant(x, [0, 0, *begin], [0, 0, *end], 0.0)
    y = getattr(_functional(), f"avg_pool{rank}d")(padded, kernel, strides)
    counts = _counts(n, x.shape[2:], kernel, strides, (begin, end))
    return y if (counts == math.prod(kernel)).all() else y * _like(x, math.prod(kernel) / counts)


def _counts(
    n: Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: tuple[list[int], list[int]],
) -> NDArray[np.float32]:
    """Return how many values each window averages: with `count_include_pad` declared padding too, not ceil_mode's."""
    rank, counts = len(kernel), np.ones(1, np.float32)
    declared = _spatial(n, "pads", 2 * rank, 0)
    for i, (size, k, s) in enumerate(zip(sizes, kernel, strides, strict=True)):
        begin, end = pads[0][i], pads[1][i]
        inside = np.zeros(begin + size + end, np.float32)
        include = bool(n.attribute("count_include_pad", 0))
        inside[0 if include else begin : begin + size + (declared[rank + i] if include else 0)] = 1
        along = np.array([inside[o : o + k].sum() for o in range(0, len(inside) - k + 1, s)], np.float32)
        counts = np.multiply.outer(counts, along)
    return counts


def _like(x: Any, values: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(values, np.float32)).to(x.dtype)


@converter("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(n: Node) -> Any:
    axes = list(range(2, n[0].dim()))
    return n[0].mean(axes, keepdim=True) if n.kind == "GlobalAveragePool" else n[0].amax(axes, keepdim=True)


@converter("BatchNormalization")
def _batch_norm(n: Node) -> Any:
    if n.attribute("training_mode", 0):
        raise UnsupportedError("it is in training mode; export the model in evaluation mode")
    return _functional().batch_norm(n[0], n[3], n[4], n[1], n[2], training=False, eps=n.attribute("epsilon", 1e-5))


@converter("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization")
def _norm(n: Node) -> Any:
    x, epsilon = n[0], n.attribute("epsilon", 1e-5)
    if n.kind == "InstanceNormalization":
        return _functional().instance_norm(x, weight=n[1], bias=n[2], eps=epsilon)
    if n.kind == "GroupNormalization":
        return _group_norm(n, epsilon)
    shape = x.shape[n.attribute("axis", -1) % x.dim() :]
    if n.kind == "RMSNormalization":
        return x * (x.square().mean(list(range(-len(shape), 0)), keepdim=True) + epsilon).rsqrt() * n[1]
    if n.outputs > 1:
        raise UnsupportedError("mean and deviation are used as outputs")
    y = _functional().layer_norm(x, shape, None, None, epsilon) * n[1]
    return y if n.get(2) is None else y + n[2]


def _group_norm(n: Node, epsilon: float) -> Any:
    groups, channels = int(n.attribute("num_groups")), n[0].shape[1]
    scale, bias = n[1], n[2]
    if n.opset < 21 and scale.numel() == groups:  # opset 18 has one value per group
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    return _functional().group_norm(n[0], groups, scale, bias, epsilon)


@converter("LpNormalization")
def _lp_norm(n: Node) -> Any:
    return _functional().normalize(n[0], p=n.attribute("p", 2), dim=n.attribute("axis", -1), eps=0.0)


@converter("LRN")
def _lrn(n: Node) -> Any:
    values = (n.attribute("alpha", 1e-4), n.attribute("beta", 0.75), n.attribute("bias", 1.0))
    return _functional().local_response_norm(n[0], int(n.attribute("size")), *values)


def _recurrent(n: Node, gates: int) -> tuple[list[Any], Any, int]:
    """Return the directions' (weights, recurrence, biases), the input as [steps, batch, size], and the hidden size."""
    kinds = [str(a) for a in n.attribute("activations") or ()]
    usual = {4: ["Sigmoid", "Tanh", "Tanh"], 3: ["Sigmoid", "Tanh"], 1: ["Tanh"]}[gates]
    if kinds and kinds != usual * (len(kinds) // len(usual)):
        raise UnsupportedError(f"the activations {', '.join(kinds)}; covered: {', '.join(usual)}")
    if n.attribute("clip") is not None or n.attribute("input_forget", 0) or n.get(7) is not None:
        raise UnsupportedError("clip, input_forget or peepholes are used")
    x = n[0].transpose(0, 1) if n.attribute("layout", 0) else n[0]
    lengths = n.constant(4, "sequence_lens")
    if lengths is not None and (lengths != x.shape[0]).any():
        raise UnsupportedError("sequence_lens is shorter than the input")
    size = int(n.attribute("hidden_size"))
    empty = n[0].new_zeros(n[1].shape[0], 2 * gates * size)
    biases = n[3] if n.get(3) is not None else empty
    return [(n[1][d], n[2][d], biases[d]) for d in range(n[1].shape[0])], x, size


def _initial(n: Node, position: int, direction: int, x: Any, size: int) -> Any:
    state = n.get(position)
    if state is None:
        return x.new_zeros(x.shape[1], size)
    return state[:, direction] if n.attribute("layout", 0) else state[direction]


def _scan(n: Node, gates: int, step: Any, states: int) -> Any:
    """Write a recurrent layer out: `step(projected input, states, (recurrence, bias))` returns the new states."""
    import torch

    directions, x, size = _recurrent(n, gates)
    series, finals = [], []
    for number, (weights, recurrence, bias) in enumerate(directions):
        own, other = bias[: gates * size], bias[gates * size :]
        projected = torch.nn.functional.linear(x, weights, own)
        state = [_initial(n, 5 + k, number, x, size) for k in range(states)]
        backward = n.attribute("direction", "forward") == "reverse" or number == 1
        order = range(x.shape[0])[:: -1 if backward else 1]
        outputs: list[Any] = []
        for t in order:
            state = step(projected[t], state, (recurrence, other, size))
            outputs.append(state[0])
        series.append(torch.stack(outputs[:: -1 if backward else 1]))
        finals.append(state)
    y = torch.stack(series, 1)
    last = [torch.stack([f[k] for f in finals]) for k in range(states)]
    if n.attribute("layout", 0):
        return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))[: n.outputs]
    return (y, *last)[: n.outputs]


@converter("LSTM")
def _lstm(n: Node) -> Any:
    import torch

    def step(projected: Any, state: list[Any], recurrence: Any) -> list[Any]:
        gates = projected + torch.nn.functional.linear(state[0], recurrence[0], recurrence[1])
        i, o, f, c = gates.split(recurrence[2], -1)  # ONNX's order
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(c)
        return [torch.sigmoid(o) * torch.tanh(cell), cell]

    return _scan(n, 4, step, 2)


@converter("GRU")
def _gru(n: Node) -> Any:
    import torch

    linear = torch.nn.functional.linear

    def step(projected: Any, state: list[Any], recurrence: Any) -> list[Any]:
        weights, bias, size = recurrence
        h = state[0]
        z, r, candidate = projected.split(size, -1)
        both = linear(h, weights[: 2 * size], bias[: 2 * size])
        z, r = torch.sigmoid(z + both[..., :size]), torch.sigmoid(r + both[..., size:])
        last, last_bias = weights[2 * size :], bias[2 * size :]
        if n.attribute("linear_before_reset", 0):
            new = torch.tanh(candidate + r * linear(h, last, last_bias))
        else:
            new = torch.tanh(candidate + linear(r * h, last, last_bias))
        return [(1 - z) * new + z * h]

    return _scan(n, 3, step, 1)


@converter("RNN")
def _rnn(n: Node) -> Any:
    import torch

    def step(projected: Any, state: list[Any], recurrence: Any) -> list[Any]:
        return [torch.tanh(projected + torch.nn.functional.linear(state[0], recurrence[0], recurrence[1]))]

    return _scan(n, 1, step, 1)


@converter("GridSample")
def _grid_sample(n: Node) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        n.attribute("mode", "bilinear"), n.attribute("mode", "bilinear")
    )
    return _functional().grid_sample(
        n[0], n[1], mode, n.attribute("padding_mode", "zeros"), align_corners=bool(n.attribute("align_corners", 0))
    )
