"""Predict where the Edge TPU compiler puts a model's parameters: cached on the chip or streamed at every inference.

The chip computes on lanes of 4 bytes: input depth is padded to 4, output depth to 16 (to 64 above 64), and every block
to 64 bytes. The sizes below were derived from compiled models (benchmarks/edgetpu_placement.py prints how exact they
are); a size that only one source supports says so at its line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge.targets.edgetpu import rules
from edge.targets.edgetpu.placement import DEFAULT_RUNTIME, Placement
from edge.targets.litert.flatbuffer import Graph, Op, Tensor

MIB = 1 << 20
# 8 MiB of parameter memory less what the chip keeps for itself. Dense sweeps of Villarrubia cache 7.52 MiB and not
# 7.91, YOLOv5s-224 does not cache 7.78; small models report up to 8.1 MiB, which no model was seen to fill.
CACHE_BYTES = int(7.6 * MIB)
# Once something is streamed its buffers take their share: full caches hold 5.99 to 7.16 MiB (Villarrubia's
# sweeps, YOLOv5s 6.08, ResNet-18 6.15, two larger CNNs 7.14 and 7.16 in public logs). The middle of it.
STREAMING_BUFFER_BYTES = int(1.0 * MIB)
# One lane's share of the parameter memory: 8 MiB / 16 tiles / 64 lanes. The weights of one output must fit into it:
# rows of 4,096 are cached, rows of 14,400, 16,384 and 94,400 streamed, whatever the size of the model.
LANE_BYTES = 8 * MIB // 16 // 64
_BLOCK = 64

Risk = Literal["low", "possible", "high"]


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Parameters of one mapped operator as the compiler lays them out.

    `op` is the operator's index in execution order, `parameter_bytes` the size after padding and interleaving.
    """

    op: int
    name: str
    parameter_bytes: int
    on_chip: bool


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Parameters of all mapped layers that have any, in execution order; sums in bytes."""

    layers: tuple[LayerMemory, ...]
    on_chip_bytes: int
    off_chip_bytes: int

    @property
    def parameter_bytes(self) -> int:
        """On and off chip together."""
        return self.on_chip_bytes + self.off_chip_bytes


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Activation memory of the mapped operators.

    `peak_bytes` is the largest sum of tensors alive at one operator, `op` that operator, `per_tile_bytes` its even
    share of the 16 tiles. `risk` is that of "Compilation failed due to large activation tensors in model.": low where
    the peak fits into the tiles, possible above (the compiler then works in stripes), high beyond what was ever seen
    compiled.
    """

    peak_bytes: int
    per_tile_bytes: int
    op: int | None
    risk: Risk


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _outputs(count: int) -> int:
    return _up(count, 64) if count > 64 else _up(count, 16)


def _overhead(graph: Graph, op: Op, weights: Tensor) -> int:
    """Return bytes per output beside its weights: scale and offset per channel 8, an offset alone 4, neither 0."""
    scales = weights.quantization.scale if weights.quantization else ()
    if len(set(scales)) > 1:
        return 8
    bias = graph.data(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
    # A zero bias still leaves an offset: the input's zero point times the sum of the weights differs by output.
    if len(scales) > 1 or weights.shape[0] > 1 or (weights.shape[0] == 1 and weights.shape[-1] > 1 and _depthwise(op)):
        return 4
    return 4 if bias is not None and bool(np.any(bias != 0)) else 0


def _depthwise(op: Op) -> bool:
    return op.name == "DEPTHWISE_CONV_2D"


def _convolution(graph: Graph, op: Op, _: int) -> int:
    weights = graph.tensors[op.inputs[1]]
    outputs, height, width, depth = weights.shape
    if outputs == depth == 1:  # one channel to one channel is a depthwise convolution
        return _depthwise_bytes(graph, op, 1)
    height = _rows_that_see_data(graph, op, height)
    return _up(_outputs(outputs) * (_overhead(graph, op, weights) + height * width * _up(depth, 4)), _BLOCK)


def _rows_that_see_data(graph: Graph, op: Op, rows: int) -> int:
    # An image of height 1 under SAME padding meets only the middle row of the kernel; the others multiply padding.
    # A 1x1024x64 convolution with k = 3 was compiled to 12,800 bytes, one row of three.
    one_row = all(graph.tensors[i].shape[-3:-2] == (1,) for i in (op.inputs[0], op.outputs[0]))
    return 1 if one_row and op.option("padding", 0) == 0 else rows


def _depthwise_convolution(graph: Graph, op: Op, _: int) -> int:
    weights = graph.tensors[op.inputs[1]]
    channels = weights.shape[-1]
    if graph.tensors[op.inputs[0]].shape[-1:] == (1,) and channels > 1:  # multiplier on one channel: a full convolution
        taps = weights.shape[1] * weights.shape[2]
        return _up(_outputs(channels) * (4 * taps + _overhead(graph, op, weights)), _BLOCK)
    return _depthwise_bytes(graph, op, channels)


def _depthwise_bytes(graph: Graph, op: Op, channels: int) -> int:
    weights = graph.tensors[op.inputs[1]]
    taps = weights.shape[1] * weights.shape[2]
    overhead = _overhead(graph, op, weights)
    if overhead == 8 and taps > 1:
        # Per-channel kernels with a neighbourhood carry 8 bytes more per channel and one block more (ten models of
        # five authors); a 1x1 depthwise kernel does not.
        return _up(_up(channels, 4) * (4 * taps + 16), _BLOCK) + _BLOCK
    return _up(_up(channels, 4) * (4 * taps + overhead), _BLOCK)


def _transpose_convolution(graph: Graph, op: Op, _: int) -> int:
    weights = graph.tensors[op.inputs[1]]
    outputs, height, width, depth = weights.shape
    cells = height * width * _up(depth, 4)
    return _up(_outputs(outputs) * (_overhead(graph, op, weights) + cells), _BLOCK) + _BLOCK


def _fully_connected(graph: Graph, op: Op, _: int) -> int:
    constant = [graph.tensors[t] for t in op.inputs[:2] if graph.tensors[t].is_constant]
    if not constant or len(constant[0].shape) != 2:
        return 0
    outputs, depth = constant[0].shape
    return _up(_outputs(outputs) * (_overhead(graph, op, constant[0]) + _up(depth, 4)), _BLOCK)


def _softmax(graph: Graph, op: Op, runtime: int) -> int:
    source = graph.tensors[op.inputs[0]]
    classes = source.shape[-1] if source.shape else 1
    if runtime < DEFAULT_RUNTIME and source.dtype == "uint8":
        return 0  # the older compilers' form has no table
    # A flattened one-channel image (soft-argmax, 256 to 16,384 cells in one author's models) needs one table only.
    return 192 if _flattened_image(graph, op.inputs[0]) else _up(48 * classes, _BLOCK) + 2 * _BLOCK


def _flattened_image(graph: Graph, tensor: int) -> bool:
    producer = graph.producers().get(tensor)
    if producer is None or graph.ops[producer].name != "RESHAPE":
        return False
    shape = graph.tensors[graph.ops[producer].inputs[0]].shape
    return len(shape) == 4 and shape[-1] == 1 and shape[1] * shape[2] > 1


def _logistic(graph: Graph, op: Op, runtime: int) -> int:
    del graph, op, runtime
    return 192


def _mean(graph: Graph, op: Op, _: int) -> int:
    source = graph.tensors[op.inputs[0]].shape
    return _up(3 * source[-1], _BLOCK) if len(source) == 4 else 0


def _pad(graph: Graph, op: Op, runtime: int) -> int:
    depth = max(graph.tensors[op.inputs[0]].shape[-1:], default=0)
    # Observed in padded MobileNets of two authors; runtime 10 files and 3-channel images carry nothing.
    return _up(11 * depth, _BLOCK) if runtime >= 12 and depth > 4 else 0


def _elementwise(graph: Graph, op: Op, _: int) -> int:
    total = 0
    for tensor in (graph.tensors[t] for t in op.inputs if t >= 0 and graph.tensors[t].is_constant):
        vector = tensor.elements > 1 and tensor.shape[-1:] == (tensor.elements,)
        total += _up(tensor.elements * (16 if vector else 1), _BLOCK) if tensor.elements > 1 else 0
    return total


def _lstm(graph: Graph, op: Op, _: int) -> int:
    """Four gates, each one dense layer over input and state (extrapolated: the layout of no LSTM is known)."""
    total = 0
    for weights, recurrent in zip(op.inputs[1:5], op.inputs[5:9], strict=False):
        if weights < 0 or recurrent < 0:  # coupled input and forget gate
            continue
        units, depth = graph.tensors[weights].shape
        total += _up(_outputs(units) * (4 + _up(depth, 4) + _up(graph.tensors[recurrent].shape[-1], 4)), _BLOCK)
    return total


# Rank that the weights of an operator, its input 1, must have.
_WEIGHT_RANK = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "TRANSPOSE_CONV": 4, "UNIDIRECTIONAL_SEQUENCE_LSTM": 2}
_BYTES: dict[str, Callable[[Graph, Op, int], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise_convolution,
    "TRANSPOSE_CONV": _transpose_convolution,
    "FULLY_CONNECTED": _fully_connected,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "SOFTMAX": _softmax,
    "LOGISTIC": _logistic,
    "MEAN": _mean,
    "PAD": _pad,
    "ADD": _elementwise,
    "SUB": _elementwise,
    "MUL": _elementwise,
    "MAXIMUM": _elementwise,
    "MINIMUM": _elementwise,
    "PACK": _elementwise,
}
_STREAMED_CONSTANTS = ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "PACK")
# Largest activations of one operator (input and output) in a model that was seen compiled: 1024x512 MobileNet v2.
_LARGEST_SEEN_BYTES = 26 * MIB


def layer_bytes(graph: Graph, op: Op, *, min_runtime_version: int = DEFAULT_RUNTIME) -> int:
    """Return the bytes of an operator's parameters as the compiler lays them out, 0 for one without parameters."""
    measure = _BYTES.get(op.name)
    if measure is None or len(op.inputs) == 0 or op.inputs[0] < 0:
        return 0
    rank = _WEIGHT_RANK.get(op.name)
    lacking = len(op.inputs) < 2 or op.inputs[1] < 0
    if rank and (lacking or len(graph.tensors[op.inputs[1]].shape) != rank):
        return 0
    if op.name == "FULLY_CONNECTED" and lacking:
        return 0
    return measure(graph, op, min_runtime_version)


def _never_cached(graph: Graph, op: Op) -> bool:
    """Answer whether the parameters are streamed at any size: constants that are data, rows too long for a lane."""
    if op.name in _STREAMED_CONSTANTS:
        return True
    if op.name != "FULLY_CONNECTED":
        return False
    first, second = (graph.tensors[t] for t in op.inputs[:2])
    return (first.is_constant and not second.is_constant) or (second.is_constant and second.shape[-1] > LANE_BYTES)


def plan(
    graph: Graph,
    placement: Placement,
    *,
    min_runtime_version: int = DEFAULT_RUNTIME,
    available_bytes: int | None = None,
) -> MemoryPlan:
    """Lay out the parameters of the mapped operators and split them into cached and streamed ones, by whole layers.

    `available_bytes` is what earlier models of a co-compilation left of the cache (default: all of it, less what large
    activations take). If not everything fits, streaming buffers are set aside and layers are cached in execution order
    while they fit. The split is the least certain part of the prediction: `extrapolated` between 6 and 7.6 MiB.
    """
    limit = cache_limit(graph, placement) if available_bytes is None else available_bytes
    measured = (
        (op, layer_bytes(graph, op, min_runtime_version=min_runtime_version))
        for op, mapped in zip(graph.ops, placement.mapped, strict=True)
        if mapped
    )
    sizes = [(op, size) for op, size in measured if size]
    fits = sum(size for op, size in sizes if not _never_cached(graph, op)) <= limit
    left = limit if fits else limit - STREAMING_BUFFER_BYTES
    layers = []
    for op, size in sizes:
        cached = not _never_cached(graph, op) and size <= left
        left -= size if cached else 0
        layers.append(LayerMemory(op=op.index, name=_name(graph, op), parameter_bytes=size, on_chip=cached))
    return MemoryPlan(
        layers=tuple(layers),
        on_chip_bytes=sum(layer.parameter_bytes for layer in layers if layer.on_chip),
        off_chip_bytes=sum(layer.parameter_bytes for layer in layers if not layer.on_chip),
    )


def _name(graph: Graph, op: Op) -> str:
    return graph.tensors[op.outputs[0]].name if op.outputs else op.name


def plan_cache(
    models: Sequence[tuple[Graph, Placement]], *, min_runtime_version: int = DEFAULT_RUNTIME
) -> tuple[MemoryPlan, ...]:
    """Lay out several models compiled together: they share the cache, the earlier ones take it first.

    The compiler gives them one caching token, so switching between them does not reload what is cached.
    """
    left = min((cache_limit(graph, placement) for graph, placement in models), default=CACHE_BYTES)
    plans = []
    for graph, placement in models:
        done = plan(graph, placement, min_runtime_version=min_runtime_version, available_bytes=left)
        left = max(0, left - done.on_chip_bytes)
        plans.append(done)
    return tuple(plans)


def cache_limit(graph: Graph, placement: Placement) -> int:
    """Return the bytes available for cached parameters: they shrink where activations do not fit into the tiles.

    A tenth of what is above the tiles' 3 MiB is taken off, which gives the 7.0 MiB that DeepLab (513x513) reports and
    7.5 MiB of EfficientDet-lite0; not below 1.4 MiB, the smallest seen (SRGAN). Extrapolated.
    """
    book = rules.load()
    spill = activations(graph, placement).peak_bytes - book.tiles * book.narrow_bytes
    return max(int(1.4 * MIB), CACHE_BYTES - max(0, spill) // 10)


def activations(graph: Graph, placement: Placement) -> Activations:
    """Return the peak of activation memory over the mapped operators, each tensor alive from producer to last use."""
    book = rules.load()
    last = {t: op.index for op in graph.ops for t in op.inputs if t >= 0}
    last |= dict.fromkeys(graph.outputs, len(graph.ops))
    alive: dict[int, int] = {t: graph.tensors[t].nbytes for t in graph.inputs}
    peak, at = 0, None
    for op, mapped in zip(graph.ops, placement.mapped, strict=True):
        alive |= {t: graph.tensors[t].nbytes for t in op.outputs}
        size = sum(alive.values())
        if mapped and size > peak:
            peak, at = size, op.index
        alive = {t: n for t, n in alive.items() if last.get(t, -1) > op.index}
    tiles = book.tiles * book.narrow_bytes
    risk: Risk = "low" if peak <= tiles else "possible" if peak <= _LARGEST_SEEN_BYTES else "high"
    return Activations(peak_bytes=peak, per_tile_bytes=-(-peak // book.tiles), op=at, risk=risk)
