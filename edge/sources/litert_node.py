"""One LiteRT operator as the converters to PyTorch see it: its values in either layout, its options; their registry.

A 4-D tensor of a flatbuffer is channel-last; PyTorch's convolutions are channel-first. A value remembers in which of
the two its tensor is, and is turned only where an operator needs the other: from one convolution to the next none is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)

# Returns a tensor that the module owns under a key; makes it of an array when it is asked for the first time.
Keep = Callable[[str, Callable[[], Any]], Any]
Converter = Callable[["Node"], Any]
CONVERTERS: dict[str, Converter] = {}


class UnsupportedError(Exception):
    """A form of an operator that its converter does not cover; the text says which."""


def turned(tensor: Any, order: Sequence[int]) -> Any:
    """Return the tensor in another order of its axes; a view where only axes of size 1 move."""
    shape = [tensor.shape[i] for i in order]
    moving = [i for i in order if tensor.shape[i] != 1]
    return tensor.reshape(shape) if moving == sorted(moving) else tensor.permute(tuple(order))


class Value:
    """A tensor of the flatbuffer: a constant, or a computed one that is channel-first or as in the flatbuffer."""

    def __init__(
        self, tensor: Any = None, *, first: bool = False, constant: Array | None = None, key: str = ""
    ) -> None:
        self.constant, self.is_first, self.key = constant, first, key
        self._tensors = {} if tensor is None else {first: tensor}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the flatbuffer's order."""
        if self.constant is not None:
            return tuple(self.constant.shape)
        shape = tuple(int(n) for n in self._tensors[self.is_first].shape)
        return tuple(shape[i] for i in TO_LAST) if self.is_first else shape

    def tensor(self, keep: Keep, *, first: bool) -> Any:
        """Return the value as a tensor, channel-first or as in the flatbuffer."""
        if first not in self._tensors:
            order = TO_FIRST if first else TO_LAST
            if (constant := self.constant) is not None:
                self._tensors[first] = keep(f"{self.key}_first" if first else self.key, lambda: _array(constant, first))
            else:
                self._tensors[first] = turned(self._tensors[not first], order)
        return self._tensors[first]


def _array(constant: Array, first: bool) -> Array:
    return constant.transpose(TO_FIRST) if first else constant


@dataclass(frozen=True)
class Node:
    """An operator with its inputs (None where omitted) and the shapes of its outputs.

    A converter returns one tensor or a tuple of them, in the flatbuffer's layout; `ChannelFirst(tensor)` for one that
    is channel-first.
    """

    op: fb.Op
    values: Sequence[Value | None]
    shapes: Sequence[tuple[int, ...]]
    keep: Keep

    @property
    def kind(self) -> str:
        """The operator's builtin name."""
        return self.op.name

    def value(self, position: int) -> Value:
        """Return an input. Raises UnsupportedError where it is omitted."""
        found = self.values[position] if position < len(self.values) else None
        if found is None:
            raise UnsupportedError(f"input {position} is missing")
        return found

    def has(self, position: int) -> bool:
        """Tell whether an input is given."""
        return position < len(self.values) and self.values[position] is not None

    def __getitem__(self, position: int) -> Any:
        """Return an input as a tensor in the flatbuffer's layout."""
        return self.value(position).tensor(self.keep, first=False)

    def first(self, position: int) -> Any:
        """Return a 4-D input as a channel-first tensor."""
        return self.value(position).tensor(self.keep, first=True)

    def is_first(self, position: int) -> bool:
        """Tell whether an input is channel-first already."""
        return self.value(position).is_first

    def made(self, position: int, tag: str, make: Callable[[Any], Any], *, what: str = "the weights") -> Any:
        """Return a tensor made of a constant input by a NumPy function, kept by the module under a key with `tag`."""
        value, constant = self.value(position), self.constant(position, what)
        return self.keep(f"{value.key}_{tag}", lambda: make(constant))

    def constant(self, position: int, what: str) -> Array:
        """Return an input's known value. Raises UnsupportedError where it is computed or omitted."""
        if (found := self.value(position).constant) is None:
            raise UnsupportedError(f"{what} depends on the data; a program has fixed sizes")
        return found

    def integers(self, position: int, what: str) -> list[int]:
        """Return a known input as a list of integers."""
        return [int(v) for v in np.ravel(self.constant(position, what))]

    def option(self, name: str, default: Any = None) -> Any:
        """Return a field of the builtin options."""
        return self.op.option(name, default)

    def activated(self, tensor: Any) -> Any:
        """Return the tensor after the operator's fused activation."""
        return activation(int(self.option("fusedActivationFunction", 0)), tensor)


@dataclass(frozen=True)
class ChannelFirst:
    """A result that is channel-first where the flatbuffer has it channel-last."""

    tensor: Any


def activation(code: int, x: Any) -> Any:
    """Return `x` after one of the schema's ActivationFunctionType."""
    import torch

    if code == 0:
        return x
    functions: dict[int, Callable[[Any], Any]] = {
        1: torch.relu,
        2: lambda v: torch.clamp(v, -1.0, 1.0),
        3: torch.nn.functional.relu6,
        4: torch.tanh,
    }
    if code not in functions:
        raise UnsupportedError(f"the fused activation {code}")
    return functions[code](x)


def converter(*kinds: str) -> Callable[[Converter], Converter]:
    """Register a converter for operators by their builtin names."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def convert(node: Node, output: str) -> tuple[Value, ...]:
    """Return the operator's outputs. Raises ConversionError that names the operator by its first output."""
    if node.kind not in CONVERTERS:
        raise ConversionError(
            f"The LiteRT operator {node.kind} (tensor {output!r}) has no form in torch.export.",
            hint="Build it with --runtime litert, or give the model that the file was made of.",
        )
    try:
        result = CONVERTERS[node.kind](node)
    except UnsupportedError as error:
        raise ConversionError(
            f"The LiteRT operator {node.kind} (tensor {output!r}) cannot be brought to torch.export: {error}.",
            hint="Build it with --runtime litert, or give the model that the file was made of.",
        ) from error
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise ConversionError(
            f"The LiteRT operator {node.kind} (tensor {output!r}) cannot be brought to torch.export: {first[:300]}.",
            hint="Its form is one that edgekit does not cover; build it with --runtime litert.",
        ) from error
    results = result if isinstance(result, tuple) else (result,)
    return tuple(Value(r.tensor, first=True) if isinstance(r, ChannelFirst) else Value(r) for r in results)
