"""The activations inside of XNNPACK's subgraphs of a `.pte`: the file plans the memory around them only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge.targets import arena
from edge.targets.executorch import work
from edge.targets.executorch.lower import CONTRACT_METHOD
from edge.targets.executorch.xnnpack_graph import DelegateGraph

_ALIGNMENT = 64
# The result takes the place of what it is made of.
_IN_PLACE = frozenset(("StaticReshape", "Clamp"))


def delegate_bytes(file: Any) -> dict[str, int | None]:
    """Return by method the bytes of the largest workspace that a subgraph needs, None where that is not known.

    Subgraphs run one after another in one workspace, as ExecuTorch is built by default. Scratch buffers of kernels and
    packed weights come on top. `file` is ExecuTorch's own record (`PTEFile`).
    """
    plans = [plan for plan in file.program.execution_plan if plan.name != CONTRACT_METHOD]
    return {plan.name: _largest(file, plan) for plan in plans}


def _largest(file: Any, plan: Any) -> int | None:
    try:
        return max((workspace_bytes(work.delegate_graph(file, d)) for d in plan.delegates), default=0)
    except ValueError:
        return None


def workspace_bytes(graph: DelegateGraph) -> int:
    """Return the bytes of a subgraph's inner tensors: neither constants nor its ends, which lie outside of it."""
    return arena.planned_bytes(_lifetimes(graph))


def _lifetimes(graph: DelegateGraph) -> Iterator[tuple[int, int, int]]:
    place: dict[int, int] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.outputs:
            inner = value not in graph.ends and node.kind in _IN_PLACE and node.inputs[0] in place
            place[value] = place[node.inputs[0]] if inner else value
            first.setdefault(place[value], index)
            last[place[value]] = index
        last |= {place[v]: index for v in node.inputs if v in place}
    for value, begin in first.items():
        if value not in graph.ends:
            yield -(-graph.values[value].nbytes // _ALIGNMENT) * _ALIGNMENT, begin, last[value]
