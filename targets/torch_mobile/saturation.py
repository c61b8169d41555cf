"""ReLU6 without its kernel: a ReLU whose quantized output ends at 6, because the observer after it never sees more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_LIMIT = 6.0
# Operators whose results lie between their inputs: sharing an observer with a saturating ReLU changes nothing for them.
_INSIDE = ("max_pool", "avg_pool", "mean", "reshape", "flatten", "permute", "transpose", "squeeze", "contiguous")


def observers(before: Any, prepared: Any, relus: Collection[str]) -> tuple[list[Any], set[str]]:
    """Return the observers after the ReLU named, and the names of those that have none of their own.

    `before` is the graph that was prepared: fusing leaves a ReLU under the name of its convolution.
    """
    nodes = {n.name: n for n in prepared.graph.nodes}
    watched: dict[int, list[Any]] = {}
    for node in prepared.graph.nodes:
        if _is_observer(prepared, node):
            watched.setdefault(id(prepared.get_submodule(node.target)), []).append(node)
    found, unable = [], set()
    for name in relus:
        own = _observer_after(prepared, nodes, next(n for n in before.nodes if n.name == name))
        if own is None or any(not _harmless(n, own) for n in watched[id(prepared.get_submodule(own.target))]):
            unable.add(name)
        else:
            found.append(prepared.get_submodule(own.target))
    return list({id(o): o for o in found}.values()), unable


def clamp(observer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
    """Limit what an observer sees and passes on (a forward pre-hook)."""
    return (args[0].clamp(max=_LIMIT),)


def _is_observer(prepared: Any, node: Any) -> bool:
    from torch.ao.quantization import MinMaxObserver

    return node.op == "call_module" and type(prepared.get_submodule(node.target)) is MinMaxObserver


def _observer_after(prepared: Any, nodes: dict[str, Any], relu: Any) -> Any:
    """Return the only user of the ReLU, or of what it was fused into, where that is an observer."""
    at = relu
    while at.name not in nodes and at.args and hasattr(at.args[0], "name"):
        at = at.args[0]
    users = list(nodes[at.name].users) if at.name in nodes else []
    return users[0] if len(users) == 1 and _is_observer(prepared, users[0]) else None


def _harmless(observer: Any, own: Any) -> bool:
    source = observer.args[0]
    name = str(getattr(source.target, "__name__", source.target))
    return observer is own or any(inside in name for inside in _INSIDE)
