"""Cross-layer equalization of a float flatbuffer: pairs of layers joined by what scales with its input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration import equalize as arithmetic
from edge.calibration.recipe import Recipe
from edge.targets.litert import edit, flatbuffer, probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Axis of the output channels in the weights, and of the input channels (None: one weight per channel).
WRITERS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_READERS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": None, "FULLY_CONNECTED": 1}
_LINEAR, _RELU, _RELU6 = 0, 1, 3  # schema: ActivationFunctionType
# f(s x) = s f(x) for s > 0, channel by channel. MEAN is checked for its axes.
_HOMOGENEOUS = frozenset({"RELU", "RELU6", "LEAKY_RELU", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "MEAN"})
_CAP = 6.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers by operator index; `tensor` is the first one's output, `capped` whether a ReLU6 stands between."""

    first: int
    second: int
    tensor: int
    capped: bool


def apply(model: Any, recipe: Recipe, samples: Iterable[Any], *, threads: int = 1) -> int:
    """Equalize all pairs of a checked float `ModelT` in place; return how many channels were scaled.

    Costs one pass over `samples`. Float outputs stay equal to the bit for inputs whose ReLU6 channels stay below 6
    where the samples' do.
    """
    pairs = list(find_pairs(model))
    if not pairs:
        return 0
    tensors = {p.tensor for p in pairs}
    peaks = probe.channel_peaks(flatbuffer.dump(model), (s.inputs for s in samples), tensors, threads=threads)
    return sum(_scale(model, pair, peaks[pair.tensor], recipe) for pair in pairs)


def find_pairs(model: Any) -> Iterator[Pair]:
    """Yield the pairs of subgraph 0 whose intermediate tensors are read once and are no outputs."""
    graph = flatbuffer.graph(model)
    readers = graph.consumers()
    for op in graph.ops:
        if _own_weights(graph, op, readers) is None or op.option("fusedActivationFunction") not in (
            _LINEAR,
            _RELU,
            _RELU6,
        ):
            continue
        second, capped = _follow(graph, op, readers)
        if second is not None and _reads_channels(graph, op, second, readers):
            yield Pair(first=op.index, second=second.index, tensor=op.outputs[0], capped=capped)


def _own_weights(graph: flatbuffer.Graph, op: flatbuffer.Op, readers: Mapping[int, list[int]]) -> NDArray[Any] | None:
    """Return a layer's constant float weights, None where another operator shares them or its bias."""
    if op.name not in WRITERS:
        return None
    parameters = [t for t in op.inputs[1:3] if t >= 0]
    if any(graph.data(t) is None or graph.tensors[t].dtype != "float32" or len(readers[t]) > 1 for t in parameters):
        return None
    return graph.data(op.inputs[1])


def _follow(
    graph: flatbuffer.Graph, op: flatbuffer.Op, readers: Mapping[int, list[int]]
) -> tuple[flatbuffer.Op | None, bool]:
    capped = op.option("fusedActivationFunction") == _RELU6
    tensor = op.outputs[0]
    while tensor not in graph.outputs and len(readers.get(tensor, ())) == 1:
        following = graph.ops[readers[tensor][0]]
        if following.name in _READERS:
            return (following if following.inputs[0] == tensor else None), capped
        if not _passes_scale(graph, following):
            break
        capped = capped or following.option("fusedActivationFunction") == _RELU6 or following.name == "RELU6"
        tensor = following.outputs[0]
    return None, capped


def _passes_scale(graph: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    if op.name not in _HOMOGENEOUS or op.option("fusedActivationFunction", _LINEAR) not in (_LINEAR, _RELU, _RELU6):
        return False
    if op.name != "MEAN":
        return True
    axes, rank = graph.data(op.inputs[1]), len(graph.tensors[op.inputs[0]].shape)
    return axes is not None and not {int(a) % rank for a in axes.reshape(-1)} & {0, rank - 1}


def _reads_channels(
    graph: flatbuffer.Graph, first: flatbuffer.Op, second: flatbuffer.Op, readers: Mapping[int, list[int]]
) -> bool:
    """Tell whether the second layer's input channels are the first one's output channels, one to one."""
    weights = _own_weights(graph, second, readers)
    if weights is None:
        return False
    channels = graph.tensors[first.outputs[0]].shape[-1]
    axis = _READERS[second.name]
    read = weights.shape[3 if axis is None else axis]
    return bool(read == channels == graph.tensors[second.inputs[0]].shape[-1])


def _scale(model: Any, pair: Pair, peaks: Floats, recipe: Recipe) -> int:
    graph = model.subgraphs[0]
    first, second = graph.operators[pair.first], graph.operators[pair.second]
    names = [flatbuffer.operator_name(model, op)[0] for op in (first, second)]
    axis, reading = WRITERS[names[0]], _READERS[names[1]]
    weights, reader = (flatbuffer.constant(model, graph.tensors[op.inputs[1]]) for op in (first, second))
    assert weights is not None
    assert reader is not None
    grown = None if reading is None else magnitudes(reader, reading)
    shrunk = peaks if recipe.granularity == "channel" else magnitudes(weights, axis)
    scales = arithmetic.factors(shrunk, grown)
    if pair.capped:
        scales = arithmetic.within_cap(scales, peaks, _CAP)
    _multiply(model, graph.tensors[first.inputs[1]], 1 / scales, axis)
    if len(first.inputs) > 2 and first.inputs[2] >= 0:
        _multiply(model, graph.tensors[first.inputs[2]], 1 / scales, 0)
    _multiply(model, graph.tensors[second.inputs[1]], scales, 3 if reading is None else reading)
    return int(np.count_nonzero(scales != 1))


def magnitudes(weights: Any, axis: int) -> Floats:
    """Return the largest magnitude of weights per index of an axis, [C]."""
    flat = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.float64)
    return np.asarray(np.abs(flat).max(axis=1))


def _multiply(model: Any, tensor: Any, scales: Floats, axis: int) -> None:
    values = flatbuffer.constant(model, tensor)
    assert values is not None
    shape = [1] * values.ndim
    shape[axis] = scales.size
    edit.set_constant(model, tensor, (values.astype(np.float64) * scales.reshape(shape)).astype(np.float32))
