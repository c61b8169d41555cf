"""Observe what layers read through operators that only move values, where FX leaves that float.

FX gives `reshape` and its like the form of what they read: from an input of the program, or from an operator without a
quantized kernel, they read floats, and the layer behind them, that counted on integers, would stay float as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOVERS = frozenset(
    {"reshape", "view", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "narrow", "slice"}
)


def observe(prepared: Any) -> int:
    """Insert an observer where such a chain begins, and the same one behind each mover; return how many chains."""
    count = 0
    for layer in list(prepared.graph.nodes):
        chain = _chain(prepared, layer)
        if chain:
            _insert(prepared, layer, chain, f"feeding_observer_{count}")
            count += 1
    if count:
        prepared.recompile()
    return count


def _chain(prepared: Any, layer: Any) -> list[Any]:
    """Return the unobserved movers from a layer's input backwards; empty where there are none, or FX observes them."""
    if not _quantized(prepared, layer):
        return []
    chain = []
    at = layer.args[0]
    while _name(at) in _MOVERS:
        chain.append(at)
        at = at.args[0]
    return [] if _is_observer(prepared, at) or not _is_float(at) else chain


def _quantized(prepared: Any, node: Any) -> bool:
    """Tell whether a node calls a layer with static weights that is to be quantized."""
    import torch
    from torch.ao.nn import intrinsic

    if node.op != "call_module":
        return False
    held = prepared.get_submodule(node.target)
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd, intrinsic.modules.fused._FusedModule)
    return isinstance(held, kinds) and getattr(held, "qconfig", None) is not None


def _name(node: Any) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _is_observer(prepared: Any, node: Any) -> bool:
    from torch.ao.quantization import MinMaxObserver

    return node.op == "call_module" and isinstance(prepared.get_submodule(node.target), MinMaxObserver)


def _is_float(node: Any) -> bool:
    """Tell whether a value is known to be a float tensor; where nothing is known it is taken for one."""
    import torch

    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _insert(prepared: Any, layer: Any, chain: list[Any], name: str) -> None:
    held = prepared.get_submodule(layer.target)
    prepared.add_submodule(name, held.qconfig.activation())
    for mover, reader in _steps(layer, chain):
        source = mover
        with prepared.graph.inserting_after(source):
            seen = prepared.graph.call_module(name, (source,))
        reader.replace_input_with(source, seen)


def _steps(layer: Any, chain: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield what is read and who reads it, from the layer backwards to where the chain begins."""
    yield chain[0], layer
    for reader, source in zip(chain, [*chain[1:], chain[-1].args[0]], strict=True):
        yield source, reader
