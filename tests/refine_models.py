"""Small convolutional networks whose channels can be made uneven without changing what the network computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.targets.litert import flatbuffer, probe
from tests.tflite_builder import GraphBuilder, normal_samples

SHAPE = (1, 10, 10, 3)
_CHANNELS = 16
_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """`depth` 1x1 and 3x3 convolutions and a dense layer.

    `uneven` scales the channels of the first layer by powers of two up to 2^±uneven/2 and back in the second;
    `planted` scales two channels of the layer of that number by 2^`planted_by` and back in the next: above 0 the other
    channels vanish in its output, below 0 they vanish in the next one's weights. `separate` makes the activation an
    operator of its own. `centred` takes the mean from the outputs, so that all classes occur.
    """

    activation: str = "RELU"
    separate: bool = False
    depth: int = 3
    uneven: int = 0
    planted: int | None = None
    planted_by: int = 7
    centred: bool = False
    seed: int = 0


def _layers(net: ConvNet) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(net.seed)
    made = []
    channels = SHAPE[-1]
    for number in range(net.depth):
        size = 3 if number == 0 else 1
        weights = rng.standard_normal((_CHANNELS, size, size, channels)) * np.sqrt(2 / (channels * size * size))
        made.append([weights, rng.standard_normal(_CHANNELS) * 0.1])
        channels = _CHANNELS
    if net.uneven:
        _scale(made, 0, 2.0 ** np.round(np.linspace(-net.uneven / 2, net.uneven / 2, _CHANNELS)))
    if net.planted is not None:
        _scale(made, net.planted, np.where(rng.permutation(_CHANNELS) < 2, 2.0**net.planted_by, 1.0))
    return [(w, b) for w, b in made]


def _scale(layers: list[Any], number: int, scales: Any) -> None:
    """Scale the output channels of a layer, and the next one's input channels back."""
    layers[number][0] = layers[number][0] * scales[:, None, None, None]
    layers[number][1] = layers[number][1] * scales
    layers[number + 1][0] = layers[number + 1][0] / scales


def conv_net(net: ConvNet) -> bytes:
    """Return the float flatbuffer; layer n writes `layer_n`, the output is `y`."""
    if not net.centred:
        return _build(net, np.zeros(_CLASSES))
    samples = normal_samples({"x": SHAPE}, count=64, seed=42)
    found = probe.outputs(_build(net, np.zeros(_CLASSES)), [s.inputs for s in samples])
    return _build(net, -np.mean([f["y"][0] for f in found], axis=0))


def _build(net: ConvNet, bias_of_end: Any) -> bytes:
    builder = GraphBuilder()
    x = builder.input("x", SHAPE)
    function = getattr(flatbuffer.schema().ActivationFunctionType, net.activation)
    for number, (weights, bias) in enumerate(_layers(net)):
        fused = {} if net.separate or not function else {"fusedActivationFunction": function}
        x = builder.conv(x, weights, bias, name=f"layer_{number}", **fused)
        if net.separate and function:
            shape = builder.graph.tensors[x].shape
            x = builder.op(net.activation, [x], shape, name=f"layer_{number}/active")
    pooled = builder.op("MEAN", [x, builder.const("axes", [1, 2])], (1, _CHANNELS), name="pooled")
    rng = np.random.default_rng(99)
    builder.output(
        builder.fully_connected(pooled, rng.standard_normal((_CLASSES, _CHANNELS)), bias_of_end, name="end"), "y"
    )
    return builder.build()
