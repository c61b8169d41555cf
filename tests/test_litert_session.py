"""Running programs: kernels, names, dtypes, state, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.errors import DataError, SourceError, UsageError
from edge.signature import Quantization
from edge.targets.litert import flatbuffer, quantize, session
from edge.targets.litert.runtime import LiteRT
from tests.tflite_builder import GraphBuilder, f32, normal_samples


def _two_in_two_out(*, signature: bool = True) -> bytes:
    builder = GraphBuilder()
    a, b = builder.input("a", (1, 4)), builder.input("b", (1, 4))
    builder.output(builder.op("ADD", [a, b], (1, 4), name="total"), "sum")
    builder.output(builder.op("SUB", [a, b], (1, 4), name="rest"), "difference")
    return builder.build(signature=signature)


A, B = f32([[1, 2, 3, 4]]), f32([[4, 3, 2, 1]])


@pytest.mark.parametrize("kernels", session.KERNEL_SETS)
def test_every_kernel_set_computes(kernels: str) -> None:
    """Inputs go in by name in any order, outputs come out by signature name."""
    opened = session.LiteRTSession(_two_in_two_out(), kernels=kernels, threads=1)
    found = opened.run({"b": B, "a": A})
    assert {name: values.tolist() for name, values in found.items()} == {
        "sum": (A + B).tolist(),
        "difference": (A - B).tolist(),
    }


def test_names_are_the_tensors_without_a_signature() -> None:
    """A file of an old converter is run by its tensor names."""
    opened = session.LiteRTSession(_two_in_two_out(signature=False), kernels="builtin", threads=1)
    assert list(opened.run({"a": A, "b": B})) == ["total", "rest"]


def test_outputs_are_copies() -> None:
    """A second run does not change what the first returned."""
    opened = session.LiteRTSession(_two_in_two_out(), kernels="builtin", threads=1)
    first = opened.run({"a": A, "b": B})["sum"]
    opened.run({"a": A, "b": A})
    assert first.tolist() == (A + B).tolist()


def test_float_helper_quantizes_and_dequantizes() -> None:
    """`run_float` takes and returns real values whatever the program stores."""
    samples = normal_samples({"a": (1, 4), "b": (1, 4)})
    made = quantize.quantize(flatbuffer.load(_two_in_two_out()), recipes.named("int8"), samples)
    opened = session.LiteRTSession(made.program, kernels="reference", threads=1)
    inputs = next(iter(samples)).inputs
    found: Any = session.run_float(opened, inputs)["sum"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, inputs["a"] + inputs["b"], atol=0.06)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": A}, "Input 'b' is missing; given: 'a'"),
        ({"a": A, "b": B, "c": A}, "'c' are no inputs; accepted: 'a', 'b'"),
        ({"a": A, "b": B[:, :3]}, r"Input 'b' got float32\[1, 3\]; accepted: b: float32\[1, 4\]"),
        ({"a": A, "b": B.astype(np.float64)}, r"Input 'b' got float64\[1, 4\]"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict[str, np.ndarray], words: str) -> None:
    """Missing, unknown, misshapen and mistyped inputs give what was received and what is accepted."""
    opened = session.LiteRTSession(_two_in_two_out(), kernels="builtin", threads=1)
    with pytest.raises(DataError, match=words):
        opened.run(inputs)


def test_dynamic_batch_is_resized() -> None:
    """A program with a dynamic dimension takes any size there."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4), dynamic=(-1, 4))
    builder.output(builder.op("TANH", [x], (1, 4)), "y")
    opened = session.LiteRTSession(builder.build(), kernels="builtin", threads=1)
    assert opened.run({"x": np.zeros((3, 4), np.float32)})["y"].shape == (3, 4)


def test_unknown_kernels_are_refused(tmp_path: Path) -> None:
    """The message lists the kernel sets."""
    path = tmp_path / "m.tflite"
    path.write_bytes(_two_in_two_out())
    with pytest.raises(UsageError, match="'gpu' is unknown; accepted: reference, builtin, xnnpack"):
        LiteRT().open(path, kernels="gpu", threads=1)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 40])
def test_damaged_file_is_refused(damage: bytes, tmp_path: Path) -> None:
    """What is no flatbuffer is a SourceError with the path."""
    path = tmp_path / "broken.tflite"
    path.write_bytes(damage)
    with pytest.raises(SourceError, match=r"not a valid LiteRT flatbuffer"):
        LiteRT().open(path, kernels="builtin", threads=1)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that is not there says so."""
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        LiteRT().open(tmp_path / "none.tflite", kernels="builtin", threads=1)


def test_custom_operator_is_refused() -> None:
    """An operator that the interpreter does not have gives LiteRT's own words."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4))
    builder.output(builder.op("CUSTOM", [x], (1, 4), custom="Mine"), "y")
    with pytest.raises(SourceError, match=r"cannot load the program.*Mine"):
        session.LiteRTSession(builder.build(), kernels="builtin", threads=1)


def test_cast_of_indices_is_not_quantized() -> None:
    """Integers that are no quantized values pass with a cast only."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4), "int32")
    builder.output(builder.op("ADD", [x, x], (1, 4), dtype="int32"), "y")
    opened = session.LiteRTSession(builder.build(), kernels="builtin", threads=1)
    assert session.run_float(opened, {"x": np.array([[1, 2, 3, 4]])})["y"].tolist() == [[2, 4, 6, 8]]


def test_signature_carries_quantization() -> None:
    """Scale and zero point of the ends stand in the session's signature."""
    q = Quantization(scale=(0.5,), zero_point=(3,))
    builder = GraphBuilder()
    x = builder.input("x", (1, 4), "int8", q)
    builder.output(builder.op("RESHAPE", [x, builder.const("s", [1, 4])], (1, 4), dtype="int8", quantization=q), "y")
    opened = session.LiteRTSession(builder.build(), kernels="builtin", threads=1)
    assert [t.quantization for t in (*opened.signature.inputs, *opened.signature.outputs)] == [q, q]
