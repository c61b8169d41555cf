"""LiteRT operators in PyTorch: each gives what LiteRT's kernel gives, in either layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConversionError
from edge.sources import litert_graph, registry
from edge.sources.base import Declaration
from edge.sources.interpret import FloatRunner
from edge.sources.litert_exported import export_flatbuffer, first_difference
from edge.sources.litert_node import CONVERTERS
from edge.targets.litert import flatbuffer as fb
from tests.tflite_builder import GraphBuilder

torch: Any = pytest.importorskip("torch")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

Shape = tuple[int, ...]
RANDOM = np.random.default_rng(0)


def agree(builder: GraphBuilder, *inputs: Any) -> Any:
    """Assert that the module computes what LiteRT computes; return the module."""
    program = builder.build()
    model = fb.load(program)
    graph = fb.graph(model)
    names = [f"o{i}" for i in graph.outputs]
    expected = FloatRunner(program, [f"i{i}" for i in graph.inputs], names, kernels="optimized").run(
        {f"i{i}": v for i, v in zip(graph.inputs, inputs, strict=True)}
    )
    module = litert_graph.build(model)
    with torch.no_grad():
        results = module(*[torch.from_numpy(v) for v in inputs])
    for wanted, found in zip(expected.values(), results, strict=True):
        assert wanted.shape == tuple(found.shape)
        assert str(found.dtype).removeprefix("torch.") == wanted.dtype
        np.testing.assert_allclose(np.asarray(wanted, np.float64), found.numpy(), rtol=2e-5, atol=2e-5)
    return module


def options(table: str, **fields: Any) -> Callable[[Any], None]:
    """Return what sets the options table of the last operator."""

    def apply(builder: GraphBuilder) -> None:
        schema, made = fb.schema(), builder.graph.operators[-1]
        made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
        made.builtinOptions = getattr(schema, f"{table}T")()
        for name, value in fields.items():
            setattr(made.builtinOptions, name, value)

    return apply


def one(
    kind: str,
    inputs: Sequence[Any],
    constants: Sequence[Any],
    shape: Shape,
    set_options: Callable[[Any], None] | None = None,
    *,
    dtype: str = "float32",
    layout: str = "plain",
    order: Sequence[int] | None = None,
) -> Any:
    """Build one operator on inputs, then constants (or by `order`), and compare.

    With `layout` `first` every 4-D input passes a convolution of 1 by 1 before, so that it is channel-first.
    """
    builder = GraphBuilder()
    given = []
    for i, value in enumerate(inputs):
        tensor = builder.input(f"x{i}", value.shape, str(value.dtype))
        if layout == "first" and value.ndim == 4 and value.dtype == np.float32:
            tensor = builder.conv(
                tensor, np.eye(value.shape[3]).reshape(value.shape[3], 1, 1, -1), [0.0] * value.shape[3]
            )
        given.append(tensor)
    given += [builder.const(f"c{i}", value) for i, value in enumerate(constants)]
    given = given if order is None else [given[i] for i in order]
    y = builder.op(kind, given, shape, dtype=dtype)
    if set_options:
        set_options(builder)
    builder.output(y, "y")
    return agree(builder, *inputs)


def floats(*shape: int) -> Any:
    """Return normal numbers."""
    return RANDOM.normal(size=shape).astype(np.float32)


_POSITIVE = ("LOG", "SQRT", "RSQRT")


@pytest.mark.parametrize("layout", ["plain", "first"])
@pytest.mark.parametrize(
    "kind",
    [
        *("ABS", "NEG", "EXP", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "TANH", "RELU", "SQUARE", "LOGISTIC"),
        *("RELU6", "RELU_N1_TO_1", "ELU", "HARD_SWISH", "LOG", "SQRT", "RSQRT", "GELU", "LEAKY_RELU", "SIGN"),
    ],
)
def test_one_value(kind: str, layout: str) -> None:
    """Operators on one value, in either layout."""
    x = floats(1, 3, 4, 5) * 4
    if kind in _POSITIVE:
        x = np.abs(x) + 0.1
    tables = {"GELU": options("GeluOptions", approximate=True), "LEAKY_RELU": options("LeakyReluOptions", alpha=0.2)}
    if kind in _POSITIVE and layout == "first":
        layout = "plain"  # the interpreter's own rounding near 0 would decide
    one(kind, [x], [], x.shape, tables.get(kind), layout=layout)


@pytest.mark.parametrize("layout", ["plain", "first"])
@pytest.mark.parametrize("other", [(1, 3, 4, 5), (5,), (4, 1), (1,), (1, 1, 1, 5)])
@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL", "DIV", "MAXIMUM", "SQUARED_DIFFERENCE", "GREATER"])
def test_two_values_broadcast(kind: str, other: Shape, layout: str) -> None:
    """Operators on two values broadcast constants and inputs of lower rank, in either layout."""
    x, y = floats(1, 3, 4, 5), np.abs(floats(*other)) + 0.5
    table = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions"}.get(kind)
    fused = options(table, fusedActivationFunction=1) if table else None
    dtype = "bool" if kind == "GREATER" else "float32"
    one(kind, [x], [y], x.shape, fused, layout=layout, dtype=dtype)
    if len(other) == 4 or layout == "plain":
        one(kind, [x, y], [], x.shape, fused, layout=layout, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.booleans(),
    st.booleans(), st.integers(0, 2**16),
)  # fmt: skip
def test_convolution_padding(
    height: int, width: int, kernel: int, stride: int, dilation: int, same: bool, depthwise: bool, seed: int
) -> None:
    """Convolutions of every size, stride and dilation have TensorFlow's SAME and VALID padding."""
    dilation = dilation if stride == 1 else 1
    reach = (kernel - 1) * dilation + 1
    if not same and min(height, width) < reach:
        return
    random = np.random.default_rng(seed)
    x = random.normal(size=(1, height, width, 3)).astype(np.float32)
    sizes = [-(-s // stride) if same else (s - reach) // stride + 1 for s in (height, width)]
    common = {
        "padding": 0 if same else 1, "strideH": stride, "strideW": stride,
        "dilationHFactor": dilation, "dilationWFactor": dilation, "fusedActivationFunction": 3,
    }  # fmt: skip
    if depthwise:
        weights, table, extra = random.normal(size=(1, kernel, kernel, 6)), "DepthwiseConv2DOptions", 6
        fields = {**common, "depthMultiplier": 2}
    else:
        weights, table, extra = random.normal(size=(4, kernel, kernel, 3)), "Conv2DOptions", 4
        fields = common
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    one(kind, [x], [weights, random.normal(size=extra)], (1, *sizes, extra), options(table, **fields))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(0, 2**16),
)  # fmt: skip
def test_pooling_padding(
    height: int, width: int, kernel: int, stride: int, same: bool, average: bool, seed: int
) -> None:
    """Pools leave the padding out: a maximum of negative values stays, a mean counts the places inside."""
    if not same and min(height, width) < kernel:
        return
    x = np.random.default_rng(seed).normal(size=(1, height, width, 3)).astype(np.float32) - 5
    sizes = [-(-s // stride) if same else (s - kernel) // stride + 1 for s in (height, width)]
    fields = {"padding": 0 if same else 1, "strideH": stride, "strideW": stride}
    table = options("Pool2DOptions", **fields, filterHeight=kernel, filterWidth=kernel)
    one("AVERAGE_POOL_2D" if average else "MAX_POOL_2D", [x], [], (1, *sizes, 3), table)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "target"),
    [(4, 3, 2, 0, 8), (4, 3, 2, 0, 7), (4, 2, 2, 0, 8), (4, 3, 2, 1, 9), (3, 4, 3, 1, 10), (5, 3, 1, 0, 5),
     (4, 1, 2, 0, 8), (4, 2, 3, 0, 12)],
)  # fmt: skip
def test_transposed_convolution(size: int, kernel: int, stride: int, padding: int, target: int, bias: bool) -> None:
    """Transposed convolutions have the size that the file says, cut in front and behind as TensorFlow does."""
    x = floats(1, size, size, 3)
    shape = (1, target, target, 2)
    constants = [np.array(shape, np.int32), floats(2, kernel, kernel, 3), *([floats(2)] if bias else [])]
    table = options("TransposeConvOptions", padding=padding, strideH=stride, strideW=stride)
    order = [1, 2, 0, *([3] if bias else [])]
    one("TRANSPOSE_CONV", [x], constants, shape, table, order=order)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(1, 15), st.integers(1, 15),
    st.sampled_from([(False, False), (True, False), (False, True)]), st.booleans(),
)  # fmt: skip
def test_resizing(
    height: int, width: int, to_height: int, to_width: int, mode: tuple[bool, bool], nearest: bool
) -> None:
    """Every coordinate mode of bilinear and nearest resizing gives LiteRT's result, up and down."""
    x = np.random.default_rng(height * width).normal(size=(1, height, width, 2)).astype(np.float32)
    table = options(
        "ResizeNearestNeighborOptions" if nearest else "ResizeBilinearOptions",
        alignCorners=mode[0], halfPixelCenters=mode[1],
    )  # fmt: skip
    kind = "RESIZE_NEAREST_NEIGHBOR" if nearest else "RESIZE_BILINEAR"
    one(kind, [x], [np.array([to_height, to_width], np.int32)], (1, to_height, to_width, 2), table)


@pytest.mark.parametrize("layout", ["plain", "first"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [(1, 2), (3,), (1,), (-1, -2), (0, 1, 2, 3), (2,)])
@pytest.mark.parametrize("kind", ["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"])
def test_reductions(kind: str, axes: tuple[int, ...], keep: bool, layout: str) -> None:
    """Reductions over any axes, keeping them or not, in either layout."""
    x = floats(1, 3, 4, 5)
    shape = x.mean(axis=axes, keepdims=keep).shape
    one(kind, [x], [np.array(axes, np.int32)], shape, options("ReducerOptions", keepDims=keep), layout=layout)


@pytest.mark.parametrize("layout", ["plain", "first"])
@pytest.mark.parametrize(
    ("kind", "constants", "shape", "table"),
    [
        ("RESHAPE", [np.array([2, 30], np.int32)], (2, 30), None),
        ("TRANSPOSE", [np.array([0, 3, 1, 2], np.int32)], (1, 5, 3, 4), None),
        ("TRANSPOSE", [np.array([0, 2, 3, 1], np.int32)], (1, 4, 5, 3), None),
        ("TRANSPOSE", [np.array([3, 1, 0, 2], np.int32)], (5, 3, 1, 4), None),
        ("PAD", [np.array([[0, 0], [1, 2], [0, 1], [0, 3]], np.int32)], (1, 6, 5, 8), None),
        ("PADV2", [np.array([[0, 0], [1, 2], [0, 1], [0, 0]], np.int32), np.array([-2.0])], (1, 6, 5, 5), None),
        (
            "MIRROR_PAD",
            [np.array([[0, 0], [2, 1], [3, 2], [0, 0]], np.int32)],
            (1, 6, 9, 5),
            options("MirrorPadOptions", mode=0),
        ),
        (
            "MIRROR_PAD",
            [np.array([[0, 0], [2, 3], [3, 4], [0, 1]], np.int32)],
            (1, 8, 11, 6),
            options("MirrorPadOptions", mode=1),
        ),
        ("SLICE", [np.array([0, 1, 0, 2], np.int32), np.array([1, 2, -1, 3], np.int32)], (1, 2, 4, 3), None),
        (
            "STRIDED_SLICE",
            [np.array(v, np.int32) for v in ([0, 2, -1, 0], [1, 0, 0, 5], [1, -1, -2, 2])],
            (1, 2, 2, 3),
            options("StridedSliceOptions", beginMask=1, endMask=0),
        ),
        (
            "STRIDED_SLICE",
            [np.array(v, np.int32) for v in ([0, 1, 0, 0], [1, 2, 4, 5], [1, 1, 1, 1])],
            (1, 4, 5),
            options("StridedSliceOptions", shrinkAxisMask=2),
        ),
        ("GATHER", [np.array([3, 0, 1, 1], np.int32)], (1, 3, 4, 4), options("GatherOptions", axis=3)),
        ("TILE", [np.array([1, 2, 1, 3], np.int32)], (1, 6, 4, 15), None),
        ("REVERSE_V2", [np.array([2], np.int32)], (1, 3, 4, 5), None),
        ("SOFTMAX", [], (1, 3, 4, 5), options("SoftmaxOptions", beta=0.7)),
        ("LOG_SOFTMAX", [], (1, 3, 4, 5), options("LogSoftmaxOptions")),
        ("L2_NORMALIZATION", [], (1, 3, 4, 5), options("L2NormOptions")),
        (
            "LOCAL_RESPONSE_NORMALIZATION",
            [],
            (1, 3, 4, 5),
            options("LocalResponseNormalizationOptions", radius=2, bias=1.0, alpha=0.1, beta=0.75),
        ),
        ("PRELU", [floats(1, 1, 5)], (1, 3, 4, 5), None),
        ("PRELU", [floats(3, 4, 5)], (1, 3, 4, 5), None),
        ("EXPAND_DIMS", [np.array([0], np.int32)], (1, 1, 3, 4, 5), None),
        ("SPACE_TO_BATCH_ND", [np.array([2, 2], np.int32), np.array([[1, 0], [1, 1]], np.int32)], (4, 2, 3, 5), None),
        ("CUMSUM", [np.array(2, np.int32)], (1, 3, 4, 5), options("CumsumOptions", exclusive=True, reverse=True)),
    ],
)
def test_what_moves_values(kind: str, constants: list[Any], shape: Shape, table: Any, layout: str) -> None:
    """Operators that move, pad, pick and normalize values, in either layout."""
    one(kind, [floats(1, 3, 4, 5)], constants, shape, table, layout=layout)


@pytest.mark.parametrize("layout", ["plain", "first"])
def test_join_and_split(layout: str) -> None:
    """Joining along any axis and splitting give each part."""
    a, b = floats(1, 3, 4, 5), floats(1, 3, 4, 2)
    one("CONCATENATION", [a, b], [], (1, 3, 4, 7), options("ConcatenationOptions", axis=-1), layout=layout)
    one("CONCATENATION", [a, a], [], (1, 6, 4, 5), options("ConcatenationOptions", axis=1), layout=layout)
    one("PACK", [a, a], [], (1, 2, 3, 4, 5), options("PackOptions", axis=1, valuesCount=2), layout=layout)


def several(kind: str, shapes: Sequence[Shape], constants: Sequence[Any], order: Sequence[int], table: Any) -> None:
    """Compare an operator with several outputs."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 3, 4, 6))
    given = [x, *(builder.const(f"c{i}", c) for i, c in enumerate(constants))]
    outputs = [builder.op(kind, [given[i] for i in order], shapes[0])]
    outputs += [builder.tensor(f"more{i}", shape) for i, shape in enumerate(shapes[1:])]
    builder.graph.operators[-1].outputs = np.asarray(outputs, np.int32)
    table(builder)
    for i, tensor in enumerate(outputs):
        builder.output(tensor, f"y{i}")
    agree(builder, floats(1, 3, 4, 6))


def test_several_outputs() -> None:
    """Splits and unpacking give each part."""
    third = [(1, 3, 4, 2)] * 3
    several("SPLIT", third, [np.array(3, np.int32)], [1, 0], options("SplitOptions", numSplits=3))
    sizes, axis = np.array([1, 5], np.int32), np.array(-1, np.int32)
    parts = [(1, 3, 4, 1), (1, 3, 4, 5)]
    several("SPLIT_V", parts, [sizes, axis], [0, 1, 2], options("SplitVOptions", numSplits=2))
    several("UNPACK", [(1, 4, 6)] * 3, [], [0], options("UnpackOptions", num=3, axis=1))


def test_depth_and_space() -> None:
    """Blocks of places become channels and back."""
    block = options("SpaceToDepthOptions", blockSize=2)
    one("SPACE_TO_DEPTH", [floats(1, 4, 6, 3)], [], (1, 2, 3, 12), block)
    one("DEPTH_TO_SPACE", [floats(1, 2, 3, 12)], [], (1, 4, 6, 3), options("DepthToSpaceOptions", blockSize=2))
    crops = [np.array([2, 2], np.int32), np.array([[1, 0], [0, 1]], np.int32)]
    one("BATCH_TO_SPACE_ND", [floats(4, 2, 3, 5)], crops, (1, 3, 5, 5))


def test_indices() -> None:
    """Arguments of the maximum, gathering by computed indices, one-hot and casts keep LiteRT's integer types."""
    x = floats(2, 5)
    arg = options("ArgMaxOptions", outputType=fb.dtype_code("int32"))
    one("ARG_MAX", [x], [np.array(1, np.int32)], (2,), arg, dtype="int32")
    index = np.array([4, 0, 2], np.int32)
    one("GATHER", [x, index], [], (2, 3), options("GatherOptions", axis=1))
    one("GATHER", [x, np.array([[1, 0], [3, 3]], np.int32)], [], (2, 2), options("GatherOptions", axis=1, batchDims=1))
    one("GATHER_ND", [x, np.array([[1, 2], [0, 4]], np.int32)], [], (2,))
    depth = [np.array(5, np.int32), np.array(1.0), np.array(0.0)]
    one("ONE_HOT", [index], depth, (3, 5), options("OneHotOptions", axis=-1))
    cast = options("CastOptions", inDataType=fb.dtype_code("float32"), outDataType=fb.dtype_code("int32"))
    one("CAST", [x * 9], [], (2, 5), cast, dtype="int32")
    one("EMBEDDING_LOOKUP", [index], [floats(5, 4)], (3, 4))


def test_dense_layers() -> None:
    """Dense layers flatten or keep leading axes; matrices multiply with either one transposed."""
    x = floats(2, 3, 4)
    fields = options("FullyConnectedOptions", keepNumDims=True, fusedActivationFunction=1)
    one("FULLY_CONNECTED", [x], [floats(5, 4), floats(5)], (2, 3, 5), fields)
    one("FULLY_CONNECTED", [x], [floats(5, 12)], (2, 5), options("FullyConnectedOptions"))
    a, b = floats(2, 4, 3), floats(2, 5, 4)
    one("BATCH_MATMUL", [a, b], [], (2, 3, 5), options("BatchMatMulOptions", adjX=True, adjY=True))


def test_dense_layers_of_two_activations_are_matrix_products() -> None:
    """Attention written as dense layers is no `linear`, whose second operand quantizers take for a parameter."""
    x, y = floats(3, 4), floats(5, 4)
    module = one("FULLY_CONNECTED", [x, y], [floats(5)], (3, 5), options("FullyConnectedOptions"))
    graph = torch.export.export(module, (torch.from_numpy(x), torch.from_numpy(y))).graph
    called = {str(n.target) for n in graph.nodes if n.op == "call_function"}
    assert "aten.matmul.default" in called and "aten.linear.default" not in called


def lstm(*, major: bool, clip: float) -> GraphBuilder:
    """Return one LSTM layer of 3 units over 4 steps of 2 features."""
    builder, schema = GraphBuilder(), fb.schema()
    shape = (4, 1, 2) if major else (1, 4, 2)
    given = [builder.input("x", shape)]
    given += [builder.const(f"w{i}", floats(3, 2)) for i in range(4)]
    given += [builder.const(f"r{i}", floats(3, 3)) for i in range(4)] + [-1] * 3
    given += [builder.const(f"b{i}", floats(3)) for i in range(4)] + [-1] * 2
    for name in ("h", "c"):
        given.append(builder.tensor(name, (1, 3)))
        builder.graph.tensors[-1].isVariable = True
    y = builder.op("UNIDIRECTIONAL_SEQUENCE_LSTM", [*given, *[-1] * 4], (*shape[:2], 3))
    made = builder.graph.operators[-1]
    made.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
    made.builtinOptions = schema.UnidirectionalSequenceLSTMOptionsT()
    made.builtinOptions.fusedActivationFunction, made.builtinOptions.timeMajor = 4, major
    made.builtinOptions.cellClip = clip
    builder.output(y, "y")
    return builder


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("major", [False, True])
def test_lstm(major: bool, clip: float) -> None:
    """A fused LSTM is written out step by step, from a state of 0."""
    agree(lstm(major=major, clip=clip), floats(4, 1, 2) if major else floats(1, 4, 2))


def test_constant_parts_are_computed_once() -> None:
    """What depends on constants and shapes alone is no operator of the module."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2, 3, 4))
    shape = builder.op("SHAPE", [x], (4,), dtype="int32")
    options("ShapeOptions", outType=fb.dtype_code("int32"))(builder)
    half = builder.op("GATHER", [shape, builder.const("at", np.array([0, 3], np.int32))], (2,), dtype="int32")
    total = builder.op("MUL", [half, builder.const("six", np.array([1, 6], np.int32))], (2,), dtype="int32")
    builder.output(builder.op("RESHAPE", [x, total], (1, 24)), "y")
    module = agree(builder, floats(1, 2, 3, 4))
    kinds = [op.name for op, _ in module.replay([torch.zeros(1, 2, 3, 4)])]
    assert kinds == ["RESHAPE"]


def test_convolutions_follow_each_other_without_permutations(tmp_path: Path) -> None:
    """From the first convolution to the dense layer nothing is permuted, the input once."""
    builder = GraphBuilder()
    y = builder.conv(
        builder.input("x", (1, 8, 8, 3)), floats(4, 3, 3, 3), floats(4), padding=1, fusedActivationFunction=1
    )
    y = builder.conv(y, floats(4, 1, 1, 4), floats(4))
    y = builder.op("ADD", [y, builder.const("c", floats(4))], (1, 6, 6, 4))
    y = builder.op("MEAN", [y, builder.const("axes", np.array([1, 2], np.int32))], (1, 4))
    builder.output(builder.fully_connected(y, floats(2, 4)), "y")
    (tmp_path / "m.tflite").write_bytes(builder.build())
    loaded: Any = registry.load(str(tmp_path / "m.tflite"), Declaration(layout="keep"))
    export_flatbuffer(fb.load(loaded.program), loaded.signature, tmp_path / "m.pt2")
    program = torch.export.load(str(tmp_path / "m.pt2"))
    permuted = [n for n in program.graph.nodes if n.op == "call_function" and "permute" in str(n.target)]
    assert len(permuted) == 1
    x = floats(1, 8, 8, 3)
    with torch.no_grad():
        (found,) = program.module()(torch.from_numpy(x))
    np.testing.assert_allclose(loaded.run({"x": x})["y"], found.numpy(), rtol=1e-4, atol=1e-5)


def test_an_operator_without_a_form_is_named() -> None:
    """What has no converter is named with its tensor, and what to do instead."""
    builder = GraphBuilder()
    builder.output(builder.op("UNIQUE", [builder.input("x", (4,))], (4,), name="rows"), "y")
    with pytest.raises(ConversionError, match=r"operator UNIQUE \(tensor 'rows'\) has no form") as caught:
        litert_graph.build(fb.load(builder.build()))
    assert "--runtime litert" in (caught.value.hint or "")


def test_a_form_that_is_not_covered_is_named() -> None:
    """A form of a known operator that is not covered says which."""
    builder = GraphBuilder()
    bounds = [builder.const(f"c{i}", np.array([v], np.int32)) for i, v in enumerate((0, 2, 1))]
    y = builder.op("STRIDED_SLICE", [builder.input("x", (4,)), *bounds], (1, 2), name="cut")
    options("StridedSliceOptions", newAxisMask=1)(builder)
    builder.output(y, "y")
    with pytest.raises(ConversionError, match=r"STRIDED_SLICE \(tensor 'cut'\).*an ellipsis or a new axis"):
        litert_graph.build(fb.load(builder.build()))


def planted(monkeypatch: pytest.MonkeyPatch, kind: str, change: Callable[[Any], Any]) -> None:
    """Put a fault into a converter."""
    from edge.sources.litert_node import ChannelFirst

    right = CONVERTERS[kind]

    def wrong(node: Any) -> Any:
        result = right(node)
        if isinstance(result, ChannelFirst):
            return ChannelFirst(change(result.tensor))
        return change(result)

    monkeypatch.setitem(CONVERTERS, kind, wrong)


def test_the_first_operator_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain the first operator with another result is named, not those that follow from it."""
    builder = GraphBuilder()
    y = builder.conv(builder.input("x", (1, 6, 6, 3)), floats(4, 3, 3, 3), floats(4), name="features")
    y = builder.op("TANH", [y], (1, 4, 4, 4), name="bent")
    y = builder.op("EXP", [y], (1, 4, 4, 4), name="grown")
    builder.output(y, "y")
    program, x = builder.build(), [floats(1, 6, 6, 3)]
    assert "Each operator alone gives LiteRT's result" in first_difference(program, x)
    planted(monkeypatch, "TANH", lambda v: v * 1.01)
    assert first_difference(program, x) == "The first operator that differs is TANH (tensor 'bent')."


def test_every_operator_says_its_name() -> None:
    """The registry's names are builtin operators of the schema."""
    names: Mapping[str, int] = vars(fb.schema().BuiltinOperator)
    assert [k for k in CONVERTERS if k not in names] == []
