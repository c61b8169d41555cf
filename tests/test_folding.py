"""Folded preprocessing: the program takes pixels and gives what the app's arithmetic and the program without gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration import recipe as recipes
from edge.errors import ConfigError, ConversionError
from edge.preprocess import apply
from edge.signature import Layout, Preprocess, Signature, TensorSpec
from edge.sources import folding
from edge.targets.edgetpu import placement
from edge.targets.litert import flatbuffer, pixels, prepare, quantize, session
from tests.tflite_builder import GraphBuilder, Samples, f32

SHAPE = (1, 20, 20, 3)
IMAGE = TensorSpec(name="image", shape=SHAPE, layout="NHWC")
LOGITS = TensorSpec(name="logits", shape=(1, 4))
IMAGENET = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EXACT = Preprocess(scale=1 / 128, mean=(1.0,))
UNIT = Preprocess(scale=1 / 255)
_RANDOM = np.random.default_rng(5)
PHOTOS: list[Any] = [_RANDOM.integers(0, 256, SHAPE).astype(np.uint8) for _ in range(12)]
INT8 = recipes.named("int8")


def _signature(pre: Preprocess, spec: TensorSpec = IMAGE) -> Signature:
    return Signature(inputs=(spec,), outputs=(LOGITS,), preprocess={"image": pre})


def _network(*, padding: int = 0, kernel: int = 3, shape: tuple[int, ...] = SHAPE) -> bytes:
    """Return conv (SAME is padding 0), mean, dense to 4 logits."""
    rng, b = np.random.default_rng(1), GraphBuilder()
    x = b.input("image", shape)
    weights = rng.normal(0, 0.3, (8, kernel, kernel, shape[-1]))
    side = shape[1] if padding == 0 else shape[1] - kernel + 1
    inputs = [x, b.const("conv/weights", f32(weights)), b.const("conv/bias", f32(rng.normal(0, 0.1, 8)))]
    x = b.op("CONV_2D", inputs, (1, side, side, 8), padding=padding, fusedActivationFunction=1)
    x = b.op("MEAN", [x, b.const("axes", np.array([1, 2], np.int32))], (1, 8))
    b.output(b.fully_connected(x, rng.normal(0, 1, (4, 8)), np.zeros(4)), "logits")
    return b.build()


def _fold(folder: Path, program: bytes, pre: Preprocess, spec: TensorSpec = IMAGE) -> tuple[bytes, Signature]:
    (folder / "carrier.tflite").write_bytes(program)
    path, signature, _ = folding.fold_carrier(folder / "carrier.tflite", _signature(pre, spec), "uint8")
    return path.read_bytes(), signature


def _quantized(program: bytes, signature: Signature, inputs: list[Any]) -> quantize.Quantized:
    model = flatbuffer.load(program)
    prepare.canonical(model, signature)
    samples: Any = Samples([{"image": x} for x in inputs])
    return quantize.quantize(model, INT8, samples, full_integer=True)


def _run(program: bytes, values: Any, kernels: str = "reference") -> Any:
    return session.LiteRTSession(program, kernels=kernels, threads=1).run({"image": values})["logits"]


def _operators(program: bytes) -> list[str]:
    return [op.name for op in flatbuffer.graph(flatbuffer.load(program)).ops]


# --- float programs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", [IMAGENET, EXACT, UNIT])
def test_float_outputs_are_those_of_the_apps_arithmetic(tmp_path: Path, pre: Preprocess) -> None:
    """The same float32 steps in the same order: raw pixels give bit for bit what preprocessed ones gave."""
    plain = _network()
    program, signature = _fold(tmp_path, plain, pre)
    for raw in PHOTOS:
        assert np.array_equal(_run(program, raw), _run(plain, apply(raw, IMAGE, pre)))
    assert (signature.inputs[0].dtype, signature.preprocess_of("image").is_identity) == ("uint8", True)


@settings(max_examples=60)
@given(
    st.floats(1e-3, 10), st.tuples(*[st.floats(-200, 200)] * 3), st.tuples(*[st.floats(1e-2, 300)] * 3), st.booleans()
)
def test_steps_are_the_apps_arithmetic(scale: float, mean: Any, std: Any, first: bool) -> None:
    """What is folded gives the bits of edge.preprocess for any scale, mean and std, in both layouts."""
    pre = Preprocess(scale=scale, mean=mean, std=std)
    layout: Layout = "NCHW" if first else "NHWC"
    spec = TensorSpec(name="image", shape=(1, 3, 4, 4) if first else (1, 4, 4, 3), layout=layout)
    raw = np.random.default_rng(3).integers(0, 256, spec.shape).astype(np.uint8)
    folds = folding.folds_of(_signature(pre, spec), "uint8")
    assert np.array_equal(folding.prepared({"image": raw}, folds)["image"], apply(raw, spec, pre))


def test_geometry_and_colour_stay_outside(tmp_path: Path) -> None:
    """How an image is resized and its channel order are still the app's; only arithmetic is folded."""
    pre = Preprocess(scale=1 / 255, resize="bilinear", fit="letterbox", pad_value=114, colour="bgr")
    _, signature = _fold(tmp_path, _network(), pre)
    left = Preprocess(resize="bilinear", fit="letterbox", pad_value=114, colour="bgr")
    assert signature.preprocess_of("image") == left


def test_nothing_to_fold_is_an_error() -> None:
    """Without a scale, mean or std of a float input the wish is refused."""
    with pytest.raises(ConfigError, match="no preprocessing to fold"):
        folding.folds_of(_signature(Preprocess(resize="bilinear")), "uint8")


def test_core_ml_images_take_what_fits_themselves() -> None:
    """One std for all channels is left to Core ML's image input; one per channel is folded, over float pixels."""
    assert folding.folds_of(_signature(UNIT), "image") == ()
    (fold,) = folding.folds_of(_signature(IMAGENET), "image")
    assert (fold.dtype, [name for name, _ in fold.steps]) == ("float32", ["MUL", "SUB", "DIV"])


def test_a_difference_is_refused() -> None:
    """A folded program that computes something else does not pass."""
    folds = folding.folds_of(_signature(UNIT), "uint8")
    with pytest.raises(ConversionError, match=r"differs by 25[34]"):
        list(folding.verify(lambda x: {"y": x["image"]}, lambda x: {"y": x["image"]}, [{"image": PHOTOS[0]}], folds))


# --- int8 programs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", [EXACT, UNIT])
def test_scale_and_zero_point_take_the_arithmetic(tmp_path: Path, pre: Preprocess) -> None:
    """Where -mean/scale is whole no operator is left, and the pixel itself is the stored value of the app's number."""
    program, signature = _fold(tmp_path, _network(), pre)
    made = _quantized(program, signature, PHOTOS)
    assert _operators(made.program) == ["QUANTIZE", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert made.details["pixel_inputs"] == {"image": {"form": "input-quantization", "most_steps": 0}}
    opened = session.LiteRTSession(made.program, kernels="reference", threads=1)
    (spec,) = opened.signature.inputs
    assert spec.quantization is not None
    assert spec.quantization.zero_point == (128 if pre is EXACT else 0,)
    for raw in PHOTOS:
        by_app = session.run_float(opened, {"image": apply(raw, IMAGE, pre)})["logits"]
        assert np.array_equal(session.run_float(opened, {"image": raw})["logits"], by_app)


def test_means_per_channel_become_one_convolution(tmp_path: Path) -> None:
    """Before a padded convolution: 1 x 1 depthwise, after which every byte is that of the program without folding."""
    plain = _network()
    program, signature = _fold(tmp_path, plain, IMAGENET)
    made = _quantized(program, signature, PHOTOS)
    without = _quantized(plain, _signature(IMAGENET), [apply(raw, IMAGE, IMAGENET) for raw in PHOTOS])
    assert _operators(made.program) == ["QUANTIZE", "DEPTHWISE_CONV_2D", *_operators(without.program)]
    found = made.details["pixel_inputs"]["image"]
    assert found["form"] == "convolution"
    assert found["most_steps"] <= 1
    opened = session.LiteRTSession(without.program, kernels="reference", threads=1)
    (spec,) = opened.signature.outputs
    assert spec.quantization is not None
    step = spec.quantization.scale[0]
    for raw in PHOTOS:
        by_app: Any = session.run_float(opened, {"image": apply(raw, IMAGE, IMAGENET)})["logits"]
        folded = session.LiteRTSession(made.program, kernels="reference", threads=1)
        assert np.abs(session.run_float(folded, {"image": raw})["logits"] - by_app).max() <= 1.01 * step


def test_unpadded_convolutions_take_the_arithmetic_in(tmp_path: Path) -> None:
    """Weights times a, bias plus the sum of weights times b: exact, so the int8 program follows the float one."""
    plain = _network(padding=1)
    program, signature = _fold(tmp_path, plain, IMAGENET)
    made = _quantized(program, signature, PHOTOS)
    assert made.details["pixel_inputs"] == {"image": {"form": "weights", "most_steps": None}}
    assert _operators(made.program) == ["QUANTIZE", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    opened = session.LiteRTSession(made.program, kernels="reference", threads=1)
    for raw in PHOTOS:
        wanted = _run(plain, apply(raw, IMAGE, IMAGENET))
        assert np.abs(session.run_float(opened, {"image": raw})["logits"] - wanted).max() < 0.1 * np.ptp(wanted)


def test_gray_images_without_channels_keep_operators(tmp_path: Path) -> None:
    """[1, height, width] is no image of rank 4: MUL and SUB stay, in integers."""
    b = GraphBuilder()
    x = b.input("image", (1, 64))
    b.output(b.fully_connected(x, np.random.default_rng(1).normal(0, 1, (4, 64)), np.zeros(4)), "logits")
    spec = TensorSpec(name="image", shape=(1, 64))
    program, signature = _fold(tmp_path, b.build(), Preprocess(scale=1 / 127.5, mean=(1.0,)), spec)
    raws = [raw.reshape(-1)[:64].reshape(1, 64) for raw in PHOTOS]
    made = _quantized(program, signature, raws)
    found = made.details["pixel_inputs"]["image"]
    assert found["form"] == "operators"
    assert found["most_steps"] <= 1


def test_everything_is_mapped_for_the_edge_tpu(tmp_path: Path) -> None:
    """QUANTIZE of bytes and the depthwise convolution are operators that the compiler maps."""
    program, signature = _fold(tmp_path, _network(), IMAGENET)
    made = _quantized(program, signature, PHOTOS)
    placed = placement.predict(flatbuffer.graph(flatbuffer.load(made.program)))
    assert all(operator.mapped for operator in placed.operators)


def test_int16_keeps_the_cast(tmp_path: Path) -> None:
    """In int16 a byte is not its own stored value: the arithmetic stays in front, in float."""
    program, signature = _fold(tmp_path, _network(), UNIT)
    model = flatbuffer.load(program)
    prepare.canonical(model, signature)
    samples: Any = Samples([{"image": x} for x in PHOTOS])
    made = quantize.quantize(model, recipes.named("int8x16"), samples)
    assert _operators(made.program)[0] == "CAST"
    wanted = _run(_network(), apply(PHOTOS[0], IMAGE, UNIT))
    opened = session.LiteRTSession(made.program, kernels="reference", threads=1)
    assert np.abs(session.run_float(opened, {"image": PHOTOS[0]})["logits"] - wanted).max() < 0.01 * np.ptp(wanted)


@settings(max_examples=40, deadline=None)
@given(st.floats(-5, 5).filter(lambda v: abs(v) > 0.01), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_chains_of_any_order_are_followed(factor: float, shift: list[float]) -> None:
    """MUL, ADD, SUB and DIV in any order and on either side give the table that the float program computes."""
    b = GraphBuilder()
    x = b.op("CAST", [b.input("image", SHAPE, "uint8")], SHAPE)
    x = b.op("SUB", [b.const("from", f32([200.0])), x], SHAPE)
    x = b.op("MUL", [b.const("factor", f32([factor])), x], SHAPE)
    x = b.op("ADD", [x, b.const("shift", f32(shift))], SHAPE)
    b.output(x, "logits")
    model = flatbuffer.load(b.build())
    (found,) = pixels.take(model)
    ramp = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    wanted = (np.float32(200) - ramp) * np.float32(factor) + f32(shift)
    assert np.array_equal(found.values, wanted)
    opened = session.LiteRTSession(flatbuffer.dump(model), kernels="builtin", threads=1)
    raw = PHOTOS[0]
    got: Any = opened.run({"image": raw})["logits"]
    np.testing.assert_allclose(got, wanted[raw, np.arange(3)], rtol=1e-5, atol=1e-3)


# --- exported programs -------------------------------------------------------------------------------------------


@pytest.mark.frameworks
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_exported_programs_take_pixels(tmp_path: Path, kind: folding.Kind) -> None:
    """The graph of torch.export begins with the same float32 steps; bytes, or floats where a runtime has no bytes."""
    import torch

    from edge.targets.executorch import carrier

    spec = TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 4))
    module.eval()
    signature = _signature(IMAGENET, spec)
    carrier.save(torch.export.export(module, (torch.zeros(1, 3, 8, 8),)), signature, tmp_path / "carrier.pt2")
    path, folded, folds = folding.fold_carrier(tmp_path / "carrier.pt2", signature, kind)
    assert (folded.inputs[0].dtype, folded.preprocess_of("image").is_identity) == (kind, True)
    before = carrier.ExportedSession(*carrier.load(tmp_path / "carrier.pt2"))
    after = carrier.ExportedSession(*carrier.load(path))
    raws = [np.ascontiguousarray(raw[:, :8, :8].transpose(0, 3, 1, 2)) for raw in PHOTOS]
    (found,) = folding.verify(before.run, after.run, [{"image": raw.astype(kind)} for raw in raws], folds)
    assert "bit for bit" in found.message
    for raw in raws:
        assert np.array_equal(folding.prepared({"image": raw}, folds)["image"], apply(raw, spec, IMAGENET))


@pytest.mark.frameworks
def test_open_dimensions_keep_their_bounds(tmp_path: Path) -> None:
    """A folded program takes the sizes that were declared for it, and no more."""
    import torch

    from edge.targets.executorch import carrier

    spec = TensorSpec(name="image", shape=(1, 3, -1, 8), layout="NCHW")
    signature = _signature(IMAGENET, spec)
    bounds = ({2: torch.export.Dim.AUTO(min=4, max=24)},)
    program = torch.export.export(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),), dynamic_shapes=bounds)
    carrier.save(program, signature, tmp_path / "carrier.pt2")
    path, _, _ = folding.fold_carrier(tmp_path / "carrier.pt2", signature, "uint8")
    folded, _ = carrier.load(path)
    (value,) = carrier.user_inputs(folded)
    assert carrier.span_of(value.shape[2], carrier.limits(folded)) == (4, 24)
