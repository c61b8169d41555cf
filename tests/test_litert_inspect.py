"""What inspection says of programs: order, memory, work, findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.errors import SourceError
from edge.targets.base import Inspection
from edge.targets.litert import flatbuffer, quantize
from edge.targets.litert.inspect import inspect_program
from edge.targets.litert.runtime import LiteRT
from tests.tflite_builder import GraphBuilder, normal_samples


def _inspected(folder: Path, program: bytes) -> Inspection:
    path = folder / "m.tflite"
    path.write_bytes(program)
    return LiteRT().inspect(path, None, {})


def _convolution() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input("x", (1, 8, 8, 3))
    y = builder.conv(x, np.ones((4, 3, 3, 3)), np.zeros(4), name="conv")
    builder.output(builder.op("RELU", [y], (1, 6, 6, 4), name="relu"), "y")
    return builder


def test_operators_stand_in_execution_order(tmp_path: Path) -> None:
    """Index, type and written tensor of each operator."""
    found = _inspected(tmp_path, _convolution().build())
    assert [(o.index, o.op, o.outputs, o.place) for o in found.operators] == [
        (0, "CONV_2D", ("conv",), "cpu"),
        (1, "RELU", ("relu",), "cpu"),
    ]


def test_work_and_parameters_are_counted(tmp_path: Path) -> None:
    """6*6*4 outputs of 3*3*3 products are 3888 multiply-accumulates; 108 + 4 floats are 448 bytes."""
    found = _inspected(tmp_path, _convolution().build())
    assert (found.details["macs"], found.parameter_bytes) == (3888, 448)


@pytest.mark.parametrize(
    ("operator", "shapes", "output", "expected"),
    [
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 4), (1, 3, 3, 4)], (1, 6, 6, 4), 6 * 6 * 4 * 9),
        ("FULLY_CONNECTED", [(1, 16), (10, 16)], (1, 10), 160),
        ("BATCH_MATMUL", [(2, 5, 7), (2, 7, 3)], (2, 5, 3), 2 * 5 * 3 * 7),
    ],
)
def test_work_of_other_operators(
    operator: str, shapes: list[tuple[int, ...]], output: tuple[int, ...], expected: int, tmp_path: Path
) -> None:
    """The products of the other matrix operators."""
    builder = GraphBuilder()
    x = builder.input("x", shapes[0])
    builder.output(builder.op(operator, [x, builder.const("w", np.ones(shapes[1], np.float32))], output), "y")
    assert _inspected(tmp_path, builder.build()).details["macs"] == expected


def test_work_of_a_transposed_convolution(tmp_path: Path) -> None:
    """Every input pixel is multiplied with the whole kernel: 4*4*3 values times 2*2*5."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 4, 3))
    inputs = [builder.const("s", [1, 8, 8, 5]), builder.const("w", np.ones((5, 2, 2, 3), np.float32)), x]
    builder.output(builder.op("TRANSPOSE_CONV", inputs, (1, 8, 8, 5)), "y")
    assert _inspected(tmp_path, builder.build()).details["macs"] == 4 * 4 * 3 * 2 * 2 * 5


def test_arena_reuses_memory_of_dead_tensors(tmp_path: Path) -> None:
    """In a chain only two tensors live at once: 2 * 400 bytes, whatever its length."""
    builder = GraphBuilder()
    tensor = builder.input("x", (1, 100))
    for _ in range(5):
        tensor = builder.op("TANH", [tensor], (1, 100))
    builder.output(tensor, "y")
    assert _inspected(tmp_path, builder.build()).arena_bytes == 800


def test_arena_keeps_what_is_read_later(tmp_path: Path) -> None:
    """A residual branch keeps its tensor alive beside the two of the chain; sizes are multiples of 16."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 101))
    a = builder.op("TANH", [x], (1, 101))
    b = builder.op("TANH", [a], (1, 101))
    builder.output(builder.op("ADD", [a, builder.op("TANH", [b], (1, 101))], (1, 101)), "y")
    assert _inspected(tmp_path, builder.build()).arena_bytes == 3 * 416


def test_float_program_has_no_integer_findings(tmp_path: Path) -> None:
    """Operators of a float program are not reported as left float."""
    assert _inspected(tmp_path, _convolution().build()).findings == ()


def test_float_operator_in_an_integer_program_is_a_finding(tmp_path: Path) -> None:
    """ELU between int8 layers is named."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    a = builder.fully_connected(x, np.eye(8), np.zeros(8))
    builder.output(builder.fully_connected(builder.op("ELU", [a], (1, 8)), np.eye(8), np.zeros(8)), "y")
    made = quantize.quantize(flatbuffer.load(builder.build()), recipes.named("int8"), normal_samples({"x": (1, 8)}))
    found = _inspected(tmp_path, made.program)
    assert [(f.rule, f.op) for f in found.findings] == [("OPS_LEFT_FLOAT", "ELU"), ("EXTRA_QUANTIZE", None)]
    assert (found.details["integer_operators"], found.details["float_operators"]) == (2, 1)


def test_int16_activations_are_a_finding(tmp_path: Path) -> None:
    """16x8 programs run without XNNPACK, which is said."""
    samples = normal_samples({"x": (1, 8, 8, 3)})
    made = quantize.quantize(flatbuffer.load(_convolution().build()), recipes.named("int8x16"), samples)
    assert [f.rule for f in _inspected(tmp_path, made.program).findings] == ["INT16_SLOW"]


def test_transpose_at_the_ends_is_a_finding(tmp_path: Path) -> None:
    """A channel-first input costs a TRANSPOSE."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 3, 8, 8))
    builder.output(builder.op("TRANSPOSE", [x, builder.const("p", [0, 2, 3, 1])], (1, 8, 8, 3), name="t"), "y")
    assert [f.rule for f in _inspected(tmp_path, builder.build()).findings] == ["TRANSPOSE_AT_ENDS"]


def test_dynamic_and_custom_are_findings(tmp_path: Path) -> None:
    """Dynamic dimensions and custom operators are named, the latter as errors."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4), dynamic=(-1, 4))
    builder.output(builder.op("CUSTOM", [x], (1, 4), custom="Mine"), "y")
    found = _inspected(tmp_path, builder.build())
    assert [(f.rule, f.severity) for f in found.findings] == [("CUSTOM_OP", "error"), ("DYNAMIC_SHAPE", "warning")]
    assert found.operators[0].op == "Mine"


def test_runtime_version_is_read_from_the_file(tmp_path: Path) -> None:
    """The converter's own statement is used; without one the version is unknown."""
    builder = _convolution()
    assert _inspected(tmp_path, builder.build()).details["min_runtime_version"] is None
    schema = flatbuffer.schema()
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(b"2.3.0\0\0\0", np.uint8)
    builder.model.buffers.append(buffer)
    entry.name, entry.buffer = b"min_runtime_version", len(builder.model.buffers) - 1
    builder.model.metadata = [entry]
    assert _inspected(tmp_path, builder.build()).details["min_runtime_version"] == "2.3.0"


def test_not_a_program_is_refused(tmp_path: Path) -> None:
    """A text file is no program."""
    path = tmp_path / "notes.tflite"
    path.write_text("these are notes, not a model")
    with pytest.raises(SourceError, match="not a valid LiteRT flatbuffer"):
        inspect_program(path)
