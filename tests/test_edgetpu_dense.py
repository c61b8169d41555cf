"""Dense layers with channels of different size become 1x1 convolutions before they are quantized for the Edge TPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.targets.edgetpu import dense
from edge.targets.edgetpu.predict import predict_program
from edge.targets.litert import contract, flatbuffer, probe, quantize
from tests.tflite_builder import GraphBuilder, normal_samples

RELU = 1


def _network(spread: float) -> bytes:
    """Two dense layers over rows, the first with channels up to `spread` times as large as the others."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, spread, 12)[:, None]
    builder = GraphBuilder()
    x = builder.input("x", (4, 10))
    hidden = builder.fully_connected(
        x, np.sign(rng.standard_normal((12, 10))) * scale, np.zeros(12), name="hidden", fusedActivationFunction=RELU
    )
    builder.output(builder.fully_connected(hidden, rng.standard_normal((5, 12)) / scale.T, name="end"), "y")
    return builder.build()


def test_uneven_layers_become_convolutions_with_the_same_outputs(tmp_path: Path) -> None:
    """The float function stays the same; between two of them no reshape is left; the prediction maps all of it."""
    (tmp_path / "float.tflite").write_bytes(_network(64))
    signature = contract.signature_of(flatbuffer.load(_network(64)))
    path = dense.rewritten(tmp_path / "float.tflite", signature, tmp_path)
    names = [op.name for op in flatbuffer.graph(flatbuffer.load(path)).ops]
    assert names == ["RESHAPE", "CONV_2D", "CONV_2D", "RESHAPE"]
    inputs = [{"x": v} for v in np.random.default_rng(1).standard_normal((6, 4, 10)).astype(np.float32)]
    for found, wanted in zip(
        probe.outputs(path.read_bytes(), inputs), probe.outputs(_network(64), inputs), strict=True
    ):
        np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-4, atol=1e-4)
    samples = normal_samples({"x": (4, 10)}, count=32)
    made = quantize.quantize(flatbuffer.load(path), recipes.named("int8"), samples, full_integer=True)
    prediction = predict_program(flatbuffer.load(made.program), name="x", min_runtime_version=14)
    assert all(operator.mapped for operator in prediction.placement.operators)


def test_small_channels_keep_their_eight_bits(tmp_path: Path) -> None:
    """Beside channels 64 times as large, one scale leaves 2 steps to a small one; a scale of its own leaves 127."""
    (tmp_path / "float.tflite").write_bytes(_network(64))
    signature = contract.signature_of(flatbuffer.load(_network(64)))
    path = dense.rewritten(tmp_path / "float.tflite", signature, tmp_path)
    recipe = replace(recipes.named("int8"), per_tensor_operators=("FULLY_CONNECTED",))

    def steps(program: bytes, kind: str) -> int:
        made = quantize.quantize(flatbuffer.load(program), recipe, normal_samples({"x": (4, 10)}, count=8))
        graph = flatbuffer.graph(flatbuffer.load(made.program))
        codes: Any = graph.data(next(op for op in graph.ops if op.name == kind).inputs[1])
        return int(np.abs(codes[0].astype(int)).max())

    assert steps(_network(64), "FULLY_CONNECTED") <= 2
    assert steps(path.read_bytes(), "CONV_2D") == 127


@pytest.mark.parametrize("spread", [1.0, 1.4])
def test_even_layers_stay_as_they_are(tmp_path: Path, spread: float) -> None:
    """Where one scale costs nothing, the file is not touched."""
    builder = GraphBuilder()
    weights = np.linspace(1, spread, 6)[:, None] * np.ones((6, 8))
    builder.output(builder.fully_connected(builder.input("x", (1, 8)), weights, name="end"), "y")
    path = tmp_path / "float.tflite"
    path.write_bytes(builder.build())
    signature = contract.signature_of(flatbuffer.load(builder.build()))
    assert dense.rewritten(path, signature, tmp_path) == path
