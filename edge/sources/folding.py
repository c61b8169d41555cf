"""Preprocessing as part of the program: a uint8 image goes in, and the program does the arithmetic of its contract.

What is folded are the numbers of edge.preprocess step 4: x = (float32(raw) * scale - mean) / std, each step rounded to
float32, so that a float program gives the very bits that it gave before. What places pixels (resize, fit, colour) stays
outside: it is no arithmetic on their values. A quantized program turns the operators into its input's scale and zero
point, its first convolution's weights, or a convolution of 1 x 1: see edge.targets.litert.pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.errors import ConfigError, ConversionError
from edge.findings import Finding
from edge.signature import Preprocess, Signature, TensorSpec
from edge.sources.base import OpenDimension
from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# What the program takes: `uint8` pixels; pixels as `float32`, where a runtime has no bytes; or (`image`) such floats
# that Core ML makes of an image by itself.
Kind = Literal["uint8", "float32", "image"]
_TOLERANCE = 1e-5  # of the largest output; the operators are the same, the kernels' order of sums may not be
_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One input with the steps that become operators: `(operator, constant)` in order, constants broadcast as they are.

    Operators are MUL, SUB and DIV; steps that change nothing are left out.
    """

    name: str
    dtype: str
    steps: tuple[tuple[str, Array], ...]


def folds_of(signature: Signature, kind: Kind) -> tuple[Fold, ...]:
    """Return what can be folded: the float32 inputs with a scale, mean or std.

    `image` leaves those out whose arithmetic Core ML's image inputs do themselves (one std for all channels). Raises
    ConfigError where nothing is declared that could be folded.
    """
    declared = [(t, signature.preprocess_of(t.name)) for t in signature.inputs]
    arithmetic = [(t, pre) for t, pre in declared if t.dtype == "float32" and not pre.is_identity]
    if not arithmetic:
        raise ConfigError(
            "There is no preprocessing to fold: no float input has a scale, mean or std.",
            hint="Declare it, such as --preprocess scale=1/127.5,mean=1, or build without --fold-preprocessing.",
        )
    dtype = "uint8" if kind == "uint8" else "float32"
    return tuple(
        Fold(name=t.name, dtype=dtype, steps=_steps(t, pre))
        for t, pre in arithmetic
        if kind != "image" or len(set(pre.std)) > 1
    )


def _steps(spec: TensorSpec, pre: Preprocess) -> tuple[tuple[str, Array], ...]:
    axis = 1 if spec.layout in ("NCHW", "NCL") else -1
    channels = spec.shape[axis] if spec.shape else 1

    def constant(name: str, values: tuple[float, ...]) -> Array:
        array = np.unique(values) if len(set(values)) == 1 else np.array(values)
        if array.size not in (1, channels):
            raise ConfigError(
                f"{name} has {array.size} values; input {spec.name!r} has {channels} channels: give 1 or {channels}"
            )
        shape = (-1, *[1] * (len(spec.shape) - 2)) if axis == 1 and array.size > 1 else (-1,)
        return array.astype(np.float32).reshape(shape)

    given = (("MUL", "scale", (pre.scale,), 1), ("SUB", "mean", pre.mean, 0), ("DIV", "std", pre.std, 1))
    return tuple((op, constant(name, values)) for op, name, values, neutral in given if set(values) != {neutral})


def folded(signature: Signature, folds: Iterable[Fold]) -> Signature:
    """Return the signature whose folded inputs take raw pixels; how images are resized and coloured stays."""
    found = {f.name: f for f in folds}
    inputs = tuple(replace(t, dtype=found[t.name].dtype) if t.name in found else t for t in signature.inputs)
    pre = {
        name: replace(p, scale=1.0, mean=(0.0,), std=(1.0,)) if name in found else p
        for name, p in signature.preprocess.items()
    }
    return replace(signature, inputs=inputs, preprocess=pre)


def fold_carrier(path: Path, signature: Signature, kind: Kind) -> tuple[Path, Signature, tuple[Fold, ...]]:
    """Write a carrier beside the one at `path` that takes raw pixels; return it with its signature and what was folded.

    Raises ConfigError where there is nothing to fold, ConversionError where torch.export refuses.
    """
    folds = folds_of(signature, kind)
    wanted = folded(signature, folds)
    result = path.with_name(f"folded{path.suffix}")
    if not folds:
        return path, signature, ()
    write: Callable[[Path, Signature, tuple[Fold, ...], Path], None] = (
        _fold_litert if path.suffix == ".tflite" else _fold_exported
    )
    write(path, wanted, folds, result)
    return result, wanted, folds


# --- LiteRT ------------------------------------------------------------------------------------------------------


def _fold_litert(path: Path, signature: Signature, folds: tuple[Fold, ...], result: Path) -> None:  # noqa: ARG001
    model = fb.load(path)
    entries = {fb.text(e.name): e for e in model.signatureDefs[0].inputs}
    for fold in reversed(folds):
        _insert(model, entries[fold.name], fold)
    result.write_bytes(fb.dump(model))


def _insert(model: Any, entry: Any, fold: Fold) -> None:
    """Put CAST and the steps between a new input of the raw dtype and the readers of the old one."""
    graph, schema = model.subgraphs[0], fb.schema()
    old = int(entry.tensorIndex)
    name = fb.text(graph.tensors[old].name)
    graph.tensors[old].name = f"{name}/preprocessed"
    raw = _tensor_like(graph, old, name, "uint8")
    operators = [_operator(model, "CAST", [raw], schema.CastOptionsT(), "CastOptions")]
    operators[0].builtinOptions.inDataType = fb.dtype_code("uint8")
    operators[0].builtinOptions.outDataType = fb.dtype_code("float32")
    for number, (operator, value) in enumerate(fold.steps):
        between = _tensor_like(graph, old, f"{name}/raw_{number}", "float32")
        operators[-1].outputs = np.array([between], np.int32)
        constant = edit.add_constant(model, graph, f"{name}/{operator.lower()}", value)
        title = f"{operator.capitalize()}Options"
        operators.append(_operator(model, operator, [between, constant], getattr(schema, f"{title}T")(), title))
    operators[-1].outputs = np.array([old], np.int32)
    graph.operators = [*operators, *graph.operators]
    graph.inputs = [raw if int(i) == old else int(i) for i in graph.inputs]
    entry.tensorIndex = raw


def _tensor_like(graph: Any, index: int, name: str, dtype: str) -> int:
    tensor = fb.schema().TensorT()
    tensor.name, tensor.type = name, fb.dtype_code(dtype)
    tensor.shape, tensor.shapeSignature = graph.tensors[index].shape, graph.tensors[index].shapeSignature
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, name: str, inputs: list[int], options: Any, title: str) -> Any:
    made = fb.schema().OperatorT()
    made.opcodeIndex = edit.code_index(model, name)
    made.inputs = np.array(inputs, np.int32)
    made.builtinOptions, made.builtinOptionsType = options, getattr(fb.schema().BuiltinOptions, title)
    return made


# --- torch.export ------------------------------------------------------------------------------------------------


def _fold_exported(path: Path, signature: Signature, folds: tuple[Fold, ...], result: Path) -> None:
    import torch

    from edge.sources import exported
    from edge.targets.executorch import carrier

    program, _ = carrier.load(path)
    inner = program.module(check_guards=False)
    found = {f.name: f for f in folds}
    plans = [
        [(op, torch.from_numpy(value.copy())) for op, value in found[t.name].steps] if t.name in found else None
        for t in signature.inputs
    ]
    apply = {"MUL": torch.mul, "SUB": torch.sub, "DIV": torch.div}

    class Folded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            for number, plan in enumerate(plans):
                for step, (_, value) in enumerate(plan or ()):
                    self.register_buffer(f"fold_{number}_{step}", value)

        def forward(self, *tensors: Any) -> Any:
            given = list(tensors)
            for number, plan in enumerate(plans):
                if plan is None:
                    continue
                given[number] = given[number].to(torch.float32)
                for step, (operator, _) in enumerate(plan):
                    given[number] = apply[operator](given[number], getattr(self, f"fold_{number}_{step}"))
            return self.inner(*given)

    module = Folded()
    module.training = False
    values, limits = carrier.user_inputs(program), carrier.limits(program)
    examples = [
        torch.zeros(carrier.example_sizes(v), dtype=getattr(torch, t.dtype))
        for v, t in zip(values, signature.inputs, strict=True)
    ]
    spans = [_bounds(v, limits) for v in values]
    carrier.save(exported.export(module, examples, signature.inputs, spans), signature, result)


def _bounds(value: Any, limits: Mapping[Any, tuple[int, int]]) -> dict[int, OpenDimension]:
    """Return the open dimensions of an exported program's input with the bounds that they were exported with."""
    from edge.targets.executorch import carrier

    found = {}
    for axis in (k for k, size in enumerate(carrier.shape_of(value)) if size == -1):
        least, most = carrier.span_of(value.shape[axis], limits)
        found[axis] = OpenDimension(axis=axis, least=least, most=most)
    return found


def prepared(raw: Mapping[str, Any], folds: Iterable[Fold]) -> dict[str, Any]:
    """Return the inputs of the program without folding, from raw ones, in float32 step by step."""
    result, apply = dict(raw), {"MUL": np.multiply, "SUB": np.subtract, "DIV": np.divide}
    for fold in folds:
        value = np.asarray(raw[fold.name]).astype(np.float32)
        for operator, constant in fold.steps:
            value = apply[operator](value, constant)
        result[fold.name] = value
    return result


# --- verification ------------------------------------------------------------------------------------------------

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def verify(
    before: Run,
    after: Run,
    samples: Iterable[Mapping[str, Any]],
    folds: tuple[Fold, ...],
) -> Iterator[Finding]:
    """Compare the carrier on preprocessed samples with the folded one on the raw `samples`; yield what was found.

    Raises ConversionError where an output differs by more than 1e-5 of its
    largest value.
    """
    worst, count = 0.0, 0
    for raw in itertools.islice(samples, _SAMPLES):
        expected, got = before(prepared(raw, folds)), after(raw)
        count += 1
        for name, value in expected.items():
            worst = max(worst, _apart(np.asarray(value, np.float64), np.asarray(got[name], np.float64)))
    if worst > _TOLERANCE:
        raise ConversionError(
            f"The program with folded preprocessing differs by {worst:.3g} of the largest output from the one without "
            f"({count} samples); accepted: {_TOLERANCE:g}.",
            hint="Build without --fold-preprocessing.",
        )
    equal = "bit for bit" if worst == 0 else f"to {worst:.2g} of the largest output"
    for fold in folds:
        steps = ", ".join(operator for operator, _ in fold.steps)
        yield Finding(
            rule="PREPROCESSING_FOLDED",
            severity="info",
            op=fold.name,
            message=f"{fold.name!r} takes raw pixels as {fold.dtype}: {steps} of its preprocessing are part of the "
            f"program, whose float outputs agree {equal} with the program's without (emulated, {count} samples).",
        )


def _apart(a: Array, b: Array) -> float:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0.0, np.abs(a - b))
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)) / max(largest, 1e-12)
