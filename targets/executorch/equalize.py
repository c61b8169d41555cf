"""Cross-layer equalization of a prepared PT2E graph: pairs of layers joined by what scales with its input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration import equalize as arithmetic
from edge.calibration.recipe import Recipe
from edge.signature import Signature
from edge.targets.executorch import probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CONVOLUTIONS = frozenset({"aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default"})
_LINEAR = "aten.linear.default"
_GROUPS = 6
# f(s x) = s f(x) for s > 0, channel by channel; means are checked for their axes.
_HOMOGENEOUS = frozenset(
    f"aten.{name}"
    for name in (
        "relu.default",
        "relu_.default",
        "leaky_relu.default",
        "max_pool1d.default",
        "max_pool2d.default",
        "avg_pool1d.default",
        "avg_pool2d.default",
        "adaptive_avg_pool1d.default",
        "adaptive_avg_pool2d.default",
        "constant_pad_nd.default",
        "dropout.default",
        "clone.default",
    )
)
_CAPPING = frozenset({"aten.relu6.default", "aten.hardtanh.default", "aten.hardtanh_.default", "aten.relu6_.default"})
_FLATTENING = frozenset(f"aten.{name}" for name in ("flatten.using_ints", "view.default", "reshape.default"))
_MEAN = "aten.mean.dim"
_CAP = 6.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers; `between` is the value that the second reads, `capped` whether a ReLU6 made it, `axis` its channels'.

    All three are nodes of the graph.
    """

    first: Any
    second: Any
    between: Any
    capped: bool
    axis: int


def apply(graph: Any, signature: Signature, recipe: Recipe, samples: Iterable[Any]) -> int:
    """Equalize all pairs of a prepared float graph in place, before it is calibrated; return the channels scaled.

    Costs one pass over `samples`. Factors are powers of two, so that float outputs stay as they are for inputs whose
    ReLU6 channels stay below 6 where the samples' do.
    """
    pairs = list(find_pairs(graph))
    if not pairs:
        return 0
    peaks = channel_peaks(graph, signature, samples, pairs)
    return sum(_scale(graph, pair, peaks[pair.between.name], recipe) for pair in pairs)


def find_pairs(graph: Any) -> Iterator[Pair]:
    """Yield the pairs whose values in between are read once and whose parameters no other operator reads."""
    for node in probe.linear_nodes(graph):
        if str(node.target) not in _CONVOLUTIONS | {_LINEAR} or not _own(graph, node):
            continue
        pair = _follow(node)
        if pair is not None and _own(graph, pair.second) and _reads_channels(graph, pair):
            yield pair


def channel_peaks(graph: Any, signature: Signature, samples: Iterable[Any], pairs: Iterable[Pair]) -> dict[str, Floats]:
    """Return the largest magnitude per channel of what each pair's second layer reads, [C], by the node's name."""
    axes = {p.between.name: p.axis for p in pairs}
    found: dict[str, Floats] = {}
    for sample in samples:
        for name, value in probe.values(graph, signature, sample.inputs, set(axes)).items():
            peaks = magnitudes(value, axes[name])
            found[name] = np.maximum(found[name], peaks) if name in found else peaks
    return found


def reading(graph: Any, node: Any) -> Floats | None:
    """Return the largest weight per input channel, [C]; None for a depthwise layer, whose channels stand alone."""
    weights = _parameter(graph, node, 1)
    return None if _depthwise(node, weights) else magnitudes(weights.detach().numpy(), 1)


def magnitudes(values: Any, axis: int) -> Floats:
    """Return the largest magnitude per index of an axis, [C]."""
    flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    return np.asarray(np.abs(flat).max(axis=1))


def _own(graph: Any, node: Any) -> bool:
    """Tell whether a layer's weights and bias are float constants that only it reads."""
    places = [1, *([2] if len(node.args) > 2 and node.args[2] is not None else [])]
    return all(_parameter(graph, node, place) is not None for place in places)


def _parameter(graph: Any, node: Any, place: int) -> Any:
    """Return the float constant at an argument, behind its observer; None where it is another's too, or computed."""
    source = node.args[place] if len(node.args) > place else None
    while source is not None and source.op == "call_module" and len(source.users) == 1:
        source = source.args[0]
    if source is None or source.op != "get_attr" or len(source.users) > 1:
        return None
    if sum(n.op == "get_attr" and n.target == source.target for n in graph.graph.nodes) > 1:
        return None
    found: Any = graph
    for part in str(source.target).split("."):
        found = getattr(found, part)
    return found if found.is_floating_point() else None


def _depthwise(node: Any, weights: Any) -> bool:
    groups = node.args[_GROUPS] if len(node.args) > _GROUPS else 1
    return bool(str(node.target) in _CONVOLUTIONS and groups == weights.shape[0] > 1)


def _follow(node: Any) -> Pair | None:
    """Return the pair that a layer begins, whatever its parameters; None where none follows."""
    axis = probe.LINEAR[str(node.target)][1] % _rank(node)
    value, capped = node, False
    while len(value.users) == 1:
        following = next(iter(value.users))
        if following.op == "call_module":  # its observer
            value = following
            continue
        if following.op != "call_function" or following.args[0] is not value:
            return None
        name = str(following.target)
        if name in _CONVOLUTIONS | {_LINEAR}:
            return Pair(first=node, second=following, between=_behind_observer(value), capped=capped, axis=axis)
        moved = _passes(following, axis)
        if moved is None:
            return None
        capped = capped or name in _CAPPING
        value, axis = following, moved
    return None


def _behind_observer(node: Any) -> Any:
    return node.args[0] if node.op == "call_module" else node


def _rank(node: Any) -> int:
    return len(node.meta["val"].shape)


def _passes(node: Any, axis: int) -> int | None:
    """Return the axis of the channels behind an operator that scales with each of them, None for another one."""
    name = str(node.target)
    if name in _HOMOGENEOUS:
        return None if name == "aten.constant_pad_nd.default" and _pads_otherwise(node, axis) else axis
    if name in _CAPPING:
        limits = tuple(node.args[1:3]) if "hardtanh" in name else (0.0, _CAP)
        return axis if limits in ((0, _CAP), (0.0, _CAP)) else None
    before, after = _behind_observer(node.args[0]).meta["val"], node.meta["val"]
    if name == _MEAN:
        rank = len(before.shape)
        gone = {a % rank for a in node.args[1]} if len(node.args) > 1 and node.args[1] else set(range(rank))
        kept = bool(node.args[2]) if len(node.args) > 2 else False
        return None if axis in gone else axis - (0 if kept else sum(a < axis for a in gone))
    if name in _FLATTENING and all(n == 1 for i, n in enumerate(before.shape) if i > axis):
        sizes = [i for i, n in enumerate(after.shape) if i >= axis and n == before.shape[axis]]
        return sizes[0] if sizes and len(after.shape) <= len(before.shape) and sizes[0] == axis else None
    return None


def _pads_otherwise(node: Any, axis: int) -> bool:
    """Tell whether a padding touches the channels, or writes a number that would have to be scaled with them."""
    padded = {_rank(node) - 1 - i // 2 for i, n in enumerate(node.args[1]) if n}
    return axis in padded or (len(node.args) > 2 and node.args[2] != 0)


def _reads_channels(graph: Any, pair: Pair) -> bool:
    """Tell whether the second layer's input channels are the first one's output channels, one to one."""
    weights, channels = _parameter(graph, pair.second, 1), pair.first.meta["val"]
    count = channels.shape[probe.LINEAR[str(pair.first.target)][1]]
    between = pair.between.meta["val"]
    reader = str(pair.second.target)
    if pair.axis != (len(between.shape) - 1 if reader == _LINEAR else 1) or between.shape[pair.axis] != count:
        return False
    groups = pair.second.args[_GROUPS] if reader in _CONVOLUTIONS and len(pair.second.args) > _GROUPS else 1
    return bool(weights.shape[1] == count if groups == 1 else _depthwise(pair.second, weights) and groups == count)


def _scale(graph: Any, pair: Pair, peaks: Floats, recipe: Recipe) -> int:
    weights = _parameter(graph, pair.first, 1)
    shrunk = peaks if recipe.granularity == "channel" else magnitudes(weights.detach().numpy(), 0)
    scales = arithmetic.factors(shrunk, reading(graph, pair.second))
    if pair.capped:
        scales = arithmetic.within_cap(scales, peaks, _CAP)
    _multiply(weights, 1 / scales, 0)
    bias = _parameter(graph, pair.first, 2)
    if bias is not None:
        _multiply(bias, 1 / scales, 0)
    second = _parameter(graph, pair.second, 1)
    _multiply(second, scales, 0 if _depthwise(pair.second, second) else 1)
    return int(np.count_nonzero(scales != 1))


def _multiply(tensor: Any, scales: Floats, axis: int) -> None:
    shape = [1] * tensor.dim()
    shape[axis] = scales.size
    tensor.data = tensor.data * tensor.new_tensor(scales).reshape(shape)
