"""Scales that a network learned with fake quantization: found in a float program, kept to the bit in the int8 one.

A converter writes fake quantization as QUANTIZE and DEQUANTIZE around a float tensor (older ones as FAKE_QUANT).
`strip` takes such pairs out and notes what they said at the tensor itself, in its field `quantization`, where it
survives rewrites of the graph; `insert` puts pairs back. So a float carrier computes what was trained, and says with
which scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.calibration import affine
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.findings import Finding
from edge.signature import Quantization
from edge.targets.litert import edit, flatbuffer

_PAIR = ("QUANTIZE", "DEQUANTIZE")
# They only move values: both sides have one scale.
_MOVERS = frozenset({"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
_STORED = {"int8": 0, "uint8": 128}
_INT8 = (-128, 127)
# Scales that went through a quantizer as a range come back within a few roundings of float32.
_SAME = 1e-5
# What ai-edge-quantizer appends to the name of the integer side of a float end.
_INNER = "_quantized"
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Learned int8 parameters by tensor name: one scale per activation, one or one per channel for weights.

    `conflicts` names tensors that were fake-quantized twice with different scales; the first one counts.
    """

    activations: Mapping[str, Quantization] = field(default_factory=dict)
    weights: Mapping[str, Quantization] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self.activations or self.weights)

    def laid_over(self, ranges: Ranges) -> Ranges:
        """Return the ranges with those that the learned scales span: scale * (-128 - zero), scale * (127 - zero)."""
        limits = dict(ranges.limits)
        for name, q in self.activations.items():
            low, high = (q.scale[0] * (end - q.zero_point[0]) for end in _INT8)
            limits[name] = (low, high)
        return Ranges(
            limits=limits, samples=ranges.samples, estimator=ranges.estimator, findings=self._relevant(ranges)
        )

    def _relevant(self, ranges: Ranges) -> tuple[Finding, ...]:
        # That samples still widen ranges says nothing where no range comes of them.
        return ranges.findings if set(ranges.limits) - set(self.activations) else ()


def carries(model: Any) -> bool:
    """Tell whether a `ModelT` has fake-quantized activations: a pair around a tensor that is no constant."""
    for view in flatbuffer.graphs(model):
        written = {t for op in view.ops for t in op.outputs} | set(view.inputs)
        float_ends = {op.outputs[0] for op in view.ops if op.name == "QUANTIZE" and _float(view, op.inputs[0])}
        for op in view.ops:
            if op.name == "FAKE_QUANT" and op.inputs[0] in written:
                return True
            if op.name == "DEQUANTIZE" and op.inputs[0] in float_ends:
                return True
    return False


def _float(view: flatbuffer.Graph, tensor: int) -> bool:
    return view.tensors[tensor].dtype == "float32"


def take(model: Any) -> Learned:
    """Strip a `ModelT` in place and return what its tensors learned; nothing where there is no fake quantization.

    Raises QuantizationError for fake quantization of other widths than 8 bits.
    """
    if not carries(model):
        return Learned()
    conflicts = strip(model)
    return read(model, conflicts)


def read(model: Any, conflicts: tuple[str, ...] = ()) -> Learned:
    """Return the notes of a stripped model."""
    activations: dict[str, Quantization] = {}
    weights: dict[str, Quantization] = {}
    for raw in model.subgraphs[0].tensors:
        if (noted := _note(raw)) is not None:
            place = weights if flatbuffer.constant(model, raw) is not None else activations
            place[flatbuffer.text(raw.name)] = noted
    return Learned(activations=activations, weights=weights, conflicts=conflicts)


def _note(raw: Any) -> Quantization | None:
    q = raw.quantization
    if raw.type != flatbuffer.dtype_code("float32") or q is None or q.scale is None or len(q.scale) == 0:
        return None
    axis = int(q.quantizedDimension or 0) if len(q.scale) > 1 else None
    return Quantization(
        scale=tuple(float(s) for s in q.scale), zero_point=tuple(int(z) for z in q.zeroPoint), axis=axis
    )


def _write_note(raw: Any, noted: Quantization | None) -> None:
    if noted is None:
        raw.quantization = None
        return
    raw.quantization = flatbuffer.schema().QuantizationParametersT()
    raw.quantization.scale = np.asarray(noted.scale, np.float32)
    raw.quantization.zeroPoint = np.asarray(noted.zero_point, np.int64)
    raw.quantization.quantizedDimension = noted.axis or 0


# --- out -----------------------------------------------------------------------------------------------------------


def strip(model: Any) -> tuple[str, ...]:
    """Take fake quantization out of the main graph and note it at the tensors; return the names of conflicts."""
    for raw in model.subgraphs[0].tensors:
        if raw.type == flatbuffer.dtype_code("float32"):
            raw.quantization = None
    conflicts = _unpair(model)
    while _fold_mover(model):
        pass
    _spread(model)
    edit.prune(model)
    return tuple(dict.fromkeys(conflicts))


def _unpair(model: Any) -> list[str]:
    graph, view = model.subgraphs[0], flatbuffer.graph(model)
    source: dict[int, int] = {}  # of a dequantized tensor: the float one that it stands for
    stored: dict[int, tuple[int, Quantization]] = {}
    conflicts, kept = [], []
    for op, raw in zip(view.ops, graph.operators, strict=True):
        raw.inputs = np.asarray([source.get(t, t) for t in op.inputs], np.int32)
        first = source.get(op.inputs[0], op.inputs[0]) if op.inputs else -1
        if op.name == "QUANTIZE" and _float(view, first):
            stored[op.outputs[0]] = (first, _as_int8(view.tensors[op.outputs[0]]))
        elif op.name == "FAKE_QUANT":
            source[op.outputs[0]] = first
            conflicts += _take_note(model, first, _of_fake_quant(view, op))
        elif op.name == "DEQUANTIZE" and first in stored:
            tensor, noted = stored[first]
            source[op.outputs[0]] = tensor
            conflicts += _take_note(model, tensor, noted)
        elif op.name == "DEQUANTIZE" and view.tensors[first].is_constant and view.tensors[first].dtype in _STORED:
            source[op.outputs[0]] = _to_float_constant(model, view.tensors[first])
        else:
            kept.append(raw)
            continue
    _reconnect(model, source, {t for raw in kept for t in raw.inputs} & set(stored))
    graph.operators = kept
    return conflicts


def _reconnect(model: Any, source: Mapping[int, int], integers: set[int]) -> None:
    graph = model.subgraphs[0]
    if integers:
        name = flatbuffer.text(graph.tensors[min(integers)].name)
        raise QuantizationError(
            f"The model is quantized in part: an operator reads the integers of {name!r}.",
            hint="Export it with fake quantization (quantize and dequantize around every tensor), or in float.",
        )
    taken = set()
    for old, new in source.items():
        # The name of an output is the contract's.
        if old in list(graph.outputs) and new not in list(graph.inputs) and new not in taken:
            taken.add(new)
            inner, outer = graph.tensors[new], graph.tensors[old]
            inner.name, outer.name = outer.name, inner.name
    graph.outputs = np.asarray([source.get(int(t), int(t)) for t in graph.outputs], np.int32)
    for entry in (e for s in model.signatureDefs or () for e in s.outputs or ()):
        entry.tensorIndex = source.get(int(entry.tensorIndex), int(entry.tensorIndex))


def _as_int8(tensor: flatbuffer.Tensor) -> Quantization:
    if tensor.dtype not in _STORED or tensor.quantization is None:
        raise QuantizationError(
            f"The tensor {tensor.name!r} was trained for {tensor.dtype}; the targets take scales learned for 8 bits.",
            hint="Train it with 8-bit fake quantization, or give the float model.",
        )
    q, shift = tensor.quantization, _STORED[tensor.dtype]
    return Quantization(scale=q.scale, zero_point=tuple(z - shift for z in q.zero_point), axis=q.axis)


def _of_fake_quant(view: flatbuffer.Graph, op: flatbuffer.Op) -> Quantization:
    """Return what a FAKE_QUANT operator says, its range moved so that 0 is exact, as its kernel does."""
    bits = int(op.option("numBits", 8))
    name = view.tensors[op.inputs[0]].name
    low, high = float(op.option("min", 0.0)), float(op.option("max", 0.0))
    if bits != 8 or not low < high:
        raise QuantizationError(
            f"The tensor {name!r} was trained for {bits} bits in [{low:g}, {high:g}]; accepted: 8 bits.",
            hint="Train it with 8-bit fake quantization, or give the float model.",
        )
    least = 1 if op.option("narrowRange", default=False) else 0
    scale = np.float32((high - low) / (255 - least))
    zero = int(np.clip(round(least - low / float(scale)), least, 255))
    return Quantization(scale=(float(scale),), zero_point=(zero - 128,))


def _take_note(model: Any, tensor: int, noted: Quantization) -> list[str]:
    raw = model.subgraphs[0].tensors[tensor]
    before, values = _note(raw), flatbuffer.constant(model, raw)
    if before is not None:
        return [] if _alike(before, noted) else [flatbuffer.text(raw.name)]
    if values is not None:
        edit.set_constant(model, raw, affine.dequantize(affine.quantize(values, noted, "int8"), noted))
    _write_note(raw, noted)
    return []


def _alike(a: Quantization, b: Quantization) -> bool:
    return len(a.scale) == len(b.scale) and a.zero_point == b.zero_point and bool(np.allclose(a.scale, b.scale, _SAME))


def _to_float_constant(model: Any, tensor: flatbuffer.Tensor) -> int:
    raw = model.subgraphs[0].tensors[tensor.index]
    values = flatbuffer.constant(model, raw)
    if values is not None and values.dtype != np.float32 and tensor.quantization is not None:
        edit.set_constant(model, raw, affine.dequantize(values, tensor.quantization))
        _write_note(raw, _as_int8(tensor))
    return tensor.index


def _fold_mover(model: Any) -> bool:
    """Replace a noted constant that is only transposed or reshaped by the result, its channel axis moved along."""
    graph, view = model.subgraphs[0], flatbuffer.graph(model)
    for op in view.ops:
        values = view.data(op.inputs[0]) if op.name in _MOVERS else None
        noted = _note(graph.tensors[op.inputs[0]]) if values is not None else None
        if values is None or noted is None:
            continue
        moved = _moved(view, op, values)
        axis = _moved_axis(view, op, values.shape, moved.shape, noted)
        if noted.axis is not None and axis is None:
            continue
        result = graph.tensors[op.outputs[0]]
        edit.set_constant(model, result, moved)
        _write_note(result, Quantization(scale=noted.scale, zero_point=noted.zero_point, axis=axis))
        del graph.operators[op.index]
        return True
    return False


def _moved(view: flatbuffer.Graph, op: flatbuffer.Op, values: Any) -> Any:
    if op.name == "TRANSPOSE":
        order = view.data(op.inputs[1])
        return np.ascontiguousarray(np.transpose(values, None if order is None else order.ravel()))
    return values.reshape(view.tensors[op.outputs[0]].shape)


def _moved_axis(
    view: flatbuffer.Graph, op: flatbuffer.Op, before: tuple[int, ...], after: tuple[int, ...], noted: Quantization
) -> int | None:
    if noted.axis is None:
        return None
    if op.name == "TRANSPOSE":
        order = view.data(op.inputs[1])
        return None if order is None else [int(v) for v in order.ravel()].index(noted.axis)
    # The dimension that has as many elements before it, and as many of its own.
    lead = int(np.prod(before[: noted.axis]))
    fits = [i for i, d in enumerate(after) if d == before[noted.axis] and int(np.prod(after[:i])) == lead]
    return fits[0] if fits else None


def _spread(model: Any) -> None:
    """Give both sides of what only moves values one note: rewrites of the graph may drop either."""
    view, tensors = flatbuffer.graph(model), model.subgraphs[0].tensors
    movers = [op for op in view.ops if op.name in _MOVERS and not view.tensors[op.inputs[0]].is_constant]
    for op in (*movers, *reversed(movers)):
        first, second = tensors[op.inputs[0]], tensors[op.outputs[0]]
        a, b = _note(first), _note(second)
        if (a is None) != (b is None):
            _write_note(second if b is None else first, a or b)


# --- in ------------------------------------------------------------------------------------------------------------


def insert(model: Any) -> None:
    """Put pairs around the noted tensors of a stripped main graph: it computes as trained, on any float kernels."""
    graph = model.subgraphs[0]
    renamed: dict[int, int] = {}
    operators: list[Any] = []
    noted = {i: n for i, raw in enumerate(graph.tensors) if (n := _note(raw)) is not None}
    constant = {i for i in noted if flatbuffer.constant(model, graph.tensors[i]) is not None}
    for index in sorted(constant & {int(t) for op in graph.operators for t in op.inputs}):
        _store_constant(model, graph, index, noted[index], operators, renamed)

    def pair(tensors: Any) -> None:
        for tensor in (int(t) for t in tensors):
            if tensor in noted and tensor not in constant:
                stored = _tensor_like(graph, tensor, "learned", "int8")
                graph.tensors[stored].quantization, graph.tensors[tensor].quantization = (
                    graph.tensors[tensor].quantization,
                    None,
                )
                result = _tensor_like(graph, tensor, "fake-quantized", "float32")
                operators.append(_operator(model, "QUANTIZE", tensor, stored))
                operators.append(_operator(model, "DEQUANTIZE", stored, result))
                renamed[tensor] = result

    pair(graph.inputs)
    for op in graph.operators:
        op.inputs = np.asarray([renamed.get(int(t), int(t)) for t in op.inputs], np.int32)
        operators.append(op)
        pair(op.outputs)
    graph.operators = operators
    _rename_outputs(model, renamed)


def _rename_outputs(model: Any, renamed: Mapping[int, int]) -> None:
    graph = model.subgraphs[0]
    for index in {int(t) for t in graph.outputs} & set(renamed):
        inner, outer = graph.tensors[index], graph.tensors[renamed[index]]
        if index not in {int(t) for t in graph.inputs}:
            inner.name, outer.name = outer.name, inner.name
    graph.outputs = np.asarray([renamed.get(int(t), int(t)) for t in graph.outputs], np.int32)
    for entry in (e for s in model.signatureDefs or () for e in s.outputs or ()):
        entry.tensorIndex = renamed.get(int(entry.tensorIndex), int(entry.tensorIndex))


def _store_constant(
    model: Any, graph: Any, index: int, noted: Quantization, operators: list[Any], renamed: dict[int, int]
) -> None:
    raw = graph.tensors[index]
    values = flatbuffer.constant(model, raw)
    result = _tensor_like(graph, index, "dequantized", "float32")
    graph.tensors[result].quantization = None
    assert values is not None
    edit.set_constant(model, raw, affine.quantize(values, noted, "int8"))
    operators.append(_operator(model, "DEQUANTIZE", index, result))
    renamed[index] = result


def _tensor_like(graph: Any, tensor: int, suffix: str, dtype: str) -> int:
    made, source = flatbuffer.schema().TensorT(), graph.tensors[tensor]
    made.name, made.buffer = f"{flatbuffer.text(source.name)};{suffix}".encode(), 0
    made.type, made.shape, made.shapeSignature = flatbuffer.dtype_code(dtype), source.shape, source.shapeSignature
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def _operator(model: Any, name: str, source: int, result: int) -> Any:
    op = flatbuffer.schema().OperatorT()
    op.opcodeIndex = edit.code_index(model, name, 1 if name == "QUANTIZE" else 2)
    op.inputs, op.outputs = np.asarray([source], np.int32), np.asarray([result], np.int32)
    return op


# --- into the quantized program --------------------------------------------------------------------------------------


def write(program: bytes, source: bytes, learned: Learned) -> tuple[bytes, tuple[str, ...]]:
    """Return an int8 program with exactly the learned scales, weights and the biases that go with them.

    `source` is the float program that it was made of. Second: the names of tensors that hold another scale, because a
    kernel demands it or ties them to a neighbour.
    """
    model, floats = flatbuffer.load(program), flatbuffer.load(source)
    _snap(model, learned)
    changed = [name for name, got in _activation_scales(model, learned) if not _alike(got, learned.activations[name])]
    graph, view = model.subgraphs[0], flatbuffer.graph(model)
    reals = {t.name: t.index for t in flatbuffer.graph(floats).tensors}
    original = flatbuffer.graph(floats)
    for name in learned.weights:
        values = original.data(reals[name])
        place = [t for t in view.tensors if t.name == name and t.dtype == "int8" and t.is_constant]
        readers = [op for op in view.ops if place and place[0].index in op.inputs]
        if not place or not readers or values is None:
            changed.append(name)
            continue
        if not _write_weights(model, graph.tensors[place[0].index], values, learned.weights[name]):
            changed.append(name)
    _rescale_biases(model, original, reals)
    return flatbuffer.dump(model), tuple(dict.fromkeys(changed))


def _snap(model: Any, learned: Learned) -> None:
    """Set scales that came back from a range to the learned ones they stand for, in neighbours tied to them too."""
    known = np.asarray(sorted({q.scale[0] for q in learned.activations.values()}), np.float32)
    if not known.size:
        return
    for raw in model.subgraphs[0].tensors:
        q = raw.quantization
        if q is None or q.scale is None or len(q.scale) != 1 or flatbuffer.constant(model, raw) is not None:
            continue
        nearest = known[np.abs(known - q.scale[0]).argmin()]
        if abs(nearest - q.scale[0]) <= _SAME * nearest:
            q.scale = np.asarray([nearest], np.float32)


def _activation_scales(model: Any, learned: Learned) -> Iterator[tuple[str, Quantization]]:
    for tensor in flatbuffer.graph(model).tensors:
        name = tensor.name.removesuffix(_INNER)
        if name in learned.activations and tensor.quantization is not None and tensor.dtype in _STORED:
            yield name, _as_int8(tensor)


def _write_weights(model: Any, raw: Any, values: Any, noted: Quantization) -> bool:
    if any(noted.zero_point):
        return False  # int8 kernels take symmetric weights only: those of the quantizer stay
    had = len(raw.quantization.scale)
    if len(noted.scale) > 1 and (had != len(noted.scale) or int(raw.quantization.quantizedDimension) != noted.axis):
        return False
    axis = int(raw.quantization.quantizedDimension)
    stored = affine.quantize(values, noted, "int8")
    buffer = flatbuffer.schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(stored).tobytes(), np.uint8)
    model.buffers.append(buffer)
    raw.buffer = len(model.buffers) - 1
    if len(noted.scale) == 1:  # the kernel's one scale per channel, all the same
        noted = Quantization(scale=noted.scale * had, zero_point=(0,) * had, axis=axis)
    _write_note(raw, noted)
    return True


def _rescale_biases(model: Any, original: flatbuffer.Graph, reals: Mapping[str, int]) -> None:
    """Store int32 biases in steps of input scale * weight scale, as these are now."""
    view, tensors = flatbuffer.graph(model), model.subgraphs[0].tensors
    for op in view.ops:
        at = {"CONV_2D": (0, 1, 2), "DEPTHWISE_CONV_2D": (0, 1, 2), "FULLY_CONNECTED": (0, 1, 2)}.get(op.name)
        at = (2, 1, 3) if op.name == "TRANSPOSE_CONV" else at
        if at is None or len(op.inputs) <= at[2] or op.inputs[at[2]] < 0:
            continue
        read, weights, bias = (view.tensors[op.inputs[i]] for i in at)
        real = original.data(reals[bias.name]) if bias.name in reals else None
        scales = (read.quantization, weights.quantization)
        if real is None or bias.dtype != "int32" or scales[0] is None or scales[1] is None:
            continue
        step = np.float32(scales[0].scale[0]) * np.asarray(scales[1].scale, np.float32)
        limit = np.iinfo(np.int32)
        stored = np.clip(np.rint(real.astype(np.float64) / step.astype(np.float64)), limit.min, limit.max)
        raw = tensors[bias.index]
        edit.set_constant(model, raw, stored.astype(np.int32))
        raw.quantization.scale = np.resize(step, len(raw.quantization.scale)).astype(np.float32)


# What goes with learned scales: neither ranges nor weights change.
_KEEPING = frozenset({"corrected", "split outputs", "ptq", "aeq"})


def check(learned: Learned, recipe: Recipe) -> None:
    """Raise QuantizationError for a refinement that would replace what was learned."""
    replaced = recipe.refinements - _KEEPING or recipe.estimator != "minmax"
    if learned and recipe.scheme == "int8" and replaced:
        raise QuantizationError(
            f"The network was trained with fake quantization, and {recipe.name} would replace its learned scales.",
            hint="Use the recipe int8, which keeps them, or give the float network without fake quantization.",
        )


def findings(learned: Learned, changed: tuple[str, ...], ranges: Ranges | None, recipe: Recipe) -> tuple[Finding, ...]:
    """Return what became of the learned scales, and how many activations were calibrated beside them."""
    if not learned:
        return ()
    total = len(learned.activations) + len(learned.weights)
    if recipe.scheme != "int8":
        return (
            Finding(
                rule="LEARNED_SCALES_DROPPED",
                severity="warning",
                message=f"The {total} scales that the network learned with fake quantization are not used: "
                f"{recipe.name} has no int8 activations.",
                fix="Use the recipe int8, which keeps them.",
            ),
        )
    calibrated = len(set(ranges.limits) - set(learned.activations)) if ranges else 0
    rest = f" {calibrated} activations without one were calibrated." if calibrated else ""
    made = [
        Finding(
            rule="LEARNED_SCALES",
            severity="info",
            message=f"The network was trained with fake quantization: {total - len(changed)} of its {total} learned "
            f"scales ({len(learned.activations)} of activations, {len(learned.weights)} of weights) are kept exactly."
            + rest,
        )
    ]
    for names, why, fix in (
        (changed, "hold another scale than the learned one: their kernels demand it or tie it to a neighbour's", ""),
        (learned.conflicts, "are fake-quantized twice with different scales; the first one counts", ""),
    ):
        if names:
            made.append(
                Finding(
                    rule="LEARNED_SCALES_CHANGED",
                    severity="warning",
                    op=names[0],
                    message=f"{len(names)} tensors {why}: {', '.join(map(repr, names[:_NAMED]))}"
                    + (", …." if len(names) > _NAMED else "."),
                    fix=fix or "Train with the scheme that docs/quantization-aware.md describes for the target.",
                )
            )
    return tuple(made)
