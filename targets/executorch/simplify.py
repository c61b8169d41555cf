"""Rewrite what ExecuTorch has no good kernel for: identities, and paddings that its runtime or XNNPACK refuses.

An `aten.alias` becomes a copy by a portable kernel, and a padding by negative numbers, which crops, fails at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_IDENTITIES = ("aten.alias.default", "aten.detach.default")
_PADS = ("aten.pad.default", "aten.constant_pad_nd.default")
_QUANTIZE, _DEQUANTIZE = (f"quantized_decomposed.{way}_per_tensor.default" for way in ("quantize", "dequantize"))


def needed(graph: Any) -> bool:
    """Tell whether `apply` would change this graph."""
    return any(_is_identity(node) or _crops(node) for node in graph.nodes)


def apply(module: Any) -> Any:
    """Take identities out of a graph module, and write paddings by negative numbers as slices; return the module."""
    for node in list(module.graph.nodes):
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif _crops(node):
            _cropped(module.graph, node)
    module.recompile()
    return module


def quantize_pads(graph: Any) -> Any:
    """Give paddings with zeros of a quantized tensor, in a graph module, the steps of that tensor; return the module.

    0 and the tensor's values are of these steps, so that nothing is rounded. XNNPACK's pass over paddings takes those
    that it finds unquantized for integer ones, also where their input is a float tensor by then, and the delegate is
    not loaded.
    """
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if not pads_with_zeros(node) or not _calls(source, _DEQUANTIZE):
            continue
        if any(_calls(user, _QUANTIZE) for user in node.users):
            continue
        _pair(graph.graph, node, source)
    graph.recompile()
    return graph


def pads_with_zeros(node: Any) -> bool:
    """Tell whether a node is a padding by a constant of 0."""
    return _is_pad(node) and _fill(node) == 0.0


def _is_identity(node: Any) -> bool:
    # The inputs of a program are not its outputs: there the copy is needed.
    at_both_ends = any(user.op == "output" for user in node.users)
    return any(_calls(node, name) for name in _IDENTITIES) and not (at_both_ends and node.args[0].op != "call_function")


def _is_pad(node: Any) -> bool:
    if not any(_calls(node, name) for name in _PADS) or not all(isinstance(n, int) for n in node.args[1]):
        return False
    return "constant_pad" in str(node.target) or _argument(node, 2, "mode", "constant") == "constant"


def _crops(node: Any) -> bool:
    return _is_pad(node) and any(n < 0 for n in node.args[1])


def _fill(node: Any) -> float:
    place = 2 if "constant_pad" in str(node.target) else 3
    return float(_argument(node, place, "value", None) or 0.0)


def _argument(node: Any, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _cropped(graph: Any, node: Any) -> None:
    """Write a padding as slices, one per dimension that loses values, and a padding of the others."""
    import torch

    numbers: Sequence[int] = node.args[1]
    value = node.args[0]
    with graph.inserting_before(node):
        for number in range(0, len(numbers), 2):
            before, after = numbers[number], numbers[number + 1]
            if min(before, after) < 0:
                # Paddings are listed from the last dimension on; the end counts from behind, for open sizes too.
                bounds = (-1 - number // 2, max(0, -before), after if after < 0 else None)
                value = graph.call_function(torch.ops.aten.slice.Tensor, (value, *bounds))
        if any(n > 0 for n in numbers):
            kept = [max(0, n) for n in numbers]
            value = graph.call_function(torch.ops.aten.constant_pad_nd.default, (value, kept, _fill(node)))
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _pair(graph: Any, node: Any, source: Any) -> None:
    """Quantize and dequantize the result of a node with the parameters of a dequantization."""
    import torch

    operators = torch.ops.quantized_decomposed
    with graph.inserting_after(node):
        rounded = graph.call_function(operators.quantize_per_tensor.default, (node, *source.args[1:]))
    with graph.inserting_after(rounded):
        back = graph.call_function(operators.dequantize_per_tensor.default, (rounded, *source.args[1:]))
    rounded.meta = back.meta = dict(node.meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not rounded)


def _calls(node: Any, name: str) -> bool:
    return getattr(node, "op", None) == "call_function" and str(node.target) == name
