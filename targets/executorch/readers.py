"""Give readers of a dequantized value one each, where a delegate could not take them together."""

from __future__ import annotations

from typing import Any

_DEQUANTIZE = "quantized_decomposed.dequantize_per"


def separate(graph: Any) -> int:
    """Copy each `dequantize` that two nodes read of which one needs the other; return how many have been copied.

    A delegate takes an operator with the `dequantize` before it. Where a second reader stays outside (a sum whose value
    comes back to the first, as in a layer norm written out), the part taken would have to run before and after it:
    ExecuTorch then refuses the whole program with "found dependency cycles".
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _DEQUANTIZE in str(node.target) and _in_turn(list(node.users)):
            for reader in list(node.users)[1:]:
                with graph.graph.inserting_after(node):
                    copy = graph.graph.node_copy(node)
                reader.replace_input_with(node, copy)
            count += 1
    if count:
        graph.recompile()
    return count


def _in_turn(readers: list[Any]) -> bool:
    """Tell whether one of the nodes depends on another of them."""
    if len(readers) < 2:
        return False
    wanted, seen = set(readers), set()
    waiting = [user for reader in readers for user in reader.users]
    while waiting:
        node = waiting.pop()
        if node in wanted:
            return True
        if node not in seen:
            seen.add(node)
            waiting += node.users
    return False
