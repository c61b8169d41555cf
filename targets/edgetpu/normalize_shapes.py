"""Fold SHAPE operators and the integer arithmetic that converters put between them and a RESHAPE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.targets.edgetpu.normalize_edit import Editor
from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_INTEGERS = ("int32", "int64")


def fold_shapes(editor: Editor) -> list[tuple[str, str, list[int]]]:
    """Replace integer operators with known results by constants; return label, operator and value of each.

    All shapes are the file's concrete ones, so `fix_batch` has to run first.
    """
    folded = []
    for op in list(editor.graph.operators):
        name = flatbuffer.operator_name(editor.model, op)[0]
        value = _value(editor, op, name)
        if value is None or int(op.outputs[0]) in editor.graph.outputs:
            continue
        folded.append((editor.label(op), name, value.reshape(-1).tolist()))
        constant = editor.add_constant(value, like=op.outputs[0])
        editor.replace_uses(op.outputs[0], constant)
        editor.remove(op)
    return folded


def _value(editor: Editor, op: Any, name: str) -> Array | None:
    dtype = editor.dtype(op.outputs[0]) if len(op.outputs) == 1 else ""
    if dtype not in _INTEGERS:
        return None
    if name == "SHAPE":
        return np.array(editor.shape(op.inputs[0]), dtype)
    fold = _FOLDS.get(name)
    inputs = [editor.constant(t) for t in op.inputs]
    if fold is None or not inputs or any(v is None for v in inputs):
        return None
    value = np.asarray(fold(op.builtinOptions, [v for v in inputs if v is not None])).astype(dtype)
    # What we compute must have the shape that the converter recorded, else the operator is left as it is.
    return value if list(value.shape) == editor.shape(op.outputs[0]) else None


def _strided_slice(options: Any, inputs: list[Array]) -> Array:
    value, begin, end, strides = inputs
    if options.ellipsisMask or options.newAxisMask:
        return np.empty((0, 0))  # a shape that no recorded one equals: left as it is
    index: list[slice | int] = []
    for axis, (low, high, step) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist(), strict=True)):
        if options.shrinkAxisMask >> axis & 1:
            index.append(low)
            continue
        start = None if options.beginMask >> axis & 1 else low
        index.append(slice(start, None if options.endMask >> axis & 1 else high, step))
    return np.asarray(value[tuple(index)])


def _pack(options: Any, inputs: list[Array]) -> Array:
    return np.stack(inputs, axis=options.axis)


def _concatenation(options: Any, inputs: list[Array]) -> Array:
    return np.concatenate(inputs, axis=options.axis)


def _gather(options: Any, inputs: list[Array]) -> Array:
    if options.batchDims:
        return np.empty((0, 0))
    return np.asarray(np.take(inputs[0], inputs[1].astype(np.int64), axis=options.axis))


def _product(options: Any, inputs: list[Array]) -> Array:
    axes = tuple(int(a) for a in inputs[1].reshape(-1))
    product = np.prod(inputs[0].astype(np.int64), axis=axes)
    return np.asarray(np.expand_dims(product, axes) if options.keepDims else product)


def _reshape(options: Any, inputs: list[Array]) -> Array:
    del options
    return inputs[0].reshape([int(d) for d in inputs[1]])


def _fused(options: Any) -> bool:
    return bool(getattr(options, "fusedActivationFunction", None))


def _arithmetic(function: Callable[..., Any]) -> Callable[[Any, list[Array]], Array]:
    def fold(options: Any, inputs: list[Array]) -> Array:
        if _fused(options):
            return np.empty((0, 0))
        return np.asarray(function(*(v.astype(np.int64) for v in inputs)))

    return fold


_FOLDS: dict[str, Callable[[Any, list[Array]], Array]] = {
    "STRIDED_SLICE": _strided_slice,
    "PACK": _pack,
    "CONCATENATION": _concatenation,
    "GATHER": _gather,
    "REDUCE_PROD": _product,
    "RESHAPE": _reshape,
    "MUL": _arithmetic(np.multiply),
    "ADD": _arithmetic(np.add),
    "SUB": _arithmetic(np.subtract),
    "CAST": _arithmetic(np.positive),
}
