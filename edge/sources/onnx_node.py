"""One ONNX operator as the converters see it: attributes, constant inputs, tensor inputs; and their registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Converter = Callable[["Node"], Any]
CONVERTERS: dict[str, Converter] = {}
# Not of ONNX: how the values of a written-out loop's rounds come together.
STACK = "edgekit.Stack"


class UnsupportedError(Exception):
    """A form of an operator that its converter does not cover; the text says which."""


@dataclass(frozen=True)
class Node:
    """An operator with its inputs: `tensors` for computing, `constants` where the value is known, None where omitted.

    A converter returns one tensor, or a tuple of as many as the operator has outputs.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any]
    tensors: Sequence[Any]
    constants: Sequence[Array | None]
    outputs: int
    opset: int

    def __getitem__(self, position: int) -> Any:
        """Return an input as a tensor; raise UnsupportedError where it is omitted."""
        tensor = self.get(position)
        if tensor is None:
            raise UnsupportedError(f"input {position} is missing")
        return tensor

    def get(self, position: int) -> Any:
        """Return an input as a tensor, None where it is omitted."""
        return self.tensors[position] if position < len(self.tensors) else None

    def constant(self, position: int, what: str) -> Array | None:
        """Return an input's known value, None where it is omitted. Raises UnsupportedError where it is computed."""
        if self.get(position) is None:
            return None
        if (value := self.constants[position]) is None:
            raise UnsupportedError(f"{what} depends on the data; a program has fixed sizes")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def integers(self, name: str, position: int) -> list[int] | None:
        """Return what older opsets give as the attribute `name` and newer ones as a constant input."""
        if name in self.attributes:
            value = self.attributes[name]
            return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
        found = self.constant(position, name)
        return None if found is None else [int(v) for v in np.ravel(found)]

    def number(self, name: str, position: int, default: float | None = None) -> float | None:
        """Return a scalar that is an attribute or a constant input."""
        if name in self.attributes:
            return float(self.attributes[name])
        found = self.constant(position, name)
        return default if found is None or found.size == 0 else float(np.ravel(found)[0])


def converter(*kinds: str) -> Callable[[Converter], Converter]:
    """Register a converter for operator types."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def convert(node: Node) -> tuple[Any, ...]:
    """Return the operator's outputs. Raises ConversionError that names the node."""
    function = CONVERTERS[node.kind]
    try:
        result = function(node)
    except UnsupportedError as error:
        raise ConversionError(
            f"The ONNX operator {node.kind} of node {node.name!r} cannot be converted: {error}.",
            hint="Export the model with other operators or fixed sizes there.",
        ) from error
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise ConversionError(
            f"The ONNX operator {node.kind} of node {node.name!r} cannot be converted: {first[:300]}.",
            hint="Its form is one that edgekit does not cover; onnxruntime runs it.",
        ) from error
    return result if isinstance(result, tuple) else (result,)
