"""`torch.cond` and `while_loop` as scripted modules: tracing alone would keep one branch and drop the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COND = """
def forward(self, chosen, {names}):
    if bool(chosen):
        result = self.first({names})
    else:
        result = self.second({names})
    return result
"""
_LOOP = """
def forward(self, {names}):
    while bool(self.first({names})[0]):
        result = self.second({names})
{assign}
    return {carried}
"""


def cond(true: Any, false: Any, operands: Sequence[Any]) -> Any:
    """Return a module of (predicate, operands…) that runs one of two modules, chosen at run time."""
    names = ", ".join(f"x{i}" for i in range(len(operands)))
    return _scripted(true, false, operands, _COND.format(names=names))


def loop(condition: Any, body: Any, operands: Sequence[Any], carried: int) -> Any:
    """Return a module of (carried…, others…) that repeats `body` while `condition` holds."""
    names = ", ".join(f"x{i}" for i in range(len(operands)))
    assign = "\n".join(f"        x{i} = result[{i}]" for i in range(carried))
    final = "(" + "".join(f"x{i}, " for i in range(carried)) + ")"
    return _scripted(condition, body, operands, _LOOP.format(names=names, assign=assign, carried=final))


def _scripted(first: Any, second: Any, operands: Sequence[Any], source: str) -> Any:
    import torch

    holder = torch.nn.Module()
    holder.first = torch.jit.trace(first, tuple(operands), check_trace=False)
    holder.second = torch.jit.trace(second, tuple(operands), check_trace=False)
    scripted = torch.jit.script(holder)
    scripted.define(source)
    return opaque()(scripted)


def opaque() -> type:
    """Return the class that holds a scripted module; FX must not look into it."""
    return _CLASS.get() or _CLASS.make()


class _ClassOnce:
    """Makes the class when torch is there, and only once: FX recognizes it by identity."""

    def __init__(self) -> None:
        self._made: type | None = None

    def get(self) -> type | None:
        return self._made

    def make(self) -> type:
        import torch

        class Scripted(torch.nn.Module):  # type: ignore[misc]
            def __init__(self, body: Any) -> None:
                super().__init__()
                self.body = body

            def forward(self, *tensors: Any) -> Any:
                return self.body(*tensors)

        self._made = Scripted
        return Scripted


_CLASS = _ClassOnce()
