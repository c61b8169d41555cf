"""Core ML: preprocessing as scale and bias, pixels, features and classifier outputs, without coremltools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DataError, DeviceError, SourceError
from edge.signature import Layout, Preprocess, Signature, TensorSpec
from edge.targets.coreml import contract as contracts
from edge.targets.coreml import session
from edge.targets.coreml.contract import Contract, Image


def signature(layout: Layout = "NCHW", channels: int = 3, **more: Any) -> Signature:
    """Return an image input `x` of 4 x 5 and a float output `y` of three values."""
    shape = (1, channels, 4, 5) if layout == "NCHW" else (1, 4, 5, channels)
    inputs = (TensorSpec(name="x", shape=shape, layout=layout),)
    return Signature(inputs=inputs, outputs=(TensorSpec(name="y", shape=(1, 3)),), **more)


def test_scale_and_bias_are_those_of_the_preprocessing() -> None:
    """(raw * 1/255 - mean) / 0.5 becomes scale 2/255 and bias -2 * mean per channel."""
    preprocess = Preprocess(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5,))
    made, unfit = contracts.contract_of(signature(preprocess={"x": preprocess}))
    assert made.images["x"].scale == pytest.approx(2 / 255)
    assert made.images["x"].bias == pytest.approx((-0.2, -0.4, -0.6))
    assert unfit == ()


@pytest.mark.parametrize("preprocess", [Preprocess(std=(1.0, 2.0, 3.0)), Preprocess(colour="gray")])
def test_what_is_no_image_of_core_ml_stays_a_tensor(preprocess: Preprocess) -> None:
    """One std per channel, or gray values in three channels, are no image input; no declaration, no remark."""
    assert contracts.contract_of(signature(preprocess={"x": preprocess}))[1] == ("x",)
    assert contracts.contract_of(signature()) == (contracts.contract_of(signature())[0], ())


@given(
    st.sampled_from(["NCHW", "NHWC"]),
    st.sampled_from(["rgb", "bgr", "gray"]),
    st.floats(1e-3, 10),
    st.floats(-200, 200),
    st.integers(0, 2**32 - 1),
)
def test_pixels_undo_the_preprocessing(layout: Any, colour: Any, scale: float, bias: float, seed: int) -> None:
    """Raw 8-bit images come back exactly from their preprocessed floats, in either layout and colour order."""
    channels = 1 if colour == "gray" else 3
    raw = np.random.default_rng(seed).integers(0, 256, (4, 5, channels)).astype(np.uint8)
    ordered = raw[..., ::-1] if colour == "bgr" else raw
    values = ordered.astype(np.float64) * scale + bias
    batch = (values if layout == "NHWC" else np.moveaxis(values, -1, 0))[None]
    spec = signature(layout, channels).inputs[0]
    found = contracts.pixels(spec, Image(scale=scale, bias=(bias,) * channels, colour=colour), batch)
    np.testing.assert_array_equal(found, raw[..., 0] if colour == "gray" else raw)


def test_a_classifier_needs_one_distinct_label_per_value() -> None:
    """Labels make a classifier only where the task is one and each value has its own label."""
    cases: list[tuple[Mapping[str, Any], str | None]] = [
        ({"task": "classification", "labels": ("a", "b", "c")}, "y"),
        ({"task": "classification", "labels": ("a", "b", "b")}, None),
        ({"task": "classification", "labels": ("a", "b")}, None),
        ({"task": "other", "labels": ("a", "b", "c")}, None),
        ({"task": "classification"}, None),
    ]
    assert [contracts.contract_of(signature(**given))[0].classifier for given, _ in cases] == [c for _, c in cases]


def test_names_and_dtypes_are_those_that_core_ml_takes() -> None:
    """Names become identifiers and wide or narrow integers int32; the signature keeps its names."""
    ids = TensorSpec(name="input:ids", shape=(1, 4), dtype="int64")
    made, _ = contracts.contract_of(Signature(inputs=(ids,), outputs=(TensorSpec(name="0.out", shape=(1,)),)))
    assert dict(made.features) == {"input:ids": "input_ids", "0.out": "_0_out"}
    assert made.signature.inputs[0].dtype == "int32"


def classifier() -> Contract:
    """Return the contract of an image classifier."""
    preprocess = Preprocess(scale=1 / 255)
    held = signature(preprocess={"x": preprocess}, task="classification", labels=("a", "b", "c"))
    return contracts.contract_of(held)[0]


def test_a_session_hands_over_images_and_reads_labels_in_order() -> None:
    """`predict` gets a Pillow image of the raw pixels, and its dictionary becomes an array in the labels' order."""
    seen: dict[str, Any] = {}

    def predict(fed: dict[str, Any]) -> dict[str, Any]:
        seen.update(fed)
        return {"classLabel": "b", "classLabel_probs": {"c": 3.0, "a": 1.0, "b": 2.0}}

    raw = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    opened = session.CoreMLSession(classifier(), predict)
    found = opened.run({"x": np.moveaxis(raw.astype(np.float32) / 255, -1, 0)[None]})
    np.testing.assert_array_equal(found["y"], np.array([[1.0, 2.0, 3.0]], np.float32))
    np.testing.assert_array_equal(np.asarray(seen["x"]), raw)
    assert opened.mode == "measured"


def test_a_session_passes_arrays_under_their_features() -> None:
    """An array input and output go by their feature names, in the signature's dtypes."""
    ids = TensorSpec(name="input:ids", shape=(1, 2), dtype="int64")
    made, _ = contracts.contract_of(Signature(inputs=(ids,), outputs=(TensorSpec(name="y.0", shape=(1, 2)),)))
    opened = session.CoreMLSession(made, lambda fed: {"y_0": fed["input_ids"].astype(np.float64) * 2})
    found = opened.run({"input:ids": np.array([[1, 2]])})["y.0"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[2.0, 4.0]])


def test_failures_of_a_session_are_named() -> None:
    """A missing input is a DataError; what Core ML raises is a DeviceError with its words."""

    def broken(_fed: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("no compute unit")

    opened = session.CoreMLSession(classifier(), broken)
    with pytest.raises(DataError, match="'x' is missing"):
        opened.run({})
    with pytest.raises(DeviceError, match="no compute unit"):
        opened.run({"x": np.zeros((1, 3, 4, 5), np.float32)})


def test_a_contract_survives_its_text() -> None:
    """A contract read from a package's metadata is the one written; none, or a damaged one, is a SourceError."""
    made = classifier()
    assert contracts.load({"edgekit.json": contracts.dump(made)}, "m") == made
    for held in ({}, {"edgekit.json": "{"}, {"edgekit.json": "{}"}):
        with pytest.raises(SourceError):
            contracts.load(held, "m")
