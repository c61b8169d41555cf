"""The comparison of a converted flatbuffer with its source, and the removal of TRANSPOSE operators."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConversionError
from edge.sources import registry
from edge.sources.interpret import FloatRunner
from edge.sources.transposes import remove_transposes
from edge.sources.verify import compare, verify_carrier
from edge.targets.litert import flatbuffer as fb
from tests.tflite_builder import GraphBuilder


@given(st.floats(1e-3, 1e3), st.floats(0, 1e-6), st.integers(0, 2**32 - 1))
def test_rounding_is_accepted(size: float, relative: float, seed: int) -> None:
    """Differences of a millionth of the largest value are rounding, whatever the output's range."""
    reference = np.random.default_rng(seed).normal(size=(1, 50)) * size
    result = reference + relative * np.abs(reference).max()
    assert compare([{"y": reference}], [{"y": result}])[0].accepted


@given(st.floats(1e-3, 1e3), st.floats(5e-3, 1), st.integers(0, 49))
def test_one_wrong_value_is_refused(size: float, relative: float, place: int) -> None:
    """One of fifty values that is off by 0.5 % of the range is no rounding, also for small outputs."""
    reference = np.linspace(-1, 1, 50)[None] * size
    result = reference.copy()
    result[0, place] += 2 * relative * size
    assert not compare([{"y": reference}], [{"y": result}])[0].accepted


def test_nan_and_infinity_must_stand_in_the_same_places() -> None:
    """A NaN of the source is its own; a NaN that the program adds is an error."""
    reference = np.array([[1.0, np.nan, -np.inf]], np.float32)
    assert compare([{"y": reference}], [{"y": reference.copy()}])[0].accepted
    assert not compare([{"y": reference}], [{"y": np.array([[1.0, 1.0, -np.inf]])}])[0].accepted
    assert not compare([{"y": np.ones((1, 2))}], [{"y": np.array([[1.0, np.nan]])}])[0].accepted


def test_integers_must_be_equal() -> None:
    """Of integer outputs 99.9 % must be equal."""
    reference = np.arange(1000)
    off = reference.copy()
    off[:2] += 1
    assert compare([{"y": reference}], [{"y": reference.copy()}])[0].accepted
    assert not compare([{"y": reference}], [{"y": off}])[0].accepted


def test_another_shape_is_refused() -> None:
    """A baked-in size shows as another shape."""
    with pytest.raises(ConversionError, match=r"shape \[1, 2\] in the program and \[1, 3\]"):
        compare([{"y": np.ones((1, 3))}], [{"y": np.ones((1, 2))}])


def scaled(path: Path, factor: float, *, output: str = "y") -> str:
    """Write y = factor * x with a constant that holds -inf beside it."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2))
    y = builder.op("MUL", [x, builder.const("factor", np.array([factor], np.float32))], (1, 2))
    builder.output(builder.op("MAXIMUM", [y, builder.const("mask", np.array([-np.inf], np.float32))], (1, 2)), output)
    path.write_bytes(builder.build())
    return str(path)


def test_verify_names_the_worst_output(tmp_path: Path) -> None:
    """A carrier that computes something else is refused with the output and the numbers."""
    loaded = registry.load(scaled(tmp_path / "a.tflite", 2.0))
    scaled(tmp_path / "b.tflite", 2.02)
    with pytest.raises(ConversionError, match=r"y: max difference 0\.02 of max 2, SNR 40\.0 dB"):
        verify_carrier(loaded, tmp_path / "b.tflite", [{"x": np.ones((1, 2), np.float32)}])


def test_verify_checks_names_and_reports_infinities(tmp_path: Path) -> None:
    """Other signature names are an error; an infinite constant is a finding."""
    loaded = registry.load(scaled(tmp_path / "a.tflite", 2.0))
    sample = {"x": np.ones((1, 2), np.float32)}
    scaled(tmp_path / "b.tflite", 2.0, output="z")
    with pytest.raises(ConversionError, match="outputs z where the source has x and y"):
        verify_carrier(loaded, tmp_path / "b.tflite", [sample])
    assert [f.rule for f in verify_carrier(loaded, tmp_path / "a.tflite", [sample])] == ["INFINITE_CONSTANT"]
    with pytest.raises(ConversionError, match="no samples"):
        verify_carrier(loaded, tmp_path / "a.tflite", [])


def transpose(builder: GraphBuilder, source: int, order: tuple[int, ...]) -> int:
    """Add a TRANSPOSE."""
    shape = tuple(builder.graph.tensors[source].shape[i] for i in order)
    return builder.op(
        "TRANSPOSE", [source, builder.const(f"p{len(builder.graph.tensors)}", np.array(order, np.int32))], shape
    )


def unchanged(builder: GraphBuilder, shape: tuple[int, ...], transposes: int) -> None:
    """Assert that a graph computes the same without its TRANSPOSE operators and that so many are left."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = builder.build()
    model = fb.load(before)
    remove_transposes(model)
    after = fb.dump(model)
    left = sum(op.name == "TRANSPOSE" for op in fb.graph(fb.load(after)).ops)
    expected: Any
    result: Any
    expected, result = (FloatRunner(p, ["x"], ["y"]).run({"x": x})["y"] for p in (before, after))
    np.testing.assert_allclose(expected, result, rtol=1e-5, atol=1e-5)
    assert transposes == left


@pytest.mark.parametrize("first", list(itertools.permutations(range(1, 4))))
def test_flatten_after_a_transpose_moves_into_the_weights(first: tuple[int, ...]) -> None:
    """transpose, flatten, dense is flatten, dense with permuted columns, for every order of three axes."""
    builder = GraphBuilder()
    y = transpose(builder, builder.input("x", (2, 3, 4, 5)), (0, *first))
    flat = builder.op("RESHAPE", [y, builder.const("shape", np.array([2, 60], np.int32))], (2, 60))
    weights = np.random.default_rng(1).normal(size=(7, 60))
    builder.output(builder.fully_connected(flat, weights), "y")
    unchanged(builder, (2, 3, 4, 5), 0)


def test_flatten_that_mixes_the_batch_is_left() -> None:
    """Where the transposition moves the batch, nothing is rewritten."""
    builder = GraphBuilder()
    y = transpose(builder, builder.input("x", (2, 3, 4, 5)), (1, 0, 2, 3))
    flat = builder.op("RESHAPE", [y, builder.const("shape", np.array([3, 40], np.int32))], (3, 40))
    builder.output(builder.fully_connected(flat, np.random.default_rng(1).normal(size=(7, 40))), "y")
    unchanged(builder, (2, 3, 4, 5), 1)


def test_weights_with_another_reader_are_copied() -> None:
    """Weights that a second layer reads too keep their order there."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 3, 4))
    weights = builder.const("w", np.random.default_rng(1).normal(size=(5, 24)))
    shape = builder.const("shape", np.array([1, 24], np.int32))
    turned = builder.op("RESHAPE", [transpose(builder, x, (0, 3, 1, 2)), shape], (1, 24))
    plain = builder.op("RESHAPE", [x, shape], (1, 24))
    first = builder.op("FULLY_CONNECTED", [turned, weights], (1, 5))
    second = builder.op("FULLY_CONNECTED", [plain, weights], (1, 5))
    builder.output(builder.op("SUB", [first, second], (1, 5)), "y")
    unchanged(builder, (1, 2, 3, 4), 0)


@pytest.mark.parametrize(("axes", "left"), [((2, 3), 0), ((-1, -2), 0), ((1,), 0), ((1, 3), 0), ((0, 2), 1)])
def test_reductions_take_the_transposed_axes(axes: tuple[int, ...], left: int) -> None:
    """A mean over transposed axes is a mean over the axes themselves, where the others keep their order."""
    builder = GraphBuilder()
    y = transpose(builder, builder.input("x", (2, 3, 4, 5)), (0, 3, 1, 2))
    shape = np.zeros((2, 5, 3, 4)).mean(axes).shape
    builder.output(builder.op("MEAN", [y, builder.const("axes", np.array(axes, np.int32))], shape), "y")
    unchanged(builder, (2, 3, 4, 5), left)


def test_inverse_transposes_cancel() -> None:
    """Two transpositions that undo each other go, also where a third reader keeps the first."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 3, 4))
    y = builder.op("ADD", [x, x], (1, 2, 3, 4))
    back = transpose(builder, transpose(builder, y, (0, 3, 1, 2)), (0, 2, 3, 1))
    builder.output(builder.op("ADD", [back, x], (1, 2, 3, 4)), "y")
    unchanged(builder, (1, 2, 3, 4), 0)


def test_transposes_that_join_input_and_output_stay() -> None:
    """An output never becomes an input."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 3, 4))
    builder.output(transpose(builder, transpose(builder, x, (0, 3, 1, 2)), (0, 2, 3, 1)), "y")
    unchanged(builder, (1, 2, 3, 4), 2)
