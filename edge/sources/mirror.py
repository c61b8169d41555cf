"""Find reflections that a converter wrote as gathers, and write them as MIRROR_PAD.

Reflection padding arrives as one gather of rows, or as CONCATENATION of x mirrored at its first element, x, and x
mirrored at its last one, with reshapes and transpositions around, and indices that are computed from constants. Which
elements a tensor takes is not matched operator by operator but computed, by running what only moves elements on the
numbers of x's elements; if they are those of a reflection, the whole is MIRROR_PAD(x), which quantizers know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.sources.carrier import prune
from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_DEPTH = 12


def mirror_pads(model: Any) -> int:
    """Replace reflections until none is left; return how many. Changes the model in place."""
    done = 0
    while _replace_one(model):
        _drop_dead(model)
        done += 1
    if done:
        prune(model)
    return done


def _replace_one(model: Any) -> bool:
    view = fb.graph(model)
    producers = view.producers()
    for op in reversed(view.ops):  # the last of a chain spares all before it
        joint = op.name == "CONCATENATION" and 2 <= len(op.inputs) <= 3 and not op.option("fusedActivationFunction", 0)
        for source in op.inputs if joint else ():
            if (found := _reflection(view, producers, op, source)) is not None:
                _write(model, view, op, source, *found)
                return True
        if op.name in ("TRANSPOSE", "GATHER_ND", "GATHER") and _gathered_one(model, view, producers, op):
            return True
    return False


def _gathered_one(model: Any, view: fb.Graph, producers: dict[int, int], op: fb.Op) -> bool:
    """Replace an operator at the end of a gather that reflects one of the tensors before it; tell whether it did."""
    tensor, gathers, shape = op.inputs[0], op.name != "TRANSPOSE", view.tensors[op.outputs[0]].shape
    for _ in range(_DEPTH):
        source = view.tensors[tensor]
        longer = [i for i, (a, b) in enumerate(zip(source.shape, shape, strict=False)) if a != b]
        if gathers and len(source.shape) == len(shape) <= 4 and len(longer) == 1 and not source.is_constant:
            ids = np.arange(source.elements).reshape(source.shape)
            moved = _moved(view, producers, op.outputs[0], tensor, ids, _DEPTH)
            found = _widths(ids, moved, longer[0])
            if found is not None:
                _write(model, view, op, tensor, found[0], longer[0], found[1])
                return True
        if tensor not in producers or view.ops[producers[tensor]].name not in _MOVES:
            return False
        gathers = gathers or view.ops[producers[tensor]].name.startswith("GATHER")
        tensor = view.ops[producers[tensor]].inputs[0]
    return False


def _widths(ids: Array, moved: Array | None, axis: int) -> tuple[tuple[int, int], bool] | None:
    """Return (before, after) and whether the border repeats, where `moved` is a reflection of `ids` along an axis."""
    if moved is None or moved.shape[axis] < ids.shape[axis]:
        return None
    first = np.argwhere(np.take(moved, range(moved.shape[axis]), axis) == ids.flat[0])
    most = moved.shape[axis] - ids.shape[axis]
    for before in sorted({int(place[axis]) for place in first}):
        if before <= most and (repeats := _mirrors(ids, moved, (before, most - before), axis)) is not None:
            return (before, most - before), repeats
    return None


def _mirrors(ids: Array, joined: Array, pads: tuple[int, int], axis: int) -> bool | None:
    """Return whether the border repeats in a reflection of `ids` by `pads`, None where `joined` is none."""
    widths = [pads if i == axis else (0, 0) for i in range(ids.ndim)]
    for mode, most in (("reflect", ids.shape[axis] - 1), ("symmetric", ids.shape[axis])):
        if 0 < max(pads) <= most and np.array_equal(joined, np.pad(ids, widths, mode=mode)):  # type: ignore[call-overload]
            return mode == "symmetric"
    return None


def _reflection(
    view: fb.Graph, producers: dict[int, int], op: fb.Op, source: int
) -> tuple[tuple[int, int], int, bool] | None:
    """Return (before, after), the axis and whether the border repeats, where the parts mirror `source`."""
    shape = view.tensors[source].shape
    if view.tensors[source].is_constant or not shape or len(shape) > 4:
        return None
    axis = int(op.option("axis", 0)) % len(shape)
    at = op.inputs.index(source)
    root = _root(view, producers, source)
    numbers = np.arange(int(np.prod(shape)))
    ids = numbers.reshape(view.tensors[root].shape)
    parts = [_moved(view, producers, tensor, root, ids, _DEPTH) for tensor in op.inputs]
    numbers = numbers.reshape(shape)  # a RESHAPE keeps the order
    if at > 1 or len(op.inputs) - at > 2 or any(p is None or p.ndim != len(shape) for p in parts):
        return None
    joined = np.concatenate([p for p in parts if p is not None], axis=axis)
    before = 0 if at == 0 else parts[0].shape[axis]  # type: ignore[union-attr]
    pads = before, joined.shape[axis] - before - shape[axis]
    repeats = _mirrors(numbers, joined, pads, axis)
    return None if repeats is None else (pads, axis, repeats)


def _root(view: fb.Graph, producers: dict[int, int], tensor: int) -> int:
    """Return the tensor that a tensor is only another shape of: its mirrored parts may start from there."""
    while tensor in producers and view.ops[producers[tensor]].name == "RESHAPE":
        tensor = view.ops[producers[tensor]].inputs[0]
    return tensor


def _moved(
    view: fb.Graph, producers: dict[int, int], tensor: int, root: int, numbers: Array, depth: int
) -> Array | None:
    """Return which elements of `root` stand in a tensor, None where it holds anything else."""
    if tensor == root:
        return numbers
    if tensor not in producers or depth == 0:
        return None
    op = view.ops[producers[tensor]]
    apply = _MOVES.get(op.name)
    if apply is None or op.inputs[0] < 0:
        return None
    before = _moved(view, producers, op.inputs[0], root, numbers, depth - 1)
    constants = [_constant(view, producers, i, _DEPTH) for i in op.inputs[1:]]
    if before is None or any(c is None for c in constants):
        return None
    try:
        result = apply(before, constants, op, view.tensors[tensor].shape)
    except (ValueError, IndexError):  # an operator of a damaged file: not ours to judge here
        return None
    return result if result.shape == view.tensors[tensor].shape else None


def _constant(view: fb.Graph, producers: dict[int, int], tensor: int, depth: int) -> Array | None:
    """Return a constant, or what integer arithmetic makes of constants."""
    value: Array | None = view.data(tensor)
    if value is not None or tensor not in producers or depth == 0:
        return value
    op = view.ops[producers[tensor]]
    given = [_constant(view, producers, i, depth - 1) for i in op.inputs]
    if op.name not in _ARITHMETIC or any(g is None for g in given):
        return None
    result = np.asarray(_ARITHMETIC[op.name](*given))
    return result.reshape(view.tensors[tensor].shape)


_ARITHMETIC: dict[str, Any] = {
    "ABS": np.abs,
    "ADD": np.add,
    "SUB": np.subtract,
    "LESS": np.less,
    "SELECT": np.where,
    "SELECT_V2": np.where,
    "RESHAPE": lambda x, _shape: x,
}


def _gather_nd(x: Array, constants: list[Any], _op: fb.Op, _shape: tuple[int, ...]) -> Array:
    return np.asarray(x[tuple(np.moveaxis(constants[0], -1, 0))])


def _gather(x: Array, constants: list[Any], op: fb.Op, _shape: tuple[int, ...]) -> Array:
    if op.option("batchDims", 0):
        raise ValueError("batches of indices")
    return np.asarray(np.take(x, constants[0], axis=op.option("axis", 0)))


def _slice(x: Array, constants: list[Any], _op: fb.Op, _shape: tuple[int, ...]) -> Array:
    begin, size = (c.ravel() for c in constants)
    return x[tuple(slice(b, None if s < 0 else b + s) for b, s in zip(begin, size, strict=True))]


_MOVES: dict[str, Any] = {
    "RESHAPE": lambda x, _c, _op, shape: x.reshape(shape),
    "TRANSPOSE": lambda x, c, _op, _shape: x.transpose(c[0].ravel()),
    "REVERSE_V2": lambda x, c, _op, _shape: np.flip(x, axis=tuple(c[0].ravel())),
    "GATHER_ND": _gather_nd,
    "GATHER": _gather,
    "SLICE": _slice,
}


def _write(
    model: Any, view: fb.Graph, op: fb.Op, source: int, pads: tuple[int, int], axis: int, symmetric: bool
) -> None:
    graph, schema = model.subgraphs[0], fb.schema()
    rank = len(view.tensors[source].shape)
    widths = np.zeros((rank, 2), np.int32)
    widths[axis] = pads
    name = view.tensors[op.outputs[0]].name
    raw = graph.operators[op.index]
    raw.inputs = np.array([source, edit.add_constant(model, graph, f"{name}/paddings", widths)], np.int32)
    raw.opcodeIndex = edit.code_index(model, "MIRROR_PAD")
    raw.builtinOptions = schema.MirrorPadOptionsT()
    raw.builtinOptions.mode = schema.MirrorPadMode.SYMMETRIC if symmetric else schema.MirrorPadMode.REFLECT
    raw.builtinOptionsType = schema.BuiltinOptions.MirrorPadOptions


def _drop_dead(model: Any) -> None:
    """Remove what only moved elements for a reflection and that nothing reads any more."""
    while True:
        view = fb.graph(model)
        live = {t for op in view.ops for t in op.inputs} | set(view.outputs)
        dead = {op.index for op in view.ops if op.name in _MOVES | _ARITHMETIC and not live & set(op.outputs)}
        if not dead:
            return
        model.subgraphs[0].operators = [op for i, op in enumerate(model.subgraphs[0].operators) if i not in dead]
