"""Facts about the rewrite into the dialect of the frozen Edge TPU compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.errors import QuantizationError
from edge.signature import Quantization
from edge.targets.edgetpu import normalize, placement
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph
from tests.tflite_builder import GraphBuilder, i32

Q = Quantization(scale=(0.05,), zero_point=(3,))
RNG = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    """Return int8 weights."""
    return RNG.integers(-100, 100, shape).astype(np.int8)


def per_channel(count: int) -> Quantization:
    """Scales that differ by channel on axis 0."""
    return Quantization(scale=tuple(0.004 + 0.001 * i for i in range(count)), zero_point=(0,) * count, axis=0)


def bias(count: int, q: Quantization) -> tuple[np.ndarray, Quantization]:
    """Return an int32 bias with the scales of input times weights."""
    scale = tuple(Q.scale[0] * s for s in q.scale)
    made = Quantization(scale=scale, zero_point=(0,) * len(scale), axis=0 if len(scale) > 1 else None)
    return RNG.integers(-500, 500, count).astype(np.int32), made


def with_options(builder: GraphBuilder, table: str, outputs: list[int] | None = None, **fields: Any) -> None:
    """Give the last operator an options table, and several outputs."""
    made = builder.graph.operators[-1]
    module = flatbuffer.schema()
    made.builtinOptionsType = getattr(module.BuiltinOptions, table)
    made.builtinOptions = getattr(module, f"{table}T")()
    for name, value in fields.items():
        setattr(made.builtinOptions, name, value)
    if outputs:
        made.outputs = np.asarray(outputs, np.int32)


def grouped(depth: int, outputs: int, filter_depth: int, version: int = 6) -> bytes:
    """A grouped CONV_2D, as newer exporters write depthwise convolutions."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 6, 6, depth), "int8", Q)
    q = per_channel(outputs)
    values, bias_q = bias(outputs, q)
    inputs = [x, builder.const("w", weights(outputs, 3, 3, filter_depth), q), builder.const("b", values, bias_q)]
    y = builder.op("CONV_2D", inputs, (1, 6, 6, outputs), dtype="int8", quantization=Q, version=version)
    builder.output(y, "y")
    return builder.build()


def split_first_axis() -> bytes:
    """A SPLIT over the first axis, as an unrolled attention has it."""
    builder = GraphBuilder()
    x = builder.input("x", (4, 7, 8), "int8", Q)
    parts = [builder.tensor(f"p{i}", (1, 7, 8), "int8", Q) for i in range(4)]
    builder.op("SPLIT", [builder.const("axis", i32(0)), x], (1, 7, 8), dtype="int8", quantization=Q, version=2)
    with_options(builder, "SplitOptions", parts, numSplits=4)
    for i, part in enumerate(parts):
        builder.output(part, f"y{i}")
    return builder.build()


def unpack() -> bytes:
    """An UNPACK over the last axis."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 5, 2), "int8", Q)
    parts = [builder.tensor(f"p{i}", (1, 5), "int8", Q) for i in range(2)]
    builder.op("UNPACK", [x], (1, 5), dtype="int8", quantization=Q, version=2)
    with_options(builder, "UnpackOptions", parts, num=2, axis=-1)
    for i, part in enumerate(parts):
        builder.output(part, f"y{i}")
    return builder.build()


def expand_dims() -> bytes:
    """EXPAND_DIMS between two RELUs."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8), "int8", Q)
    axis = builder.const("axis", i32(1))
    wide = builder.op("EXPAND_DIMS", [x, axis], (1, 1, 8), dtype="int8", quantization=Q)
    with_options(builder, "ExpandDimsOptions")
    builder.output(builder.op("RELU", [wide], (1, 1, 8), dtype="int8", quantization=Q, version=2), "y")
    return builder.build()


def matmul() -> bytes:
    """BATCH_MATMUL by a constant matrix."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 5, 16), "int8", Q)
    w = builder.const("w", weights(1, 16, 12), Quantization(scale=(0.01,), zero_point=(0,)))
    out = Quantization(scale=(0.2,), zero_point=(-4,))
    builder.output(builder.op("BATCH_MATMUL", [x, w], (1, 5, 12), dtype="int8", quantization=out, version=2), "y")
    return builder.build()


def new_versions() -> bytes:
    """A plain convolution and pooling whose versions are needlessly new."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8, 8, 4), "int8", Q)
    q = per_channel(8)
    values, bias_q = bias(8, q)
    inputs = [x, builder.const("w", weights(8, 3, 3, 4), q), builder.const("b", values, bias_q)]
    y = builder.op("CONV_2D", inputs, (1, 8, 8, 8), dtype="int8", quantization=Q, version=6)
    y = builder.op("MAX_POOL_2D", [y], (1, 4, 4, 8), dtype="int8", quantization=Q, version=3)
    builder.output(y, "y")
    return builder.build()


def dynamic_reshape() -> bytes:
    """A RESHAPE whose shape is computed from the batch: SHAPE, STRIDED_SLICE, PACK."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 6), "int8", Q, dynamic=(-1, 2, 6))
    shape = builder.op("SHAPE", [x], (3,), dtype="int32")
    with_options(builder, "ShapeOptions", outType=flatbuffer.dtype_code("int32"))
    ends = [builder.const(n, i32([v])) for n, v in (("begin", 0), ("end", 1), ("strides", 1))]
    batch = builder.op("STRIDED_SLICE", [shape, *ends], (), dtype="int32")
    with_options(builder, "StridedSliceOptions", shrinkAxisMask=1)
    target = builder.op("PACK", [batch, builder.const("twelve", i32(12))], (2,), dtype="int32")
    with_options(builder, "PackOptions", valuesCount=2)
    y = builder.op("RESHAPE", [x, target], (1, 12), dtype="int8", quantization=Q)
    builder.output(builder.op("RELU", [y], (1, 12), dtype="int8", quantization=Q, version=2), "y")
    return builder.build()


def idle_and_dead() -> bytes:
    """A QUANTIZE that changes nothing and an operator that nobody reads."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8), "int8", Q)
    same = builder.op("QUANTIZE", [x], (1, 8), dtype="int8", quantization=Q)
    builder.op("RELU", [same], (1, 8), name="unread", dtype="int8", quantization=Q, version=2)
    builder.output(builder.op("RELU", [same], (1, 8), dtype="int8", quantization=Q, version=2), "y")
    return builder.build()


def dense(*, channels: bool = False, keep: bool = False, biased: bool = False) -> bytes:
    """FULLY_CONNECTED as newer converters write it."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 3, 8), "int8", Q)
    q = per_channel(4) if channels else Quantization(scale=(0.01,), zero_point=(0,))
    inputs = [x, builder.const("w", weights(4, 8), q)]
    if biased:
        values, bias_q = bias(4, q)
        inputs.append(builder.const("b", values, bias_q))
    shape = (1, 3, 4) if keep else (3, 4)
    builder.output(
        builder.op("FULLY_CONNECTED", inputs, shape, dtype="int8", quantization=Q, version=6, keepNumDims=keep), "y"
    )
    return builder.build()


def golden(program: bytes, count: int = 3) -> list[list[np.ndarray]]:
    """Return random inputs."""
    graph = view(program)
    shapes = [graph.tensors[t].shape for t in graph.inputs]
    return [[RNG.integers(-128, 128, s).astype(np.int8) for s in shapes] for _ in range(count)]


def view(program: bytes) -> Graph:
    """Return the graph of a program."""
    return flatbuffer.graph(flatbuffer.load(program))


@pytest.mark.parametrize(
    ("program", "kind", "operators"),
    [
        (grouped(8, 8, 1), "grouped_to_depthwise", ["DEPTHWISE_CONV_2D"]),
        (grouped(4, 8, 1), "grouped_to_depthwise", ["DEPTHWISE_CONV_2D"]),
        (grouped(8, 6, 4), "grouped_to_convolutions", ["SPLIT", "CONV_2D", "CONV_2D", "CONCATENATION"]),
        (split_first_axis(), "split_to_slices", ["STRIDED_SLICE"] * 4),
        (unpack(), "split_to_slices", ["STRIDED_SLICE", "STRIDED_SLICE", "RESHAPE", "RESHAPE"]),
        (expand_dims(), "to_reshape", ["RESHAPE", "RELU"]),
        (new_versions(), "lower_versions", ["CONV_2D", "MAX_POOL_2D"]),
        (dynamic_reshape(), "fold_constant_shapes", ["RESHAPE", "RELU"]),
        (idle_and_dead(), "drop_idle_quantize", ["RELU"]),
        (dense(), "dense_to_known", ["FULLY_CONNECTED"]),
        (dense(keep=True, biased=True), "dense_to_known", ["FULLY_CONNECTED", "RESHAPE"]),
    ],
)
def test_each_rewrite_keeps_every_bit(program: bytes, kind: str, operators: list[str]) -> None:
    """The rewrite does what it says, and reference and optimized kernels give the same bits before and after."""
    done = normalize.normalize(program, inputs=golden(program))
    assert kind in {change.kind for change in done.changes}
    assert [op.name for op in view(done.program).ops] == operators


@pytest.mark.parametrize(
    "program",
    [grouped(8, 8, 1), split_first_axis(), unpack(), expand_dims(), new_versions(), idle_and_dead()],
)
def test_the_rewritten_program_is_mapped_whole(program: bytes) -> None:
    """What the compiler would have left on the CPU is predicted to be mapped after the rewrite."""
    before = placement.predict(view(program), min_runtime_version=12)
    after = placement.predict(view(normalize.normalize(program).program), min_runtime_version=12)
    assert all(after.mapped)
    assert not all(before.mapped) or len(after.mapped) < len(before.mapped)


def idle(program: bytes) -> list[list[np.ndarray]]:
    """Return inputs at their zero point, on which no rounding can differ."""
    return [[np.full_like(value, Q.zero_point[0]) for value in golden(program)[0]]]


@pytest.mark.parametrize(
    ("program", "kind", "operators"),
    [
        (matmul(), "matmul_to_fully_connected", ["FULLY_CONNECTED", "RESHAPE"]),
        (dense(channels=True), "per_channel_dense", ["RESHAPE", "CONV_2D", "RESHAPE"]),
        (dense(channels=True, keep=True, biased=True), "per_channel_dense", ["RESHAPE", "CONV_2D", "RESHAPE"]),
    ],
)
def test_a_tentative_rewrite_needs_golden_vectors(program: bytes, kind: str, operators: list[str]) -> None:
    """Rewrites that could round differently are made where golden vectors show equal bits, and not without them."""
    done = normalize.normalize(program, inputs=idle(program))
    assert [op.name for op in view(done.program).ops] == operators
    assert kind in {change.kind for change in done.changes}
    assert kind not in {change.kind for change in normalize.normalize(program).changes}


def test_a_tentative_rewrite_that_differs_is_left_out() -> None:
    """BATCH_MATMUL stays where FULLY_CONNECTED rounds one value differently; the rest of the rewrite goes on."""
    program = matmul()
    done = normalize.normalize(program, inputs=golden(program, 200))
    assert [op.name for op in view(done.program).ops] == ["BATCH_MATMUL"]


def test_versions_are_lowered_to_what_is_used() -> None:
    """A plain int8 CONV_2D becomes version 3, a pooling version 2, and the list names both numbers."""
    done = normalize.normalize(new_versions())
    assert {op.name: op.version for op in view(done.program).ops} == {"CONV_2D": 3, "MAX_POOL_2D": 2}
    assert ("CONV_2D version 6", "version 3") in {(c.before, c.after) for c in done.changes}


def test_a_version_that_is_needed_stays() -> None:
    """A RESIZE_NEAREST_NEIGHBOR with half-pixel centres needs version 3 and is not lowered below it."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 4, 2), "int8", Q)
    size = builder.const("size", i32([8, 8]))
    y = builder.op("RESIZE_NEAREST_NEIGHBOR", [x, size], (1, 8, 8, 2), dtype="int8", quantization=Q, version=4)
    with_options(builder, "ResizeNearestNeighborOptions", halfPixelCenters=True)
    builder.output(y, "y")
    assert view(normalize.normalize(builder.build()).program).ops[0].version == 3


def test_a_version_that_the_compiler_knows_is_left() -> None:
    """CONV_2D version 3 on uint8 needs only version 1 but is read by the compiler: nothing is changed."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 4, 2), "uint8", Q)
    w = builder.const("w", np.ones((3, 1, 1, 2), np.uint8), Q)
    builder.output(builder.op("CONV_2D", [x, w], (1, 4, 4, 3), dtype="uint8", quantization=Q, version=3), "y")
    assert normalize.normalize(builder.build()).changes == ()


def test_per_channel_scales_move_with_the_channels() -> None:
    """The depthwise filter keeps its scales, now on axis 3."""
    graph = view(normalize.normalize(grouped(8, 8, 1)).program)
    quantization = graph.tensors[graph.ops[0].inputs[1]].quantization
    assert quantization is not None
    assert (quantization.axis, len(quantization.scale)) == (3, 8)


def test_dynamic_batch_is_fixed_to_one() -> None:
    """No tensor has a dynamic dimension afterwards, and the change is listed with both shapes."""
    done = normalize.normalize(dynamic_reshape())
    assert all(-1 not in t.signature_shape for t in view(done.program).tensors)
    change = next(c for c in done.changes if c.kind == "fix_batch")
    assert (change.op, change.before, change.after) == ("x", "[-1, 2, 6]", "[1, 2, 6]")


def test_unused_tensors_and_codes_are_removed() -> None:
    """After the rewrite every tensor and operator code is named by something."""
    model = flatbuffer.load(normalize.normalize(dynamic_reshape()).program)
    graph = flatbuffer.graph(model)
    named = {*graph.inputs, *graph.outputs} | {t for op in graph.ops for t in (*op.inputs, *op.outputs)}
    assert named == set(range(len(graph.tensors)))
    assert len(model.operatorCodes) == 2


def test_a_program_in_the_dialect_is_returned_as_it_is() -> None:
    """Nothing to do gives the same bytes and no change; so a second run changes nothing."""
    once = normalize.normalize(grouped(8, 8, 1)).program
    twice = normalize.normalize(once)
    assert (twice.program, twice.changes) == (once, ())


def test_signature_survives() -> None:
    """Input and output names are those of before."""
    before, after = flatbuffer.load(unpack()), flatbuffer.load(normalize.normalize(unpack()).program)
    names = [[flatbuffer.text(o.name) for o in model.signatureDefs[0].outputs] for model in (before, after)]
    assert names[0] == names[1]


def test_a_difference_is_refused() -> None:
    """Two programs with different weights are told apart, by output name, count and size of the difference."""
    program = grouped(8, 8, 1, version=3)
    model = flatbuffer.load(program)
    graph = flatbuffer.graph(model)
    buffer = model.buffers[graph.tensors[graph.ops[0].inputs[1]].buffer]
    buffer.data = np.full(len(buffer.data), 5, np.uint8)
    with pytest.raises(QuantizationError, match="of 288 values differ, by up to"):
        normalize.verify_identical(program, flatbuffer.dump(model), golden(program))


def test_wrong_number_of_golden_inputs_is_refused() -> None:
    """Golden inputs must match the program's inputs in number."""
    program = expand_dims()
    with pytest.raises(QuantizationError, match="2 golden inputs for a program with 1"):
        normalize.verify_identical(program, program, [golden(program)[0] * 2])


def test_change_is_json() -> None:
    """A change goes into the manifest as four strings."""
    change = normalize.normalize(expand_dims()).changes[0]
    assert set(change.to_json()) == {"kind", "op", "before", "after"}
