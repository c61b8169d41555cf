"""Facts about the prediction of parameter and activation memory on the Edge TPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import SourceError
from edge.signature import Quantization
from edge.targets.edgetpu import memory, placement
from edge.targets.edgetpu.memory import MIB
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph
from tests.tflite_builder import GraphBuilder

Q = Quantization(scale=(0.5,), zero_point=(0,))


def per_channel(count: int, axis: int = 0) -> Quantization:
    """Scales that differ by channel."""
    return Quantization(scale=tuple(0.01 * (i + 1) for i in range(count)), zero_point=(0,) * count, axis=axis)


class Net:
    """Builds int8 graphs of layers with weights."""

    def __init__(self, *shape: int) -> None:
        self.builder = GraphBuilder()
        self.shape = shape
        self.last = self.builder.input("x", shape, "int8", Q)

    def conv(self, outputs: int, kernel: int, *, channels: bool = True, padding: int = 0) -> Net:
        """Append a CONV_2D of stride 1."""
        weights = np.ones((outputs, kernel, kernel, self.shape[-1]), np.int8)
        quantization = per_channel(outputs) if channels and outputs > 1 else Q
        return self._layer("CONV_2D", weights, quantization, (*self.shape[:-1], outputs), padding=padding)

    def depthwise(self, kernel: int, *, channels: bool = True) -> Net:
        """Append a DEPTHWISE_CONV_2D of stride 1."""
        depth = self.shape[-1]
        weights = np.ones((1, kernel, kernel, depth), np.int8)
        quantization = per_channel(depth, 3) if channels and depth > 1 else Q
        return self._layer("DEPTHWISE_CONV_2D", weights, quantization, self.shape)

    def dense(self, outputs: int) -> Net:
        """Append a FULLY_CONNECTED with one scale."""
        return self._layer("FULLY_CONNECTED", np.ones((outputs, self.shape[-1]), np.int8), Q, (1, outputs))

    def op(self, name: str, *constants: np.ndarray) -> Net:
        """Append an operator of the same shape."""
        inputs = [self.last, *(self.builder.const(f"c{len(self.builder.graph.tensors)}", c, Q) for c in constants)]
        self.last = self.builder.op(name, inputs, self.shape, dtype="int8", quantization=Q)
        return self

    def _layer(self, name: str, weights: np.ndarray, q: Quantization, shape: tuple[int, ...], **options: Any) -> Net:
        label = f"layer{len(self.builder.graph.operators)}"
        outputs = shape[-1]
        bias = Quantization(scale=(0.01,), zero_point=(0,))
        inputs = [
            self.last,
            self.builder.const(f"{label}/w", weights, q),
            self.builder.const(f"{label}/b", np.arange(1, outputs + 1, dtype=np.int32), bias),
        ]
        self.last = self.builder.op(name, inputs, shape, name=label, dtype="int8", quantization=Q, **options)
        self.shape = shape
        return self

    def graph(self) -> Graph:
        """Return the finished graph."""
        self.builder.output(self.last, "y")
        return flatbuffer.graph(flatbuffer.load(self.builder.build()))


def plan(graph: Graph, available: int | None = None) -> memory.MemoryPlan:
    """Place and lay out."""
    return memory.plan(graph, placement.predict(graph), available_bytes=available)


@pytest.mark.parametrize(
    ("net", "size"),
    [
        # 32 * (8 + 9 * 32): a compiled 3x3 convolution of 32 to 32 channels, RingCanary/coral-usb-oxidized
        (Net(1, 12, 128, 32).conv(32, 3), 9472),
        (Net(1, 12, 192, 64).conv(64, 3), 37376),
        (Net(1, 12, 184, 128).conv(128, 3), 148480),
        # 96 outputs are padded to 128: 128 * (8 + 9 * 4)
        (Net(1, 32, 32, 3).conv(96, 3), 5632),
        # one channel to one channel is depthwise: 4 * (4 * 15 * 15 + 4) in blocks of 64
        (Net(1, 30, 30, 1).conv(1, 15), 3648),
        # 1x1 depthwise, per channel: 1360 * (4 + 8), HanChangHun/EdgeTPU-Compiler-Log-Parser
        (Net(1, 24, 24, 1360).depthwise(1), 16320),
        # one scale, 24 channels: 24 * (36 + 4), in blocks
        (Net(1, 8, 8, 24).depthwise(3, channels=False), 960),
        # 128 outputs: 128 * (784 + 4)
        (Net(1, 784).dense(128), 100864),
        # an image of height 1 meets one row of the kernel: 64 * (8 + 3 * 64), RingCanary
        (Net(1, 1, 1024, 64).conv(64, 3), 12800),
    ],
)
def test_layer_sizes_of_compiled_models(net: Net, size: int) -> None:
    """The bytes of one layer equal those that the compiler stored."""
    assert plan(net.graph()).on_chip_bytes == size


def test_operators_on_the_cpu_need_no_parameters_on_the_chip() -> None:
    """Only mapped operators are laid out."""
    graph = Net(1, 8, 8, 4).conv(4, 3).graph()
    nothing = placement.Placement(
        operators=(placement.PlacedOp(index=0, op="CONV_2D", mapped=False, certainty="documented"),), subgraphs=0
    )
    assert memory.plan(graph, nothing).layers == ()


def test_constant_of_an_addition_is_streamed() -> None:
    """A constant operand of ADD is data: 16 bytes per channel, streamed though the cache is empty."""
    done = plan(Net(1, 8, 8, 32).op("ADD", np.arange(32, dtype=np.int8)).graph())
    assert (done.on_chip_bytes, done.off_chip_bytes) == (0, 512)


@pytest.mark.parametrize(("length", "cached"), [(4096, True), (14400, False), (94400, False)])
def test_long_rows_of_a_dense_layer_are_streamed(length: int, cached: bool) -> None:
    """Weights of one output beyond a lane's 8,192 bytes are streamed at any size of the model."""
    assert plan(Net(1, length).dense(1).graph()).layers[0].on_chip is cached


def test_a_model_that_fits_is_cached_whole() -> None:
    """Below the cache nothing is streamed."""
    done = plan(Net(1, 2048).dense(2048).dense(512).graph())
    assert (done.off_chip_bytes, all(layer.on_chip for layer in done.layers)) == (0, True)


def test_layers_that_do_not_fit_are_streamed_whole() -> None:
    """Of four dense layers of 2.5 MiB two are cached, as in Villarrubia's sweep (5.34 of 7.91 MiB)."""
    net = Net(1, 1600)
    for _ in range(4):
        net.dense(1600)
    done = plan(net.graph())
    assert [layer.on_chip for layer in done.layers] == [True, True, False, False]
    assert done.parameter_bytes == sum(layer.parameter_bytes for layer in done.layers) > memory.CACHE_BYTES


def test_models_compiled_together_share_the_cache_in_order() -> None:
    """The first model takes the cache, the second gets what is left."""
    models = [Net(1, 2048).dense(2048).dense(1024).graph(), Net(1, 2048).dense(1024).graph()]
    pairs = [(graph, placement.predict(graph)) for graph in models]
    together = memory.plan_cache(pairs)
    small_first = memory.plan_cache(pairs[::-1])
    assert [done.off_chip_bytes == 0 for done in together] == [True, False]
    assert small_first[0].off_chip_bytes == 0


@given(st.integers(0, 9 * MIB), st.lists(st.integers(1, 600), min_size=1, max_size=4))
def test_the_cache_is_never_overfilled(available: int, widths: list[int]) -> None:
    """Cached layers fit into what is available, and every byte is either cached or streamed."""
    net = Net(1, 512)
    for width in widths:
        net.dense(width)
    graph = net.graph()
    done = plan(graph, available)
    assert done.on_chip_bytes <= available
    assert done.parameter_bytes == sum(memory.layer_bytes(graph, op) for op in graph.ops)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5]))
def test_layers_are_whole_blocks_and_hold_their_weights(inputs: int, outputs: int, kernel: int) -> None:
    """A convolution takes a multiple of 64 bytes and at least its weights."""
    size = plan(Net(1, 8, 8, inputs).conv(outputs, kernel).graph()).parameter_bytes
    assert size % 64 == 0
    assert size >= inputs * outputs * kernel * kernel


def test_activations_peak_where_input_and_output_live() -> None:
    """The peak counts input and output of the widest operator, and its share of 16 tiles."""
    graph = Net(1, 16, 16, 8).conv(64, 1).op("RELU").graph()
    used = memory.activations(graph, placement.predict(graph))
    assert (used.peak_bytes, used.per_tile_bytes, used.op, used.risk) == (2 * 16 * 16 * 64, 2048, 1, "low")


@pytest.mark.parametrize(("side", "risk"), [(64, "low"), (512, "possible"), (1024, "high")])
def test_risk_of_large_activations(side: int, risk: str) -> None:
    """Activations beyond the tiles are possible, beyond all that was seen compiled a high risk."""
    graph = Net(1, side, side, 16).op("RELU").graph()
    assert memory.activations(graph, placement.predict(graph)).risk == risk


def test_large_activations_shrink_the_cache() -> None:
    """The cache limit falls where activations do not fit into the tiles, never below the smallest seen."""
    limits = []
    for side in (64, 512, 4096):
        graph = Net(1, side, side, 16).op("RELU").graph()
        limits.append(memory.cache_limit(graph, placement.predict(graph)))
    assert limits[0] == memory.CACHE_BYTES
    assert limits[0] > limits[1] > limits[2] == int(1.4 * MIB)


def test_an_lstm_holds_four_gates() -> None:
    """Each gate takes a dense layer over input and state: 4 * 32 * (4 + 28 + 20) bytes."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 28, 28), "int8", Q)
    gates = [builder.const(f"w{i}", np.ones((20, 28), np.int8), Q) for i in range(4)]
    gates += [builder.const(f"r{i}", np.ones((20, 20), np.int8), Q) for i in range(4)]
    builder.output(
        builder.op("UNIDIRECTIONAL_SEQUENCE_LSTM", [x, *gates], (1, 28, 20), dtype="int8", quantization=Q), "y"
    )
    assert plan(flatbuffer.graph(flatbuffer.load(builder.build()))).parameter_bytes == 4 * 32 * (4 + 28 + 20)


WITH_PARAMETERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "MEAN", "PAD", "ADD", "SOFTMAX")
SHAPES = st.lists(st.integers(1, 5), max_size=5).map(tuple)


@given(st.sampled_from((*WITH_PARAMETERS, "UNIDIRECTIONAL_SEQUENCE_LSTM", "SPLIT", "RESIZE_BILINEAR")), SHAPES, SHAPES)
def test_shapes_that_no_kernel_takes_do_not_crash(name: str, source: tuple[int, ...], weights: tuple[int, ...]) -> None:
    """Prediction of a damaged graph ends with a placement or with an error of ours."""
    builder = GraphBuilder()
    x = builder.input("x", source, "int8", Q)
    w = builder.const("w", np.ones(weights, np.int8), Q)
    builder.output(builder.op(name, [x, w], source, dtype="int8", quantization=Q), "y")
    graph = flatbuffer.graph(flatbuffer.load(builder.build()))
    try:
        assert plan(graph).parameter_bytes >= 0
    except SourceError as error:
        assert "has no input" in error.message
