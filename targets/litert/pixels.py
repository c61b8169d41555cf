"""Inputs of raw pixels in an int8 program: uint8 at the ends, and the arithmetic before the first layer in integers.

A float program that takes uint8 begins with CAST, perhaps followed by steps that multiply and add constants (a
network's own rescaling, or folded preprocessing): x = a * u + b, u from 0 to 255, a and b one number or one per
channel. In the int8 program u is a tensor of scale 1 whose uint8 values are the pixels themselves, and the steps
become, in this order:

1. `input-quantization`, where a > 0 and -b / a is a whole number z from 0 to 255: x gets scale a and zero point z, so
   that its stored value is the pixel. No operator is left; what follows is the same as without.
2. `weights`, where a convolution is x's only reader and pads with nothing but zeros of x that are zeros of u: its
   weights are multiplied by a and its bias grows by the sum of weights * b. Exact in real arithmetic, and pixels are
   not rounded.
3. `convolution` of 1 x 1, depthwise: one int8 weight of 127 per channel with the scale a / 127, and b as its int32
   bias. x gets the range that it has in the program without, so that what follows has the same bytes.
4. `operators`, for what is no image of rank 4: MUL and ADD as they stand.

Worked number of 1: a 1/127.5, b -1 -> scale 0.00784, but z = 127.5 is not whole: 3. a 1/128, b -1 -> z = 128: 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.calibration import affine
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.findings import Finding
from edge.signature import Quantization
from edge.targets.litert import contract, edit, flatbuffer, session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Form = Literal["input-quantization", "weights", "convolution", "operators", "none"]
_LEVELS = 256
_WHOLE = 1e-3  # steps: what single precision makes of a whole zero point
_OFF = 0.25  # steps: an operator that moves no stored value further than this is the identity
_STEPS = {"MUL", "ADD", "SUB", "DIV"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """One input of raw pixels, `name` in the signature and the tensor `source` in the graph.

    `tensor` is what the network reads first, `values` its float32 value of each pixel.
    `values` is [256, 1 or channels], computed as the float program computes it. `form` says what became of the steps.
    """

    name: str
    source: str
    tensor: str
    values: Array
    form: Form

    @property
    def limits(self) -> tuple[float, float]:
        """The interval that all pixels span."""
        return float(self.values.min()), float(self.values.max())


# --- before quantizing ---------------------------------------------------------------------------------------------


def take(model: Any) -> tuple[Pixels, ...]:
    """Edit a float `ModelT` in place: its uint8 inputs that only CAST reads become float32, their steps one operator.

    Returns what was found; the inputs' values are the pixels as before.
    """
    if len(model.subgraphs) > 1:
        return ()
    found = []
    for name, tensor in contract.contract_of(model).inputs.items():
        if _drop_cast(model, tensor):
            found.append(_settle(model, name, tensor))
    return tuple(found)


def _drop_cast(model: Any, tensor: int) -> bool:
    graph, view = model.subgraphs[0], flatbuffer.graph(model)
    readers = [view.ops[i] for i in view.consumers().get(tensor, [])]
    plain = bool(readers) and all(op.name == "CAST" and _free(view, op.outputs[0]) for op in readers)
    if view.tensors[tensor].dtype != "uint8" or view.tensors[tensor].quantization or tensor in view.outputs:
        return False
    if not plain or any(view.tensors[op.outputs[0]].dtype != "float32" for op in readers):
        return False
    graph.tensors[tensor].type = flatbuffer.dtype_code("float32")
    casts = {op.outputs[0] for op in readers}
    dropped = {op.index for op in readers}
    graph.operators = [op for i, op in enumerate(graph.operators) if i not in dropped]
    for op in graph.operators:
        op.inputs = np.array([tensor if int(t) in casts else int(t) for t in op.inputs], np.int32)
    return True


def _free(view: flatbuffer.Graph, tensor: int) -> bool:
    return tensor not in view.outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chain:
    """The steps after an input: operators, the tensor behind them, a and b (float64), and the float32 table."""

    operators: tuple[int, ...]
    end: int
    a: Array
    b: Array
    values: Array


def _chain(view: flatbuffer.Graph, tensor: int) -> _Chain:
    """Follow the steps with constants while each is the only reader of the one before."""
    consumers, shape = view.consumers(), view.tensors[tensor].shape
    channels = shape[-1] if shape else 1
    a, b = np.ones(1), np.zeros(1)
    values: Array = np.arange(_LEVELS, dtype=np.float32)[:, None]
    operators: list[int] = []
    end = tensor
    while (step := _step(view, consumers, end, shape)) is not None:
        op, c, first = step
        if c.size not in (1, channels):
            break
        match op.name:
            case "MUL":
                a, b, values = a * c, b * c, values * c.astype(np.float32)
            case "DIV":
                a, b, values = a / c, b / c, values / c.astype(np.float32)
            case "ADD":
                b, values = b + c, values + c.astype(np.float32)
            case _ if first:
                b, values = b - c, values - c.astype(np.float32)
            case _:
                a, b, values = -a, c - b, c.astype(np.float32) - values
        operators.append(op.index)
        end = op.outputs[0]
    a, b = np.broadcast_arrays(a, b)
    return _Chain(operators=tuple(operators), end=end, a=a.copy(), b=b.copy(), values=values)


def _step(
    view: flatbuffer.Graph, consumers: Mapping[int, list[int]], tensor: int, shape: tuple[int, ...]
) -> tuple[flatbuffer.Op, Array, bool] | None:
    """Return the step that alone reads a tensor, its constant [1 or channels], and whether the tensor comes first."""
    readers = consumers.get(tensor, [])
    if len(readers) != 1 or tensor in view.outputs:
        return None
    op = view.ops[readers[0]]
    if op.name not in _STEPS or op.option("fusedActivationFunction", 0) or view.tensors[op.outputs[0]].shape != shape:
        return None
    first = op.inputs[0] == tensor
    value = view.data(op.inputs[1 if first else 0])
    if value is None or value.dtype != np.float32 or (op.name == "DIV" and (not first or not value.all())):
        return None
    if value.size != 1 and (value.shape[-1] != value.size or value.ndim > len(shape)):
        return None
    return op, value.astype(np.float64).ravel(), first


def _settle(model: Any, name: str, tensor: int) -> Pixels:
    view = flatbuffer.graph(model)
    chain = _chain(view, tensor)
    form = _form(view, chain)
    end = view.tensors[tensor if form == "weights" else chain.end].name
    if form == "weights":
        _into_weights(model, view, chain, tensor)
    elif form != "none" and len(view.tensors[tensor].shape) == 4:
        _as_convolution(model, view, chain, tensor)
    values = np.arange(_LEVELS, dtype=np.float32)[:, None] if form == "weights" else chain.values
    return Pixels(name=name, source=view.tensors[tensor].name, tensor=end, values=values, form=form)


def _form(view: flatbuffer.Graph, chain: _Chain) -> Form:
    if not chain.operators:
        return "none"
    if _is_quantization(chain):
        return "input-quantization"
    if _weights_reader(view, chain) is not None:
        return "weights"
    return "convolution" if len(view.tensors[chain.end].shape) == 4 else "operators"


def _is_quantization(chain: _Chain) -> bool:
    a, b = chain.a, chain.b
    if np.unique(a).size != 1 or np.unique(b).size != 1 or a.flat[0] <= 0:
        return False
    zero = -b.flat[0] / a.flat[0]
    return bool(abs(zero - round(zero)) < _WHOLE and 0 <= round(zero) < _LEVELS)


def _weights_reader(view: flatbuffer.Graph, chain: _Chain) -> flatbuffer.Op | None:
    """Return the convolution that can take the steps in, None where there is none."""
    readers = view.consumers().get(chain.end, [])
    if len(readers) != 1 or chain.end in view.outputs:
        return None
    op = view.ops[readers[0]]
    if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.inputs[0] != chain.end:
        return None
    weights = view.data(op.inputs[1])
    bias = op.inputs[2] if len(op.inputs) > 2 else -1
    constant = bias < 0 or view.data(bias) is not None
    if weights is None or weights.dtype != np.float32 or not constant:
        return None
    return op if not chain.b.any() or _unpadded(view, op, weights) else None


def _unpadded(view: flatbuffer.Graph, op: flatbuffer.Op, weights: Array) -> bool:
    if op.option("padding", 0) == flatbuffer.schema().Padding.VALID:
        return True
    shape = view.tensors[op.inputs[0]].shape
    sides = (("strideH", "dilationHFactor", 1), ("strideW", "dilationWFactor", 2))
    for stride_name, dilation_name, axis in sides:
        stride, reach = op.option(stride_name, 1), (weights.shape[axis] - 1) * op.option(dilation_name, 1) + 1
        steps = -(-shape[axis] // stride)
        if (steps - 1) * stride + reach > shape[axis]:
            return False
    return True


def _into_weights(model: Any, view: flatbuffer.Graph, chain: _Chain, tensor: int) -> None:
    op = _weights_reader(view, chain)
    assert op is not None
    graph, weights = model.subgraphs[0], view.data(op.inputs[1])
    assert weights is not None
    channels = view.tensors[tensor].shape[-1]
    a, b = (np.broadcast_to(v, (channels,)) for v in (chain.a, chain.b))
    if op.name == "DEPTHWISE_CONV_2D":
        many = weights.shape[3] // channels
        a, b = np.repeat(a, many), np.repeat(b, many)
        added = (weights.astype(np.float64) * b).sum(axis=(0, 1, 2))
    else:
        added = (weights.astype(np.float64) * b).sum(axis=(1, 2, 3))
    before = view.data(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
    bias = added if before is None else added + before
    label = view.tensors[op.outputs[0]].name
    raw = graph.operators[op.index]
    raw.inputs = np.array(
        [
            tensor,
            edit.add_constant(model, graph, f"{label}/folded_weights", (weights * a).astype(np.float32)),
            edit.add_constant(model, graph, f"{label}/folded_bias", bias.astype(np.float32)),
        ],
        np.int32,
    )
    _drop(graph, chain.operators)


def _as_convolution(model: Any, view: flatbuffer.Graph, chain: _Chain, tensor: int) -> None:
    """Write the steps as one convolution of 1 x 1, which gives the tensor that the last step gave."""
    graph, schema = model.subgraphs[0], flatbuffer.schema()
    channels = view.tensors[tensor].shape[-1]
    a, b = (np.broadcast_to(v, (channels,)).astype(np.float32) for v in (chain.a, chain.b))
    name = view.tensors[chain.end].name
    weights, bias = a.reshape(1, 1, 1, -1), b.copy()
    kind = "CONV_2D" if channels == 1 else "DEPTHWISE_CONV_2D"
    options = schema.Conv2DOptionsT() if channels == 1 else schema.DepthwiseConv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.VALID, 1, 1
    options.dilationHFactor = options.dilationWFactor = 1
    if channels > 1:
        options.depthMultiplier = 1
    made = schema.OperatorT()
    made.opcodeIndex = edit.code_index(model, kind)
    made.builtinOptions = options
    kinds = schema.BuiltinOptions
    made.builtinOptionsType = kinds.Conv2DOptions if channels == 1 else kinds.DepthwiseConv2DOptions
    made.inputs = np.array(
        [
            tensor,
            edit.add_constant(model, graph, f"{name}/scale", np.ascontiguousarray(weights)),
            edit.add_constant(model, graph, f"{name}/shift", bias),
        ],
        np.int32,
    )
    made.outputs = np.array([chain.end], np.int32)
    _drop(graph, chain.operators)
    graph.operators = [made, *graph.operators]


def _drop(graph: Any, operators: Iterable[int]) -> None:
    dropped = set(operators)
    graph.operators = [op for i, op in enumerate(graph.operators) if i not in dropped]


# --- ranges and ends -----------------------------------------------------------------------------------------------


def hold(pixels: Iterable[Pixels], ranges: Ranges) -> Ranges:
    """Return the ranges with those of pixels (0 to 255), and of tensors whose stored value shall be the pixel."""
    limits = dict(ranges.limits)
    for p in pixels:
        limits[p.source] = (0.0, float(_LEVELS - 1))
        if p.form == "input-quantization":
            limits[p.tensor] = p.limits
    return replace(ranges, limits=limits)


def recipe_for(pixels: Iterable[Pixels], recipe: Recipe) -> Recipe:
    """Return the recipe whose inputs are uint8 where a program takes pixels; its outputs stay as they were."""
    if not list(pixels):
        return recipe
    return replace(recipe, io="uint8", output_io=recipe.output_io or recipe.io)


# --- after quantizing ----------------------------------------------------------------------------------------------


def drop_identities(model: Any, pixels: Iterable[Pixels]) -> None:
    """Remove, in a quantized `ModelT`, the steps between pixels and tensors that store the pixel; in place."""
    for p in pixels:
        if p.form == "input-quantization":
            _drop_identity(model, p)


def _drop_identity(model: Any, p: Pixels) -> None:
    graph, view = model.subgraphs[0], flatbuffer.graph(model)
    start = contract.contract_of(model).inputs.get(p.name, -1)
    steps: list[int] = []
    at, stored = start, start
    # QUANTIZE from uint8 to int8 stays; what stands between it and the named tensor goes.
    while view.tensors[at].name != p.tensor:
        readers = view.consumers().get(at, [])
        if len(readers) != 1:
            return
        op = view.ops[readers[0]]
        at = op.outputs[0]
        if op.name == "QUANTIZE" and not steps and view.tensors[at].name != p.tensor:
            stored = at
            continue
        steps.append(op.index)
    made = view.tensors[at].quantization
    if not steps or made is None or view.tensors[at].dtype != "int8" or not _is_identity(p.values, made):
        return
    for op in graph.operators:
        op.inputs = np.array([stored if int(t) == at else int(t) for t in op.inputs], np.int32)
    _drop(graph, steps)
    for index, shift in ((stored, 0), (start, 128)):
        quantization = graph.tensors[index].quantization
        quantization.scale = np.array(made.scale, np.float32)
        quantization.zeroPoint = np.array([made.zero_point[0] + shift], np.int64)
    edit.prune(model)


def _is_identity(values: Array, made: Quantization) -> bool:
    exact = values.astype(np.float64)[:, 0] / made.scale[0] + made.zero_point[0]
    return bool(np.abs(exact - (np.arange(_LEVELS) - 128)).max() < _OFF)


def check(program: bytes, pixels: Iterable[Pixels]) -> dict[str, dict[str, Any]]:
    """Return per input what became of its steps and how far from the app's arithmetic the program then is, in steps.

    All 256 values of every channel are put through the program itself; what is compared is the stored value of the
    first tensor that the network reads with round(x / scale) + zero_point of the float32 value x. 0 steps means that
    the program gives bit for bit what the one without gives that has this scale. None: there is no such tensor, because
    the weights took the steps in.
    """
    return {p.name: {"form": p.form, "most_steps": _most_steps(program, p)} for p in pixels if p.form != "none"}


_FORMS = {
    "input-quantization": "its arithmetic is the input's scale and zero point",
    "weights": "its arithmetic is in the weights and bias of the first convolution, exact but for their rounding",
    "convolution": "its arithmetic is one convolution of 1 x 1",
    "operators": "its arithmetic stays in the operators of the model",
}


def findings(checked: Mapping[str, Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Return what `check` found in words."""
    return tuple(
        Finding(
            rule="PIXEL_INPUT",
            severity="info",
            op=name,
            message=f"{name!r} takes uint8 pixels; {_FORMS[found['form']]}.{_said(found['most_steps'])}",
        )
        for name, found in checked.items()
    )


def _said(steps: int | None) -> str:
    if steps is None:
        return ""
    how = "bit for bit" if steps == 0 else f"to {steps} int8 step(s)"
    return f" All 256 values of each channel give what the app's arithmetic and rounding would, {how} (emulated)."


def _most_steps(program: bytes, p: Pixels) -> int | None:
    model = flatbuffer.load(program)
    view = flatbuffer.graph(model)
    start = contract.contract_of(model).inputs[p.name]
    first = view.tensors[start]
    if p.form == "input-quantization" and first.quantization is not None and first.dtype == "uint8":
        wanted = affine.quantize(p.values, first.quantization, "uint8")[:, 0]
        if not any(t.name == p.tensor for t in view.tensors):
            return int(np.abs(wanted.astype(int) - np.arange(_LEVELS)).max())
    place = next((t for t in view.tensors if t.name == p.tensor and t.quantization is not None), None)
    if p.form == "weights" or place is None or place.quantization is None or place.dtype != "int8":
        return None
    wanted = affine.quantize(p.values, place.quantization, "int8").astype(int)
    return max(
        int(np.abs(found - np.broadcast_to(wanted[raw, np.arange(raw.shape[-1]) % wanted.shape[1]], found.shape)).max())
        for raw, found in _ramps(program, p.name, place.index)
    )


def _ramps(program: bytes, name: str, tensor: int) -> Iterable[tuple[Array, Array]]:
    """Yield pixels [..., channels] and the stored values of a tensor; together they hold each value in each channel."""
    opened = session.LiteRTSession(program, kernels="builtin", threads=1, preserve=True)
    zeros = {t.name: np.zeros([max(d, 1) for d in t.shape], t.dtype) for t in opened.signature.inputs}
    shape = zeros[name].shape
    channels = shape[-1] if len(shape) > 1 else 1
    places = max(1, zeros[name].size // channels)
    for begin in range(0, _LEVELS, places):
        one = (begin + np.arange(places)) % _LEVELS
        raw = np.repeat(one[:, None], channels, axis=1).reshape(shape).astype(np.uint8)
        opened.invoke({**zeros, name: raw})
        yield raw.astype(int).reshape(-1, channels), opened.tensor(tensor).astype(int).reshape(-1, channels)
