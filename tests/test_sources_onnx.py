"""ONNX models as a source."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, EdgekitError, SourceError
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration
from edge.sources.onnx_file import OnnxReference, describe
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb
from tests.onnx_models import convolution, model, node, save

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> Any:
    """Return standard normal numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    """Return an int64 vector."""
    return np.array(values, np.int64)


def compare(proto: Any, folder: Path, values: dict[str, InputDeclaration] | None = None) -> None:
    """Require that the PyTorch form gives what onnxruntime gives on random inputs of both signs."""
    import torch

    from edge.sources import onnx_graph

    path = save(proto, folder)
    description = describe(proto, Declaration(inputs=values or {}))
    module = onnx_graph.build(proto, description)
    inputs = {
        i.name: floats(*i.shape)
        if i.dtype == "float32"
        else np.random.default_rng(0).integers(0, 3, i.shape).astype(i.dtype)
        for i in description.free
    }
    expected: dict[str, Any] = OnnxReference(path, description).run(inputs)
    with torch.no_grad():
        results = module(*[torch.from_numpy(np.array(inputs[i.name])) for i in description.free])
    assert set(results) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(results[name].numpy(), value, rtol=2e-4, atol=2e-5, err_msg=name)


X = {"x": [1, 4, 6, 8]}
ROWS = {"x": [3, 5]}

ONE = {
    "relu": (node("Relu", ["x"], ["y"]), X, {}, 17),
    "hardswish": (node("HardSwish", ["x"], ["y"]), X, {}, 14),
    "mish": (node("Mish", ["x"], ["y"]), X, {}, 18),
    "gelu": (node("Gelu", ["x"], ["y"]), X, {}, 20),
    "gelu-tanh": (node("Gelu", ["x"], ["y"], approximate="tanh"), X, {}, 20),
    "selu": (node("Selu", ["x"], ["y"]), X, {}, 17),
    "hardsigmoid": (node("HardSigmoid", ["x"], ["y"]), X, {}, 17),
    "thresholded": (node("ThresholdedRelu", ["x"], ["y"], alpha=0.3), X, {}, 17),
    "prelu": (node("PRelu", ["x", "s"], ["y"]), X, {"s": floats(4, 1, 1)}, 17),
    "prelu-last": (node("PRelu", ["x", "s"], ["y"]), X, {"s": floats(8)}, 17),
    "clip-old": (node("Clip", ["x"], ["y"], min=-0.5, max=0.5), X, {}, 8),
    "clip": (node("Clip", ["x", "", "m"], ["y"]), X, {"m": np.float32(0.2)}, 13),
    "softmax-old": (node("Softmax", ["x"], ["y"], axis=1), X, {}, 11),
    "softmax": (node("Softmax", ["x"], ["y"], axis=1), X, {}, 13),
    "reduce-old": (node("ReduceSum", ["x"], ["y"], axes=[1], keepdims=0), X, {}, 11),
    "reduce": (node("ReduceSum", ["x", "a"], ["y"]), X, {"a": ints(-1, 2)}, 13),
    "reduce-l2": (node("ReduceL2", ["x"], ["y"], axes=[1]), X, {}, 13),
    "logsumexp": (node("ReduceLogSumExp", ["x"], ["y"], axes=[1, 2]), X, {}, 13),
    "prod": (node("ReduceProd", ["x"], ["y"], axes=[1, 2], keepdims=0), X, {}, 13),
    "slice": (
        node("Slice", ["x", "s", "e", "a", "t"], ["y"]),
        X,
        {"s": ints(-1, 1), "e": ints(-9, 6), "a": ints(3, 2), "t": ints(-2, 2)},
        13,
    ),
    "slice-old": (node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[1]), X, {}, 9),
    "pad": (node("Pad", ["x", "p", "v"], ["y"]), X, {"p": ints(0, 0, 1, -1, 0, 0, 2, 1), "v": np.float32(2)}, 13),
    "pad-reflect": (node("Pad", ["x", "p"], ["y"], mode="reflect"), X, {"p": ints(0, 0, 2, 1, 0, 0, 3, 2)}, 13),
    "pad-edge": (node("Pad", ["x", "p"], ["y"], mode="edge"), X, {"p": ints(0, 1, 2, 1, 0, 0, 3, 20)}, 13),
    "pad-old": (node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 0, 2], value=1.0), X, {}, 10),
    "gather": (node("Gather", ["x", "i"], ["y"], axis=1), X, {"i": np.array([[1, -1], [0, 2]])}, 13),
    "gather-one": (node("Gather", ["x", "i"], ["y"], axis=3), X, {"i": np.array(-2)}, 13),
    "gather-nd": (node("GatherND", ["x", "i"], ["y"]), X, {"i": np.array([[0, 1], [0, -1]])}, 13),
    "elements": (
        node("GatherElements", ["x", "i"], ["y"], axis=1),
        ROWS,
        {"i": np.array([[0, -1], [1, 2], [4, 3]])},
        13,
    ),
    "scatter": (
        node("ScatterElements", ["x", "i", "u"], ["y"], axis=1),
        ROWS,
        {"i": np.array([[0, -1]]), "u": floats(1, 2)},
        16,
    ),
    "scatter-nd": (node("ScatterND", ["x", "i", "u"], ["y"]), ROWS, {"i": np.array([[2], [0]]), "u": floats(2, 5)}, 16),
    "tile": (node("Tile", ["x", "r"], ["y"]), ROWS, {"r": ints(2, 3)}, 13),
    "expand": (node("Expand", ["x", "r"], ["y"]), ROWS, {"r": ints(2, 1, 5)}, 13),
    "trilu": (node("Trilu", ["x", "k"], ["y"], upper=0), ROWS, {"k": np.array(1)}, 14),
    "cumsum": (node("CumSum", ["x", "a"], ["y"], reverse=1, exclusive=1), ROWS, {"a": np.array(1)}, 14),
    "einsum": (node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik"), ROWS, {"w": floats(5, 2)}, 13),
    "gemm": (
        node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5, beta=2.0, transA=1),
        ROWS,
        {"w": floats(3, 2), "c": floats(1, 2)},
        13,
    ),
    "s2d": (node("SpaceToDepth", ["x"], ["y"], blocksize=2), X, {}, 13),
    "d2s-dcr": (node("DepthToSpace", ["x"], ["y"], blocksize=2), X, {}, 13),
    "d2s-crd": (node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD"), X, {}, 13),
    "conv-same-lower": (
        node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2]),
        X,
        {"w": floats(2, 4, 4, 3)},
        13,
    ),
    "conv-group": (
        node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 0, 2, 1], dilations=[1, 2]),
        X,
        {"w": floats(6, 2, 3, 2)},
        13,
    ),
    "conv1d": (node("Conv", ["x", "w"], ["y"], pads=[2, 0]), {"x": [1, 3, 9]}, {"w": floats(2, 3, 3)}, 13),
    "transposed": (
        node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        X,
        {"w": floats(4, 3, 3, 3), "b": floats(3)},
        13,
    ),
    "transposed-same": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 3], auto_pad="SAME_UPPER"),
        X,
        {"w": floats(4, 2, 3, 4)},
        13,
    ),
    "transposed-shape": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[12, 15]),
        X,
        {"w": floats(4, 2, 3, 3)},
        13,
    ),
    "max-same": (node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"), X, {}, 13),
    "max-ceil": (node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), X, {}, 13),
    "max-dilated": (node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 0, 0, 1]), X, {}, 13),
    "average-pad": (node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), X, {}, 13),
    "average-include": (
        node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1),
        X,
        {},
        13,
    ),
    "average-same": (
        node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        X,
        {},
        13,
    ),
    "instance": (node("InstanceNormalization", ["x", "s", "b"], ["y"]), X, {"s": floats(4), "b": floats(4)}, 13),
    "group": (
        node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2),
        X,
        {"s": floats(4), "b": floats(4)},
        21,
    ),
    "layer": (
        node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-2),
        X,
        {"s": floats(6, 8), "b": floats(6, 8)},
        17,
    ),
    "lrn": (node("LRN", ["x"], ["y"], size=3, alpha=0.1), X, {}, 13),
    "lp": (node("LpNormalization", ["x"], ["y"], axis=1), X, {}, 13),
    "upsample": (node("Upsample", ["x", "s"], ["y"]), X, {"s": np.array([1, 1, 2, 2], np.float32)}, 9),
    "upsample-old": (node("Upsample", ["x"], ["y"], mode="linear", scales=[1.0, 1.0, 2.0, 1.5]), X, {}, 7),
}


@pytest.mark.parametrize("case", ONE)
def test_operator_is_onnxruntimes(case: str, tmp_path: Path) -> None:
    """Each operator form gives what onnxruntime gives, in old and new opsets."""
    one, inputs, constants, opset = ONE[case]
    compare(model([one], inputs, ["y"], constants=constants, opset=opset), tmp_path)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(12, 16), (9, 11), (3, 5)])
def test_resize_is_onnxruntimes(mode: str, coordinates: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Every coordinate mode and kernel, larger and smaller, equals onnxruntime."""
    one = node("Resize", ["x", "", "", "z"], ["y"], mode=mode, coordinate_transformation_mode=coordinates)
    compare(model([one], X, ["y"], constants={"z": ints(1, 4, *size)}, opset=13), tmp_path)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_nearest_rounding(rounding: str, tmp_path: Path) -> None:
    """The four roundings of nearest resizing equal onnxruntime."""
    one = node("Resize", ["x", "", "s"], ["y"], nearest_mode=rounding)
    compare(model([one], X, ["y"], constants={"s": np.array([1, 1, 1.5, 0.6], np.float32)}, opset=13), tmp_path)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_are_onnxruntimes(kind: str, direction: str, tmp_path: Path) -> None:
    """Recurrent layers in each direction, with initial state, equal onnxruntime: series and last states."""
    gates, two = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    outputs = ["y", "h", "c"][: 3 if kind == "LSTM" else 2]
    inputs = ["x", "w", "r", "b", "", "h0", "c0"][: 7 if kind == "LSTM" else 6]
    constants = {"w": floats(two, gates * 3, 4), "r": floats(two, gates * 3, 3), "b": floats(two, gates * 6)}
    free = {"x": [5, 2, 4], "h0": [two, 2, 3], "c0": [two, 2, 3]}
    proto = model(
        [node(kind, inputs, outputs, hidden_size=3, direction=direction)],
        {n: s for n, s in free.items() if n in inputs},
        outputs,
        constants=constants,
        opset=14,
    )
    compare(proto, tmp_path)


def test_gru_of_pytorch(tmp_path: Path) -> None:
    """linear_before_reset, PyTorch's form, equals onnxruntime."""
    one = node("GRU", ["x", "w", "r", "b"], ["y", "h"], hidden_size=3, linear_before_reset=1)
    constants = {"w": floats(1, 9, 4), "r": floats(1, 9, 3), "b": floats(1, 18)}
    compare(model([one], {"x": [4, 1, 4]}, ["y", "h"], constants=constants, opset=14), tmp_path)


def test_shapes_are_folded_and_loops_written_out(tmp_path: Path) -> None:
    """Shape arithmetic over a dynamic size becomes numbers; a Loop with a known count is written out."""
    import onnx

    body = onnx.helper.make_graph(
        [node("Not", ["no"], ["still"]), node("Mul", ["v", "two"], ["next"]), node("Identity", ["next"], ["seen"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("still", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
            onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
        node("Unsqueeze", ["n", "zero"], ["n1"]),
        node("Concat", ["n1", "minus"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["flat"]),
        node("Loop", ["three", "", "flat"], ["last", "all"], body=body),
    ]
    constants = {"one": np.array(1), "zero": ints(0), "minus": ints(-1), "three": np.array(3), "two": np.float32(2)}
    constants |= {"no": np.array(False)}
    proto = model(nodes, {"x": ["batch", "length"]}, ["last", "all"], constants=constants)
    compare(proto, tmp_path, {"x": InputDeclaration(shape=(1, 6))})


def branching() -> Any:
    """Return a model that branches on an integer input."""
    import onnx

    def branch(kind: str) -> Any:
        value = onnx.helper.make_tensor_value_info(f"{kind}_y", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([node(kind, ["x"], [f"{kind}_y"])], kind, [], [value])

    nodes = [
        node("Equal", ["rate", "wide"], ["is_wide"]),
        node("If", ["is_wide"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    inputs: dict[str, Any] = {"x": [1, 4], "rate": []}
    return model(nodes, inputs, ["y"], constants={"wide": np.array(16000)}, dtypes={"rate": onnx.TensorProto.INT64})


@pytest.mark.parametrize("rate", [8000, 16000])
def test_branch_on_a_fixed_input_is_folded(rate: float, tmp_path: Path) -> None:
    """An If on an input whose value is declared becomes the one branch, and the input is gone."""
    compare(branching(), tmp_path, {"rate": InputDeclaration(value=rate)})


def test_branch_on_data_is_an_error(tmp_path: Path) -> None:
    """An If on a free input names the input and how to fix it."""
    with pytest.raises(ConversionError, match="'the_If' decides by the values of rate") as caught:
        registry.load(str(save(branching(), tmp_path)))
    assert "--set rate=VALUE" in (caught.value.hint or "")


def test_network_becomes_channel_last(tmp_path: Path) -> None:
    """A channel-first convolutional network has NHWC input and no TRANSPOSE, verified against onnxruntime."""
    loaded = registry.load(str(save(convolution(RANDOM), tmp_path)))
    assert [str(t) for t in (*loaded.signature.inputs, *loaded.signature.outputs)] == [
        "image: float32[1, 8, 8, 3] NHWC",
        "scores: float32[1, 5]",
    ]
    carrier = tmp_path / "c.tflite"
    loaded.to_litert(carrier)
    assert verify_carrier(loaded, carrier, [{"image": floats(1, 8, 8, 3)}]) == ()
    assert "TRANSPOSE" not in [op.name for op in fb.graph(fb.load(carrier)).ops]
    assert {"onnx", "onnxruntime", "litert-torch"} <= set(loaded.tools)


def test_a_failing_route_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes are tried in their order; the report says which one it was and why others failed."""
    from dataclasses import replace

    from edge.sources import routes

    second = routes.ROUTES["onnx", "litert"][1]
    monkeypatch.setitem(routes.ROUTES, ("onnx", "litert"), (replace(second, name="nothing"), second))
    if importlib.util.find_spec("onnx2torch") is None:
        pytest.skip("onnx2torch is not installed")
    loaded = registry.load(str(save(convolution(RANDOM, pads=[1, 1, 1, 1]), tmp_path)))
    found = next(f for f in loaded.findings if f.rule == "ROUTE_CHOSEN")
    assert found.message.startswith(
        "The model was converted by the route onnx2torch; others failed before it: nothing:"
    )


def test_external_data_is_read_and_digested(tmp_path: Path) -> None:
    """Weights in another file are read; the digest covers them; without the file the error says so."""
    import onnx

    from edge.sources.onnx import digest
    from edge.sources.onnx_file import read

    path = tmp_path / "model.onnx"
    onnx.save_model(
        convolution(RANDOM), str(path), save_as_external_data=True, size_threshold=0, location="weights.bin"
    )
    assert read(path).graph.initializer[0].raw_data
    before = digest(path)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert digest(path) != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(SourceError, match=r"external data|in another file") as caught:
        read(path)
    assert "beside the model" in (caught.value.hint or "")


def without_opset() -> Any:
    """Return a model that does not say its opset."""
    proto = convolution(RANDOM)
    del proto.opset_import[:]
    return proto


def one(kind: str, domain: str = "", opset: int = 17, **attributes: Any) -> Any:
    """Return a model of one operator."""
    proto = model([node(kind, ["x"], ["y"], **attributes)], {"x": [1, 4]}, ["y"], opset=opset)
    if domain:
        import onnx

        proto.graph.node[0].domain = domain
        proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return proto


@pytest.mark.parametrize(
    ("make", "kind", "part"),
    [
        (without_opset, SourceError, "does not say its opset"),
        (lambda: one("Relu", opset=6), SourceError, "has opset 6; accepted from 7 on"),
        (
            lambda: one("Relu", domain="my.ops"),
            SourceError,
            "not of the ONNX standard: my.ops::Relu .first at node 'the_Relu'",
        ),
        (lambda: one("NoSuchThing"), SourceError, "refused by onnxruntime: .*NoSuchThing"),
        (lambda: model([node("Relu", ["x"], ["y"])], {"x": [1, "length"]}, ["y"]), ConfigError, "open or empty shape"),
    ],
)
def test_what_cannot_be_read(make: Any, kind: type[EdgekitError], part: str, tmp_path: Path) -> None:
    """A missing or old opset, custom and unknown operators and open sizes each have their own message."""
    with pytest.raises(kind, match=part):
        registry.load(str(save(make(), tmp_path)))


def test_unsupported_operators_are_named_with_their_node(tmp_path: Path) -> None:
    """A size by data and random numbers are conversion errors that name the node."""
    import onnx

    found = model([node("NonZero", ["x"], ["y"])], {"x": [1, 4]}, ["y"], dtypes={"y": onnx.TensorProto.INT64})
    with pytest.raises(ConversionError, match="NonZero \\(node 'the_NonZero'\\) has a size that depends on the data"):
        compare(found, tmp_path)
    with pytest.raises(ConversionError, match="'the_RandomNormalLike' draws random numbers"):
        compare(one("RandomNormalLike"), tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are absent")
def test_an_invalid_graph_is_refused() -> None:
    """An int8 Gemm, which ONNX does not have, is an error that names the operator."""
    with pytest.raises(SourceError, match=r"refused by onnxruntime.*int8.*Gemm|invalid ONNX model.*Gemm"):
        registry.load(str(SHARED / "negative-cases" / "toycar_int8_gemm_invalid.onnx"))
