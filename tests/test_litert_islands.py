"""Operators without a quantizer's integer form: written otherwise, closed in int8, divisors kept from 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.calibration import affine
from edge.calibration import recipe as recipes
from edge.signature import Quantization
from edge.targets.litert import flatbuffer, islands, quantize, session
from tests.tflite_builder import GraphBuilder, Samples, f32, i32

INT8 = recipes.named("int8")
SHAPE = (1, 6, 8)


def _positive(count: int = 24) -> Samples:
    rng = np.random.default_rng(2)
    return Samples([{"x": rng.uniform(0.5, 4, SHAPE).astype(np.float32)} for _ in range(count)])


def _program(operator: str) -> bytes:
    """Return x, the operator, and a convolution-like dense layer behind it."""
    b = GraphBuilder()
    x = b.op("MUL", [b.input("x", SHAPE), b.const("two", f32([2.0]))], SHAPE)
    reduces = operator.startswith("REDUCE")
    inputs = [x, b.const("axes", i32([2]))] if reduces else [x]
    options: dict[str, Any] = {"keepDims": True} if reduces else {}
    y = b.op(operator, inputs, (1, 6, 1) if reduces else SHAPE, **options)
    b.output(b.op("ADD", [y, b.const("one", f32([1.0]))], (1, 6, 1) if reduces else SHAPE), "y")
    return b.build()


@pytest.mark.parametrize("operator", ["LOG", "EXP", "SQUARE", "NEG", "REDUCE_MAX", "REDUCE_MIN"])
def test_operators_compute_in_integers(operator: str) -> None:
    """The whole program is int8, runs on plain kernels and is within a few steps of the float program."""
    source = _program(operator)
    made = quantize.quantize(flatbuffer.load(source), INT8, _positive(), full_integer=True)
    assert made.coverage.left_float == ()
    plain = session.LiteRTSession(source, kernels="builtin", threads=1)
    opened = session.LiteRTSession(made.program, kernels="reference", threads=1)
    (spec,) = opened.signature.outputs
    assert spec.quantization is not None
    for sample in _positive():
        wanted: Any = plain.run(sample.inputs)["y"]
        got = session.run_float(opened, sample.inputs)["y"]
        slope = {"EXP": float(np.exp(8)), "SQUARE": 16.0, "LOG": 1.0}.get(operator, 1.0)
        assert np.abs(wanted - got).max() <= 3 * spec.quantization.scale[0] + 8 / 255 * slope


def test_an_island_closes_to_its_table() -> None:
    """DEQUANTIZE, LOG, QUANTIZE and the int8 LOG give the same stored value for every stored input above 0."""
    source, result = Quantization(scale=(0.1,), zero_point=(-128,)), Quantization(scale=(0.05,), zero_point=(20,))
    b = GraphBuilder()
    x = b.input("x", (1, 256), "int8", source)
    y = b.op("LOG", [b.op("DEQUANTIZE", [x], (1, 256))], (1, 256))
    b.output(b.op("QUANTIZE", [y], (1, 256), dtype="int8", quantization=result), "y")
    model = flatbuffer.load(b.build())
    assert islands.close(model) == 1
    assert [op.name for op in flatbuffer.graph(model).ops] == ["LOG"]
    stored = np.arange(-128, 128).astype(np.int8)[None]
    found = session.LiteRTSession(flatbuffer.dump(model), kernels="reference", threads=1).run({"x": stored})["y"]
    with np.errstate(divide="ignore"):
        wanted = affine.quantize(np.log(affine.dequantize(stored, source)), result, "int8")
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_floats_at_the_ends_are_no_islands() -> None:
    """An operator whose result is a float output of the program stays float."""
    b = GraphBuilder()
    x = b.input("x", (1, 8), "int8", Quantization(scale=(0.1,), zero_point=(-128,)))
    b.output(b.op("LOG", [b.op("DEQUANTIZE", [x], (1, 8))], (1, 8)), "y")
    model = flatbuffer.load(b.build())
    assert islands.close(model) == 0


def _division() -> bytes:
    b = GraphBuilder()
    x = b.op("MUL", [b.input("x", SHAPE), b.const("two", f32([2.0]))], SHAPE)
    most = b.op("REDUCE_MAX", [x, b.const("axes", i32([1, 2]))], (1, 1, 1), keepDims=True)
    b.output(b.op("DIV", [x, most], SHAPE), "y")
    return b.build()


def test_a_quiet_input_does_not_stop_a_division() -> None:
    """A divisor that rounds to 0 makes LiteRT refuse the run; held at one step, other results are unchanged."""
    made = quantize.quantize(flatbuffer.load(_division()), INT8, _positive(), full_integer=True)
    assert "MAXIMUM" in [op.name for op in flatbuffer.graph(flatbuffer.load(made.program)).ops]
    assert [f.rule for f in made.findings if f.op == "DIV"] == ["DIVISION_GUARDED"]
    opened: Any = session.LiteRTSession(made.program, kernels="reference", threads=1)
    quiet = session.run_float(opened, {"x": np.zeros(SHAPE, np.float32)})["y"]
    assert np.isfinite(quiet).all()
    loud = np.full(SHAPE, 4.0, np.float32)
    assert np.abs(session.run_float(opened, {"x": loud})["y"] - 1).max() < 0.02
