"""ONNX operators on values and shapes, in PyTorch (ONNX operator specification, opsets 7 to 24)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge.sources.onnx_node import CONVERTERS, STACK, Node, UnsupportedError, converter

# Up to this many single slices instead of one gather.
_FEW = 8


def _torch() -> Any:
    import torch

    return torch


def _unary(name: str) -> Callable[[Node], Any]:
    return lambda n: getattr(_torch(), name)(n[0])


def _binary(name: str) -> Callable[[Node], Any]:
    return lambda n: getattr(_torch(), name)(n[0], n[1])


_UNARY = {
    **{k: k.lower() for k in ("Abs", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Relu")},
    **{
        k: k.lower() for k in ("Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh", "Acos", "Asin", "Atan")
    },
    "Not": "logical_not",
    "IsNaN": "isnan",
    "Acosh": "acosh",
    "Asinh": "asinh",
    "Atanh": "atanh",
    "Det": "det",
}
_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Pow": "pow",
    "MatMul": "matmul",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}
CONVERTERS.update({kind: _unary(name) for kind, name in _UNARY.items()})
CONVERTERS.update({kind: _binary(name) for kind, name in _BINARY.items()})


@converter("Div")
def _div(n: Node) -> Any:
    whole = not n[0].is_floating_point() and not n[1].is_floating_point()
    return _torch().div(n[0], n[1], rounding_mode="trunc" if whole else None)


@converter("Mod")
def _mod(n: Node) -> Any:
    return (_torch().fmod if n.attribute("fmod", 0) else _torch().remainder)(n[0], n[1])


@converter("Max", "Min", "Sum", "Mean")
def _variadic(n: Node) -> Any:
    torch = _torch()
    function = {"Max": torch.maximum, "Min": torch.minimum}.get(n.kind, torch.add)
    total = n[0]
    for other in n.tensors[1:]:
        total = function(total, other)
    return total / len(n.tensors) if n.kind == "Mean" else total


@converter("Identity", "Dropout")
def _identity(n: Node) -> Any:
    if n.kind == "Dropout" and n.get(2) is not None and np.any(n.constant(2, "training_mode")):
        raise UnsupportedError("it is in training mode; export the model in evaluation mode")
    return (n[0], _torch().ones_like(n[0], dtype=_torch().bool))[: n.outputs]


@converter("Cast", "CastLike")
def _cast(n: Node) -> Any:
    if n.kind == "CastLike":
        return n[0].to(n[1].dtype)
    return n[0].to(torch_dtype(int(n.attribute("to"))))


def torch_dtype(code: int) -> Any:
    """Return the torch dtype of an ONNX element type; half and double precision are float32 here."""
    import onnx

    name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name
    if name in ("float16", "float64", "bfloat16"):
        name = "float32"
    found = getattr(_torch(), name, None)
    if found is None:
        raise UnsupportedError(f"the element type {onnx.TensorProto.DataType.Name(code)} has no form in a program")
    return found


@converter("Clip")
def _clip(n: Node) -> Any:
    low, high = n.number("min", 1), n.number("max", 2)
    return n[0] if low is None and high is None else _torch().clamp(n[0], low, high)


@converter("Where")
def _where(n: Node) -> Any:
    return _torch().where(n[0], n[1], n[2])


@converter("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid", "Selu")
def _activation(n: Node) -> Any:
    torch, f = _torch(), _torch().nn.functional
    if n.kind == "HardSigmoid":
        return torch.clamp(n[0] * n.attribute("alpha", 0.2) + n.attribute("beta", 0.5), 0.0, 1.0)
    if n.kind == "Selu":
        alpha, gamma = n.attribute("alpha", 1.6732632), n.attribute("gamma", 1.0507010)
        return gamma * f.elu(n[0], alpha)
    alpha = n.attribute("alpha", 0.01 if n.kind == "LeakyRelu" else 1.0)
    if n.kind == "ThresholdedRelu":
        return torch.where(n[0] > alpha, n[0], torch.zeros_like(n[0]))
    return {"LeakyRelu": f.leaky_relu, "Elu": f.elu, "Celu": f.celu}[n.kind](n[0], alpha)


@converter("HardSwish", "Mish", "Softplus", "Softsign", "Swish", "Gelu")
def _smooth(n: Node) -> Any:
    f = _torch().nn.functional
    if n.kind == "Gelu":
        return f.gelu(n[0], approximate=n.attribute("approximate", "none"))
    if n.kind == "Swish":
        return n[0] * _torch().sigmoid(n.attribute("alpha", 1.0) * n[0])
    names = {"HardSwish": f.hardswish, "Mish": f.mish, "Softplus": f.softplus, "Softsign": f.softsign}
    return names[n.kind](n[0])


@converter("PRelu")
def _prelu(n: Node) -> Any:
    x, slope = n[0], n[1]
    channels = x.shape[1] if x.dim() > 1 else 1
    # Along another axis than the channels a slope broadcasts from the right; a [C, 1, 1] one is per channel.
    per_channel = slope.dim() == x.dim() - 1 and slope.shape[0] == channels == slope.numel()
    if x.dim() > 1 and (slope.numel() == 1 or per_channel):
        return _torch().nn.functional.prelu(x, slope.reshape(-1))
    return _torch().relu(x) - slope * _torch().relu(-x)


@converter("Softmax", "LogSoftmax", "Hardmax")
def _softmax(n: Node) -> Any:
    torch = _torch()
    x, old = n[0], n.opset < 13
    axis = n.attribute("axis", 1 if old else -1) % x.dim()
    shape = x.shape
    if old and axis != x.dim() - 1:  # before opset 13 all dimensions from `axis` on count as one
        x = x.reshape(*shape[:axis], -1)
    if n.kind == "Hardmax":
        result = torch.nn.functional.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)
    else:
        result = (torch.softmax if n.kind == "Softmax" else torch.log_softmax)(x, dim=axis)
    return result.reshape(shape)


def _axes(n: Node, rank: int) -> list[int]:
    axes = n.integers("axes", 1)
    if not axes:
        return [] if n.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in axes]


_REDUCTIONS: dict[str, Callable[[Any, Any, list[int], bool], Any]] = {
    "ReduceMean": lambda t, x, d, k: t.mean(x, d, keepdim=k),
    "ReduceSum": lambda t, x, d, k: t.sum(x, d, keepdim=k),
    "ReduceMax": lambda t, x, d, k: t.amax(x, d, keepdim=k),
    "ReduceMin": lambda t, x, d, k: t.amin(x, d, keepdim=k),
    "ReduceL1": lambda t, x, d, k: t.sum(t.abs(x), d, keepdim=k),
    "ReduceL2": lambda t, x, d, k: t.sqrt(t.sum(x * x, d, keepdim=k)),
    "ReduceSumSquare": lambda t, x, d, k: t.sum(x * x, d, keepdim=k),
    "ReduceLogSum": lambda t, x, d, k: t.log(t.sum(x, d, keepdim=k)),
    "ReduceLogSumExp": lambda t, x, d, k: t.logsumexp(x, d, keepdim=k),
}


@converter(*_REDUCTIONS)
def _reduce(n: Node) -> Any:
    if not (axes := _axes(n, n[0].dim())):
        return n[0]
    return _REDUCTIONS[n.kind](_torch(), n[0], axes, bool(n.attribute("keepdims", 1)))


@converter("ReduceProd")
def _product(n: Node) -> Any:
    x, keep = n[0], bool(n.attribute("keepdims", 1))
    for axis in sorted(_axes(n, x.dim()), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@converter("ArgMax", "ArgMin")
def _arg(n: Node) -> Any:
    if n.attribute("select_last_index", 0):
        raise UnsupportedError("select_last_index is set")
    function = _torch().argmax if n.kind == "ArgMax" else _torch().argmin
    return function(n[0], n.attribute("axis", 0), keepdim=bool(n.attribute("keepdims", 1)))


@converter("CumSum")
def _cumsum(n: Node) -> Any:
    axis = int(np.ravel(n.constant(1, "axis"))[0])  # type: ignore[arg-type]
    x = n[0].flip(axis) if n.attribute("reverse", 0) else n[0]
    total = _torch().cumsum(x, axis)
    total = total - x if n.attribute("exclusive", 0) else total
    return total.flip(axis) if n.attribute("reverse", 0) else total


@converter("Reshape")
def _reshape(n: Node) -> Any:
    shape = n.integers("shape", 1) or []
    if not n.attribute("allowzero", 0):
        shape = [n[0].shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return n[0].reshape(shape)


@converter("Flatten")
def _flatten(n: Node) -> Any:
    axis = n.attribute("axis", 1)
    axis = axis + n[0].dim() if axis < 0 else axis
    return n[0].reshape(math.prod(n[0].shape[:axis]), -1)


@converter("Squeeze")
def _squeeze(n: Node) -> Any:
    axes = n.integers("axes", 1)
    chosen = [a % n[0].dim() for a in axes] if axes else [i for i, d in enumerate(n[0].shape) if d == 1]
    return n[0].reshape([d for i, d in enumerate(n[0].shape) if i not in chosen])


@converter("Unsqueeze")
def _unsqueeze(n: Node) -> Any:
    axes = n.integers("axes", 1) or []
    rank, sizes = n[0].dim() + len(axes), iter(n[0].shape)
    chosen = {a % rank for a in axes}
    return n[0].reshape([1 if i in chosen else next(sizes) for i in range(rank)])


@converter("Transpose")
def _transpose(n: Node) -> Any:
    return n[0].permute(n.attribute("perm") or tuple(reversed(range(n[0].dim()))))


@converter("Concat")
def _concat(n: Node) -> Any:
    return _torch().cat([t for t in n.tensors if t.numel()] or list(n.tensors), n.attribute("axis"))


@converter(STACK)
def _stack(n: Node) -> Any:
    return _torch().stack(list(n.tensors))


@converter("Split")
def _split(n: Node) -> Any:
    axis = n.attribute("axis", 0)
    if (sizes := n.integers("split", 1)) is None:
        each = -(-n[0].shape[axis] // n.outputs)
        return tuple(_torch().split(n[0], each, axis))
    return tuple(_torch().split(n[0], sizes, axis))


@converter("Slice")
def _slice(n: Node) -> Any:
    x = n[0]
    starts, ends = n.integers("starts", 1) or [], n.integers("ends", 2) or []
    axes = n.integers("axes", 3) or list(range(len(starts)))
    steps = n.integers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(taken.start, taken.stop, step),)]
        else:
            forward = taken[::-1]
            x = x[(slice(None),) * (axis % x.dim()) + (slice(forward.start, forward.stop, -step),)].flip(axis)
    return x


@converter("Expand", "Tile")
def _expand(n: Node) -> Any:
    sizes = n.integers("shape" if n.kind == "Expand" else "repeats", 1) or []
    if n.kind == "Tile":
        return n[0].repeat(sizes)
    return n[0].expand(_torch().broadcast_shapes(tuple(n[0].shape), tuple(sizes)))


@converter("Gather")
def _gather(n: Node) -> Any:
    torch, axis = _torch(), n.attribute("axis", 0)
    axis = axis % n[0].dim()
    size, known = n[0].shape[axis], n.constants[1]
    if known is not None and known.size == 1:  # one known index is a slice, which every device has
        at = int(known.ravel()[0]) % size
        part = n[0].narrow(axis, at, 1)
        return part.reshape(*n[0].shape[:axis], *known.shape, *n[0].shape[axis + 1 :])
    index = n[1].to(torch.int64)
    if known is None or (known.astype(np.int64) < 0).any():
        index = torch.where(index < 0, index + size, index)
    picked = torch.index_select(n[0], axis, index.reshape(-1))
    return picked.reshape(*n[0].shape[:axis], *index.shape, *n[0].shape[axis + 1 :])


def _positive(index: Any, size: int) -> Any:
    index = index.to(_torch().int64)
    return _torch().where(index < 0, index + size, index)


@converter("GatherElements", "ScatterElements")
def _elements(n: Node) -> Any:
    axis = n.attribute("axis", 0)
    index = _positive(n[1], n[0].shape[axis])
    if n.kind == "GatherElements":
        return _torch().gather(n[0], axis, index)
    reduction = n.attribute("reduction", "none")
    if reduction == "none":
        return n[0].scatter(axis, index, n[2])
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return n[0].scatter_reduce(axis, index, n[2], names[reduction])


@converter("GatherND")
def _gather_nd(n: Node) -> Any:
    if n.attribute("batch_dims", 0):
        raise UnsupportedError("batch_dims is not 0")
    return n[0][tuple(_positive(n[1][..., i], n[0].shape[i]) for i in range(n[1].shape[-1]))]


@converter("ScatterND")
def _scatter_nd(n: Node) -> Any:
    if n.attribute("reduction", "none") not in ("none", "add"):
        raise UnsupportedError(f"the reduction {n.attribute('reduction')}")
    index = tuple(_positive(n[1][..., i], n[0].shape[i]) for i in range(n[1].shape[-1]))
    return n[0].index_put(index, n[2], accumulate=n.attribute("reduction", "none") == "add")


@converter("OneHot")
def _one_hot(n: Node) -> Any:
    depth = n.constant(1, "depth")
    if depth is None:
        raise UnsupportedError("it has no depth")
    size = int(depth.ravel()[0])
    torch = _torch()
    index = _positive(n[0], size).unsqueeze(-1)
    hot = index == torch.arange(size)
    values = torch.where(hot, n[2][1], n[2][0])
    axis = n.attribute("axis", -1)
    return values if axis == -1 else values.movedim(-1, axis)


@converter("TopK")
def _topk(n: Node) -> Any:
    count = n.integers("k", 1) or [1]
    largest, ordered = bool(n.attribute("largest", 1)), bool(n.attribute("sorted", 1))
    return tuple(_torch().topk(n[0], count[0], n.attribute("axis", -1), largest=largest, sorted=ordered))


@converter("Trilu")
def _trilu(n: Node) -> Any:
    diagonal = int(n.number("k", 1, 0.0) or 0)
    return (_torch().triu if n.attribute("upper", 1) else _torch().tril)(n[0], diagonal)


@converter("Einsum")
def _einsum(n: Node) -> Any:
    return _torch().einsum(n.attribute("equation"), *n.tensors)


@converter("Gemm")
def _gemm(n: Node) -> Any:
    torch = _torch()
    a = n[0].transpose(0, 1) if n.attribute("transA", 0) else n[0]
    alpha, beta, c = n.attribute("alpha", 1.0), n.attribute("beta", 1.0), n.get(2)
    weights = n[1] if n.attribute("transB", 0) else n[1].transpose(0, 1)
    if alpha == 1.0 and (c is None or (beta == 1.0 and c.dim() <= 2 and c.numel() == weights.shape[0])):
        return torch.nn.functional.linear(a, weights, None if c is None else c.reshape(-1))
    product = alpha * torch.nn.functional.linear(a, weights)
    return product if c is None else product + beta * c


@converter("SpaceToDepth", "DepthToSpace")
def _blocks(n: Node) -> Any:
    b, (batch, c, h, w) = int(n.attribute("blocksize")), n[0].shape
    if n.kind == "SpaceToDepth":
        parts = n[0].reshape(batch, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(batch, c * b * b, h // b, w // b)
    if n.attribute("mode", "DCR") == "CRD":
        return _torch().nn.functional.pixel_shuffle(n[0], b)
    parts = n[0].reshape(batch, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, c // (b * b), h * b, w * b)


@converter("Pad")
def _pad(n: Node) -> Any:
    pads = n.integers("pads" if "pads" in n.attributes else "paddings", 1) or []
    rank, axes = n[0].dim(), None
    if n.get(3) is not None:
        axes = [int(a) % rank for a in np.ravel(n.constant(3, "axes"))]  # type: ignore[arg-type]
    axes = list(range(rank)) if axes is None else axes
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=True))
    begin, end = [before.get(i, 0) for i in range(rank)], [after.get(i, 0) for i in range(rank)]
    mode = n.attribute("mode", "constant")
    if mode == "constant":
        return pad_constant(n[0], begin, end, n.number("value", 2, 0.0) or 0.0)
    if mode not in ("edge", "reflect"):
        raise UnsupportedError(f"the mode {mode!r}")
    return _pad_by_index(n[0], begin, end, mode)


def pad_constant(x: Any, begin: Sequence[int], end: Sequence[int], value: float) -> Any:
    """Return `x` with constants around it, or cut where a padding is negative; one entry per dimension."""
    if not any(begin) and not any(end):
        return x
    flat = [side for b, e in zip(reversed(begin), reversed(end), strict=True) for side in (b, e)]
    return _torch().nn.functional.pad(x, flat, value=value)


def _pad_by_index(x: Any, begin: Sequence[int], end: Sequence[int], mode: str) -> Any:
    torch = _torch()
    for axis, (b, e) in enumerate(zip(begin, end, strict=True)):
        size = x.shape[axis]
        if b == e == 0:
            continue
        before, after = np.arange(-b, 0), np.arange(size, size + e)
        if mode == "edge":
            index = np.clip(np.concatenate([before, after]), 0, size - 1)
        else:
            index = np.concatenate([-before, 2 * (size - 1) - after])
        parts = [_picked(x, axis, index[:b]), x, _picked(x, axis, index[b:])]
        x = torch.cat([p for p in parts if p is not None], axis)
    return x


def _picked(x: Any, axis: int, index: Any) -> Any:
    """Return the slices of `x` at these places, None for none: few as slices, which every device has, else gathered."""
    torch = _torch()
    if len(index) <= _FEW:
        return torch.cat([x.narrow(axis, int(i), 1) for i in index], axis) if len(index) else None
    return torch.index_select(x, axis, torch.from_numpy(np.ascontiguousarray(index, np.int64)))
