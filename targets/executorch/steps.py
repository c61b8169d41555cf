"""Keep the steps of an int8 graph within what integer kernels hold: 32-bit biases, ratios of steps below 256.

A layer adds its bias in units of (input step) x (weight step), as an int32, and goes over to its output's step by the
ratio (input step) x (weight step) / (output step), which XNNPACK takes below 256 only: a program with another one is
not loaded. A channel whose weights are tiny or zero (a batch normalisation that has died) needs no fine step, but would
get one in which its bias does not fit; an output that hardly varies would get one that is too fine for its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge.targets.executorch import calibrate, probe

# A quarter of the int32 range: the products of the layer are added to the bias.
_LARGEST_BIAS = 2.0**29
_LARGEST_RATIO = 128.0
_PASSES = 8


def hold(graph: Any) -> int:
    """Coarsen, in a prepared graph that has seen its data, the steps that do not hold; return how many tensors.

    Weights of channels with a small step and a large bias, and outputs that vary too little for their input.
    """
    coarser: set[str] = set()
    for _ in range(_PASSES):  # an output's step is another layer's input step
        found = {name for node in probe.linear_nodes(graph) for name in _held(graph, node)}
        if not found:
            break
        coarser |= found
    return len(coarser)


def _held(graph: Any, node: Any) -> Iterator[str]:
    """Coarsen the steps of one layer; yield the nodes of the observers that were changed."""
    before, weight, after = _observer(graph, node.args[0]), _observer(graph, node.args[1]), _after(graph, node)
    if before is None or weight is None or not hasattr(weight, "max_val") or not weight.max_val.numel():
        return
    step = float(before.calculate_qparams()[0])
    bias = _bias(graph, node)
    if bias is not None and _widened(weight, bias.detach().abs() / (step * _LARGEST_BIAS)):
        yield str(node.args[1].name)
    if after is None:
        return
    least = step * float(weight.calculate_qparams()[0].max()) / _LARGEST_RATIO
    if float(after.calculate_qparams()[0]) < least:
        after.least_step = least * (1 + 2.0**-20)  # float32 rounds it
        yield str(node.name)


def _widened(weight: Any, least: Any) -> bool:
    """Widen the range of a weight observer to a step of `least`, [C]; tell whether that changed anything."""
    import torch

    steps = weight.calculate_qparams()[0]
    wanted = least.to(steps.dtype) if steps.numel() == least.numel() else least.max().reshape(steps.shape)
    if not bool((steps < wanted).any()):
        return False
    limit = wanted * (1 + 2.0**-20) * (weight.quant_max - weight.quant_min) / 2
    weight.max_val = torch.maximum(weight.max_val, limit.reshape(weight.max_val.shape))
    return True


def _observer(graph: Any, node: Any) -> Any:
    """Return the observer that a node calls; None for a node of another kind."""
    if getattr(node, "op", None) != "call_module":
        return None
    found = graph.get_submodule(node.target)
    return found if hasattr(found, "calculate_qparams") and not getattr(found, "is_dynamic", False) else None


def _after(graph: Any, node: Any) -> Any:
    """Return the observer of a layer's output, behind a fused activation too; None where it has none of edgekit's."""
    for _ in range(2):
        users = [u for u in node.users if "sym_size" not in str(u.target)]
        found = _observer(graph, users[0]) if len(users) == 1 else None
        if found is not None or len(users) != 1:
            return found if isinstance(found, calibrate.observer_class()) else None
        node = users[0]
    return None


def _bias(graph: Any, node: Any) -> Any:
    place = probe.LINEAR[str(node.target)][0]
    source: Any = node.args[place] if len(node.args) > place else None
    if getattr(source, "op", None) != "get_attr":
        return None
    found: Any = graph
    for part in str(source.target).split("."):
        found = getattr(found, part)
    return found
