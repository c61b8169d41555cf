"""From an exported graph back to modules and functions, which eager quantization and tracing understand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from edge.calibration.recipe import Override
from edge.errors import ConversionError
from edge.targets.torch_common import functional, quiet
from edge.targets.torch_mobile import branches, modules

# Checks that torch.export adds: they compute nothing, and a traced program cannot raise them.
_CHECKS = ("aten._assert", "aten.sym_constrain_range")
_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A module of flat tensors to a tuple of tensors.

    `matched` are the overrides that matched an operator, `branches` counts conditions and loops, `saturating` names the
    ReLU whose quantized output has to end at 6.
    """

    module: Any
    matched: frozenset[Override]
    branches: int
    saturating: tuple[str, ...] = ()


def rebuild(
    program: Any, overrides: Sequence[Override] = (), *, saturate: bool = False, clamped: Collection[str] = ()
) -> Rebuilt:
    """Rebuild an ExportedProgram; operators that an override keeps float stay ATen functions.

    `saturate` makes ReLU of ReLU6, but for those named in `clamped`, to be quantized to at most 6.
    Raises ConversionError for control flow that TorchScript cannot hold.
    """
    with quiet():
        # Quantization would separate an in-place operator from its tensor.
        graph_module = functional(program).module(check_guards=False)
        builder = Builder(graph_module, overrides, saturate=saturate, clamped=clamped)
        return Rebuilt(
            module=builder.build(),
            matched=frozenset(builder.matched),
            branches=builder.branches,
            saturating=tuple(builder.saturating),
        )


class Builder:
    """Copies one graph node by node into a new one; `env` maps each old node to the new value."""

    def __init__(
        self, source: Any, overrides: Sequence[Override], *, saturate: bool = False, clamped: Collection[str] = ()
    ) -> None:
        import torch

        self.source = source
        self.overrides = overrides
        self.root = torch.nn.Module()
        self.graph = torch.fx.Graph()
        self.env: dict[Any, Any] = {}
        self.matched: set[Override] = set()
        self.branches = 0
        self.saturate, self.clamped = saturate, clamped
        self.saturating: list[str] = []

    def build(self) -> Any:
        """Return the GraphModule."""
        import torch

        for node in self.source.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        self.graph.lint()
        return torch.fx.GraphModule(self.root, self.graph).eval()

    def constant(self, node: Any) -> Any:
        """Return the tensor of a `get_attr` node; None for another node."""
        import torch

        if not isinstance(node, torch.fx.Node) or node.op != "get_attr":
            return None
        value = operator.attrgetter(node.target)(self.source)
        return value if isinstance(value, torch.Tensor) else None

    def module(self, name: str, value: Any, *args: Any) -> Any:
        """Add a submodule and return the node that calls it."""
        self.root.add_module(name, value.eval() if hasattr(value, "eval") else value)
        return self.graph.call_module(name, args)

    def value(self, old: Any) -> Any:
        """Return the new value of an argument: nodes are replaced, nested too."""
        import torch

        return torch.fx.node.map_arg(old, self._new)

    def _new(self, node: Any) -> Any:
        if node not in self.env:
            self.env[node] = self._attribute(node)
        return self.env[node]

    def _attribute(self, node: Any) -> Any:
        import torch

        value = operator.attrgetter(node.target)(self.source)
        name = f"held_{node.name}"
        if isinstance(value, torch.Tensor):
            self.root.register_buffer(name, value.detach())
        else:
            setattr(self.root, name, value)
        return self.graph.get_attr(name)

    def _placeholder(self, node: Any) -> None:
        import torch

        if isinstance(node.meta.get("val"), torch.Tensor):
            self.env[node] = self.graph.placeholder(node.name)
        elif node.users:
            raise ConversionError(
                f"The input {node.name!r} of the exported program is a number that the program computes with.",
                hint="Export the module with tensors as its inputs.",
            )

    def _get_attr(self, node: Any) -> None:
        """Wait: constants are copied where a node that stays a function reads them."""

    def _output(self, node: Any) -> None:
        import torch
        from torch.utils import _pytree as pytree

        leaves = [v for v in pytree.tree_leaves(node.args[0]) if isinstance(v, torch.fx.Node)]
        self.graph.output(tuple(self.value(leaf) for leaf in leaves))

    def _call_function(self, node: Any) -> None:
        name = str(node.target)
        if name.startswith(_CHECKS) and not node.users:
            return
        if node.target is operator.getitem and isinstance(self.env.get(node.args[0]), tuple):
            self.env[node] = self.env[node.args[0]][node.args[1]]
            return
        special = self._special(name)
        if special is not None:
            self.env[node] = special(node)
            return
        made = None if self._kept(node, name) else modules.translate(self, node, name)
        if made is None:
            made = self.graph.call_function(node.target, self.value(node.args), self.value(node.kwargs))
        self.env[node] = made

    def _special(self, name: str) -> Callable[[Any], Any] | None:
        if name in _REGIONS:
            return self._region
        return {"cond": self._cond, "while_loop": self._while}.get(name)

    def _kept(self, node: Any, name: str) -> bool:
        import re

        short = name.split(".")[1] if name.startswith("aten.") else name
        found = [o for o in self.overrides if o.operator in ("*", short, name) and re.search(o.tensor, node.name)]
        self.matched.update(found)
        return bool(found) and found[-1].scheme == "float32"

    def _inner(self, node: Any) -> Any:
        inner = Builder(operator.attrgetter(node.target)(self.source), self.overrides)
        made = inner.build()
        self.matched |= inner.matched
        self.branches += inner.branches
        return made

    def _region(self, node: Any) -> Any:
        at = next(i for i, a in enumerate(node.args) if getattr(a, "op", "") == "get_attr" and not self._is_tensor(a))
        return self.module(node.name, self._inner(node.args[at]), *self.value(node.args[at + 1 :]))

    def _is_tensor(self, node: Any) -> bool:
        return self.constant(node) is not None

    def _cond(self, node: Any) -> Any:
        predicate, true, false, operands = node.args
        self.branches += 1
        made = branches.cond(self._inner(true), self._inner(false), _values(operands, node))
        return self.module(node.name, made, self.value(predicate), *self.value(operands))

    def _while(self, node: Any) -> Any:
        condition, body, carried, extra = node.args
        self.branches += 1
        made = branches.loop(self._inner(condition), self._inner(body), _values((*carried, *extra), node), len(carried))
        return self.module(node.name, made, *self.value((*carried, *extra)))


def _values(operands: Sequence[Any], node: Any) -> list[Any]:
    """Return example tensors of a branch's operands."""
    import torch

    values: list[Any] = [getattr(o, "meta", {}).get("val") for o in operands]
    if not all(isinstance(v, torch.Tensor) and all(isinstance(d, int) for d in v.shape) for v in values):
        raise ConversionError(
            f"The control flow {node.name!r} passes something else than tensors of fixed shape to its branches.",
            hint="Give its branches tensors of fixed shape.",
        )
    return [torch.zeros(v.shape, dtype=v.dtype) for v in values]
