"""LiteRT's operators on single values, reductions, and those that move values, in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge.sources.litert_node import TO_FIRST, ChannelFirst, Node, UnsupportedError, converter, turned


def _torch() -> Any:
    import torch

    return torch


def _same_layout(n: Node, positions: Sequence[int]) -> tuple[list[Any], bool]:
    """Return inputs that are combined place by place, all in one layout; channel-first where one is already."""
    values = [n.value(i) for i in positions]
    first = any(v.is_first for v in values) and all(len(v.shape) <= 4 for v in values)
    if not first:
        return [n[i] for i in positions], False
    return [_beside_first(n, i) for i in positions], True


def _beside_first(n: Node, position: int) -> Any:
    value = n.value(position)
    if len(value.shape) == 4:
        return n.first(position)
    shape = (1,) * (4 - len(value.shape)) + tuple(value.shape)
    if value.constant is not None:
        return n.made(position, "beside_first", lambda v: v.reshape(shape).transpose(TO_FIRST))
    return turned(n[position].reshape(shape), TO_FIRST)


def _wrapped(result: Any, first: bool) -> Any:
    return ChannelFirst(result) if first else result


def _elementwise(kind: str, function: Callable[..., Any]) -> None:
    def convert(n: Node) -> Any:
        tensors, first = _same_layout(n, range(len(n.values)))
        return _wrapped(n.activated(function(*tensors)), first)

    converter(kind)(convert)


def _by_name(name: str, *fixed: Any, **named: Any) -> Callable[..., Any]:
    return lambda *tensors: getattr(_torch(), name)(*tensors, *fixed, **named)


def _function(name: str, **named: Any) -> Callable[..., Any]:
    return lambda x: getattr(_torch().nn.functional, name)(x, **named)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "ADD": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "MUL": lambda a, b: a * b,
    "DIV": lambda a, b: a / b,
    "ADD_N": lambda *v: functools.reduce(lambda a, b: a + b, v),
    "MAXIMUM": _by_name("maximum"),
    "MINIMUM": _by_name("minimum"),
    "POW": _by_name("pow"),
    "FLOOR_DIV": _by_name("floor_divide"),
    "FLOOR_MOD": _by_name("remainder"),
    "SQUARED_DIFFERENCE": lambda a, b: (a - b) * (a - b),
    "ATAN2": _by_name("atan2"),
    "EQUAL": _by_name("eq"),
    "NOT_EQUAL": _by_name("ne"),
    "LESS": _by_name("lt"),
    "LESS_EQUAL": _by_name("le"),
    "GREATER": _by_name("gt"),
    "GREATER_EQUAL": _by_name("ge"),
    "LOGICAL_AND": _by_name("logical_and"),
    "LOGICAL_OR": _by_name("logical_or"),
    "LOGICAL_NOT": _by_name("logical_not"),
    "SELECT_V2": _by_name("where"),
    **{k: _by_name(k.lower()) for k in ("ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT", "SIN", "COS", "FLOOR", "CEIL")},
    **{k: _by_name(k.lower()) for k in ("ROUND", "SIGN", "TANH", "RELU")},
    "SQUARE": lambda x: x * x,
    "LOGISTIC": _by_name("sigmoid"),
    "RELU6": _function("relu6"),
    "RELU_N1_TO_1": _by_name("clamp", -1.0, 1.0),
    "RELU_0_TO_1": _by_name("clamp", 0.0, 1.0),
    "ELU": _function("elu"),
    "HARD_SWISH": _function("hardswish"),
    "ZEROS_LIKE": _by_name("zeros_like"),
    "DEQUANTIZE": lambda x: x.to(_torch().float32),
}
for _kind, _body in _ELEMENTWISE.items():
    _elementwise(_kind, _body)


@converter("GELU")
def _gelu(n: Node) -> Any:
    (x,), first = _same_layout(n, [0])
    mode = "tanh" if n.option("approximate", False) else "none"
    return _wrapped(_torch().nn.functional.gelu(x, approximate=mode), first)


@converter("LEAKY_RELU")
def _leaky(n: Node) -> Any:
    (x,), first = _same_layout(n, [0])
    return _wrapped(_torch().nn.functional.leaky_relu(x, float(n.option("alpha", 0.0))), first)


@converter("CAST")
def _cast(n: Node) -> Any:
    from edge.targets.litert import flatbuffer as fb

    (x,), first = _same_layout(n, [0])
    name = {fb.dtype_code(d): d for d in ("float32", "int32", "int64", "bool", "uint8", "int8", "int16")}.get(
        n.option("outDataType", -1)
    )
    if name is None:
        raise UnsupportedError(f"a cast to the type {n.option('outDataType')}")
    return _wrapped(x.to(getattr(_torch(), name)), first)


@converter("SELECT")
def _select(n: Node) -> Any:
    # The condition may be a vector over the first axis.
    condition = n[0]
    condition = condition.reshape(condition.shape + (1,) * (n[1].dim() - condition.dim()))
    return _torch().where(condition, n[1], n[2])


# --- Reductions ---------------------------------------------------------------------------------------------------


def _reduced(x: Any, kind: str, axes: list[int], keep: bool) -> Any:
    if kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        name = {"REDUCE_MAX": "amax", "REDUCE_MIN": "amin"}.get(kind, kind.lower())
        result = getattr(_torch(), name)(x, axes, keepdim=keep)
        return result.to(x.dtype) if kind == "SUM" else result
    name = kind.removeprefix("REDUCE_").lower()
    for axis in sorted(axes, reverse=True):
        x = getattr(_torch(), name)(x, axis, keepdim=keep)
    return x


@converter("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")
def _reduce(n: Node) -> Any:
    rank, keep = len(n.value(0).shape), bool(n.option("keepDims", False))
    axes = sorted({a % rank for a in n.integers(1, "the axes")}) if rank else []
    if not axes:
        return n[0]
    if n.is_first(0):
        turned_axes = [TO_FIRST.index(a) for a in axes]
        left = [a for a in TO_FIRST if a not in axes]
        if keep or left == sorted(left):
            return _wrapped(_reduced(n.first(0), n.kind, turned_axes, keep), keep)
    return _reduced(n[0], n.kind, axes, keep)


@converter("ARG_MAX", "ARG_MIN")
def _arg(n: Node) -> Any:
    from edge.targets.litert import flatbuffer as fb

    (axis,) = n.integers(1, "the axis")
    result = getattr(_torch(), n.kind.lower().replace("_", ""))(n[0], axis)
    return result.to(_torch().int64 if n.option("outputType") == fb.dtype_code("int64") else _torch().int32)


@converter("TOPK_V2")
def _topk(n: Node) -> Any:
    values, indices = _torch().topk(n[0], n.integers(1, "the count")[0], -1)
    return values, indices.to(_torch().int32)


@converter("CUMSUM")
def _cumsum(n: Node) -> Any:
    (axis,) = n.integers(1, "the axis")
    x = n[0].flip(axis) if n.option("reverse", False) else n[0]
    total = _torch().cumsum(x, axis)
    total = total - x if n.option("exclusive", False) else total
    return total.flip(axis) if n.option("reverse", False) else total


# --- What moves values --------------------------------------------------------------------------------------------


@converter("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def _reshape(n: Node) -> Any:
    return n[0].reshape(n.shapes[0])


@converter("TRANSPOSE")
def _transpose(n: Node) -> Any:
    order = n.integers(1, "the order")
    if n.is_first(0) and order == list(TO_FIRST):
        return n.first(0)
    if order == [0, 2, 3, 1] and len(order) == 4:
        return ChannelFirst(n[0])
    return turned(n[0], order)


@converter("CONCATENATION")
def _concat(n: Node) -> Any:
    tensors, first = _same_layout(n, range(len(n.values)))
    axis = int(n.option("axis", 0)) % len(n.shapes[0])
    return _wrapped(n.activated(_torch().cat(tensors, TO_FIRST.index(axis) if first else axis)), first)


@converter("PACK")
def _pack(n: Node) -> Any:
    return _torch().stack([n[i] for i in range(len(n.values))], int(n.option("axis", 0)))


@converter("UNPACK")
def _unpack(n: Node) -> Any:
    axis = int(n.option("axis", 0)) % n[0].dim()
    return tuple(n[0].select(axis, i) for i in range(n[0].shape[axis]))


@converter("SPLIT", "SPLIT_V")
def _split(n: Node) -> Any:
    data, at = (1, 0) if n.kind == "SPLIT" else (0, 2)
    axis = n.integers(at, "the axis")[0] % len(n.value(data).shape)
    (x,), first = _same_layout(n, [data])
    sizes = [shape[axis] for shape in n.shapes]
    start, parts = 0, []
    for size in sizes:
        parts.append(_wrapped(x.narrow(TO_FIRST.index(axis) if first else axis, start, size), first))
        start += size
    return tuple(parts)


@converter("SLICE")
def _slice(n: Node) -> Any:
    (x,), first = _same_layout(n, [0])
    for axis, (start, size) in enumerate(zip(n.integers(1, "the start"), n.shapes[0], strict=True)):
        place = TO_FIRST.index(axis) if first else axis
        if size != x.shape[place]:
            x = x.narrow(place, start, size)
    return _wrapped(x, first)


@converter("STRIDED_SLICE")
def _strided_slice(n: Node) -> Any:
    begin, end, step = (n.integers(i, "a bound of the slice") for i in (1, 2, 3))
    masks = {m: int(n.option(f"{m}Mask", 0)) for m in ("begin", "end", "shrinkAxis", "ellipsis", "newAxis")}
    if masks["ellipsis"] or masks["newAxis"]:
        raise UnsupportedError("an ellipsis or a new axis in the slice")
    plain = n.is_first(0) and not masks["shrinkAxis"]
    x = n.first(0) if plain else n[0]
    for axis in range(len(begin)):
        place = TO_FIRST.index(axis) if plain else axis
        size, s = x.shape[place], step[axis]
        if masks["shrinkAxis"] >> axis & 1:
            x = x.narrow(place, begin[axis] % size, 1)
            continue
        start = None if masks["begin"] >> axis & 1 else begin[axis]
        stop = None if masks["end"] >> axis & 1 else end[axis]
        x = _taken(x, place, range(size)[start:stop:s])
    return ChannelFirst(x) if plain else x.reshape(n.shapes[0])


def _taken(x: Any, axis: int, places: range) -> Any:
    if places == range(x.shape[axis]):
        return x
    forward = places if places.step > 0 else places[::-1]
    cut = x[(slice(None),) * axis + (slice(forward.start, forward.stop, forward.step),)]
    return cut if places.step > 0 else cut.flip(axis)


def _sides(n: Node, first: bool) -> list[tuple[int, int]]:
    pairs = np.asarray(n.constant(1, "the padding")).reshape(-1, 2).astype(int).tolist()
    return [tuple(pairs[a]) for a in TO_FIRST] if first else [tuple(p) for p in pairs]


@converter("PAD", "PADV2")
def _pad(n: Node) -> Any:
    (x,), first = _same_layout(n, [0])
    # Channels that are padded with zeros to join a wider map, and images before a convolution: both channel-first.
    if len(n.value(0).shape) == 4 and not first and x.dtype.is_floating_point:
        x, first = n.first(0), True
    sides = _sides(n, first)
    value = float(np.ravel(n.constant(2, "the value"))[0]) if n.kind == "PADV2" else 0.0
    if not any(map(any, sides)):
        return _wrapped(x, first)
    flat = [side for pair in reversed(sides) for side in pair]
    return _wrapped(_torch().nn.functional.pad(x, flat, value=value), first)


@converter("MIRROR_PAD")
def _mirror(n: Node) -> Any:
    (x,), first = _same_layout(n, [0])
    edge = int(n.option("mode", 0))  # 0: the edge is not repeated, 1: it is
    for axis, (before, after) in enumerate(_sides(n, first)):
        size = x.shape[axis]
        left = [x.narrow(axis, i - 1 + (1 - edge), 1) for i in range(before, 0, -1)]
        right = [x.narrow(axis, size - i - (1 - edge), 1) for i in range(1, after + 1)]
        x = _torch().cat([*left, x, *right], axis) if left or right else x
    return _wrapped(x, first)


@converter("GATHER")
def _gather(n: Node) -> Any:
    rank, batch = len(n.value(0).shape), int(n.option("batchDims", 0))
    axis = int(n.option("axis", 0)) % rank
    x, index, torch = n[0], n[1], _torch()
    if batch == 0:
        picked = torch.index_select(x, axis, index.reshape(-1))
        return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    if axis != batch:
        raise UnsupportedError("batch dimensions before another axis")
    lead = tuple(x.shape[:batch])
    flat, places = x.reshape(-1, *x.shape[batch:]), index.reshape(int(np.prod(lead)), -1).to(torch.int64)
    rows = torch.arange(flat.shape[0]).unsqueeze(1)
    return flat[rows, places].reshape(*lead, *index.shape[batch:], *x.shape[axis + 1 :])


@converter("GATHER_ND")
def _gather_nd(n: Node) -> Any:
    index = n[1].to(_torch().int64)
    return n[0][tuple(index[..., i] for i in range(index.shape[-1]))]


@converter("SCATTER_ND")
def _scatter_nd(n: Node) -> Any:
    index = n[0].to(_torch().int64)
    zeros = _torch().zeros(n.shapes[0], dtype=n[1].dtype)
    return zeros.index_put(tuple(index[..., i] for i in range(index.shape[-1])), n[1], accumulate=True)


@converter("ONE_HOT")
def _one_hot(n: Node) -> Any:
    torch, axis = _torch(), int(n.option("axis", -1))
    hot = n[0].unsqueeze(-1) == torch.arange(n.integers(1, "the depth")[0])
    result = torch.where(hot, n[2], n[3])
    return result if axis in (-1, result.dim() - 1) else result.movedim(-1, axis)


@converter("TILE")
def _tile(n: Node) -> Any:
    return n[0].repeat(n.integers(1, "the repetitions"))


@converter("BROADCAST_TO")
def _broadcast(n: Node) -> Any:
    return n[0].expand(n.shapes[0])


@converter("REVERSE_V2")
def _reverse(n: Node) -> Any:
    return n[0].flip(n.integers(1, "the axes"))


@converter("FILL")
def _fill(n: Node) -> Any:
    return n[1].expand(n.shapes[0])


@converter("RANGE")
def _range(n: Node) -> Any:
    start, stop, step = (np.ravel(n.constant(i, "a bound of the range"))[0].item() for i in range(3))
    return _torch().arange(start, stop, step, dtype=n[0].dtype)


@converter("SPACE_TO_DEPTH", "DEPTH_TO_SPACE")
def _blocks(n: Node) -> Any:
    b, x = int(n.option("blockSize", 1)), n[0]
    batch, h, w, c = x.shape
    if n.kind == "SPACE_TO_DEPTH":
        parts = x.reshape(batch, h // b, b, w // b, b, c).permute(0, 1, 3, 2, 4, 5)
    else:
        parts = x.reshape(batch, h, w, b, b, c // (b * b)).permute(0, 1, 3, 2, 4, 5)
    return parts.reshape(n.shapes[0])


@converter("SPACE_TO_BATCH_ND")
def _space_to_batch(n: Node) -> Any:
    x, blocks = n[0], n.integers(1, "the block")
    pads = np.asarray(n.constant(2, "the padding")).reshape(-1, 2).tolist()
    rest = x.dim() - 1 - len(blocks)
    x = _torch().nn.functional.pad(x, [0] * (2 * rest) + [side for pair in reversed(pads) for side in pair])
    shape = [x.shape[0]]
    for size, b in zip(x.shape[1:], blocks, strict=False):
        shape += [size // b, b]
    inner = list(range(2, 2 * len(blocks) + 1, 2))
    outer = list(range(1, 2 * len(blocks), 2))
    tail = list(range(2 * len(blocks) + 1, 2 * len(blocks) + 1 + rest))
    split = x.reshape(*shape, *x.shape[1 + len(blocks) :])
    return split.permute(*inner, 0, *outer, *tail).reshape(n.shapes[0])


@converter("BATCH_TO_SPACE_ND")
def _batch_to_space(n: Node) -> Any:
    x, blocks = n[0], n.integers(1, "the block")
    crops = np.asarray(n.constant(2, "the crop")).reshape(-1, 2).tolist()
    count, batch = len(blocks), x.shape[0] // int(np.prod(blocks))
    split = x.reshape(*blocks, batch, *x.shape[1:])
    order = [count]
    for i in range(count):
        order += [count + 1 + i, i]
    order += list(range(2 * count + 1, split.dim()))
    sizes = [s * b for s, b in zip(x.shape[1:], blocks, strict=False)]
    y = split.permute(order).reshape(batch, *sizes, *x.shape[1 + count :])
    for axis, (before, after) in enumerate(crops, 1):
        y = y.narrow(axis, before, y.shape[axis] - before - after)
    return y
