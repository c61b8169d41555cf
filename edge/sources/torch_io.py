"""Names, shapes and nesting of a PyTorch module's inputs and outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConfigError, ConversionError, SourceError
from edge.findings import Finding
from edge.signature import DTYPES, Layout
from edge.sources import declared
from edge.sources.base import Declaration, InputDeclaration, OpenDimension

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# LiteRT programs made of PyTorch ones have 32-bit integers, and float32 is what every quantizer starts from.
_NARROWED = {"int64": "int32", "float64": "float32", "float16": "float32", "bfloat16": "float32", "int16": "int32"}


def from_array(array: Array) -> Any:
    """Return a tensor that owns a writable copy, row by row; a scalar stays one.

    torch.export.save reads the memory of tensors with other strides wrongly, and ExecuTorch refuses the strides of 0
    that NumPy gives what is empty.
    """
    import torch

    copy = torch.from_numpy(np.array(array, order="C"))
    return copy if copy.numel() else torch.empty(copy.shape, dtype=copy.dtype)


@dataclass(frozen=True)
class Call:
    """How to call a module: its leaves in order, the positions of the tensors among them, and the nesting.

    `names`, `tensors` and `layouts` go together: one entry per input of the program; layouts are the source's.
    """

    names: tuple[str, ...]
    tensors: tuple[Any, ...]
    layouts: tuple[Layout, ...]
    leaves: tuple[Any, ...]
    positions: tuple[int, ...]
    structure: Any
    # Per input its dimensions that stay open; empty where all inputs have fixed sizes.
    open: tuple[tuple[OpenDimension, ...], ...] = ()

    def axes(self, position: int) -> dict[int, OpenDimension]:
        """Return the open dimensions of one input by axis."""
        return {d.axis: d for d in self.open[position]} if self.open else {}

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs of the module with these tensors in place of the example's."""
        from torch.utils import _pytree as pytree

        leaves = list(self.leaves)
        for position, tensor in zip(self.positions, tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return tuple(args), kwargs


def dtype_name(tensor: Any) -> str:
    """Return `float32` of a tensor of torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def program_dtype(dtype: str, name: str) -> str:
    """Return the dtype that a tensor has in the program; raise ConversionError for one that it cannot have."""
    result = _NARROWED.get(dtype, dtype)
    if result not in DTYPES:
        raise ConversionError(f"{name!r} has dtype {dtype}; a device takes {', '.join(DTYPES)}.")
    return result


def narrowed(name: str, dtype: str) -> tuple[Finding, ...]:
    """Return a finding where a tensor of the source is wider than in the program."""
    if dtype != "int64":
        return ()
    return (
        Finding(
            rule="INT64_NARROWED",
            severity="warning",
            op=name,
            message=f"{name!r} is int64 in the source and int32 in the program.",
            fix="Values beyond 2147483647 do not fit; give and read int32.",
        ),
    )


def _parameters(module: Any) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def as_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return args and kwargs of a factory's example inputs: a tensor, a tuple or list of them, or a dict by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def _leaf_names(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    from torch.utils import _pytree as pytree

    parameters = [p.name for p in _parameters(module)]
    names = []
    for path, _ in pytree.tree_flatten_with_path((args, kwargs))[0]:
        keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
        if keys[0] == "0":
            at = int(keys[1])
            keys[1] = parameters[at] if at < len(parameters) else f"args_{at}"
        names.append("_".join(keys[1:]))
    return names


def from_example(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], declaration: Declaration) -> Call:
    """Return the call of a module with example inputs, declared shapes and layouts applied."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, structure = pytree.tree_flatten((args, kwargs))
    leaves = [torch.from_numpy(v) if type(v).__module__ == "numpy" and hasattr(v, "ndim") else v for v in leaves]
    positions = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    if not positions:
        raise SourceError(
            f"The example inputs hold no tensor but {', '.join(type(v).__name__ for v in leaves) or 'nothing'}.",
            hint="Return (module, (tensor, …)) or (module, {'name': tensor}) from the factory.",
        )
    everything = _leaf_names(module, args, kwargs)
    names = declared.unique(everything[i] for i in positions)
    wishes = declared.inputs_of(declaration, names)
    tensors = tuple(_example(n, leaves[i], w) for n, i, w in zip(names, positions, wishes, strict=True))
    layouts = tuple(_layout(n, t, w) for n, t, w in zip(names, tensors, wishes, strict=True))
    opened = tuple(w.open for w in wishes) if any(w.open for w in wishes) else ()
    return Call(names, tensors, layouts, tuple(leaves), positions, structure, opened)


def _example(name: str, tensor: Any, wish: InputDeclaration) -> Any:
    import torch

    given = declared.example_shape(name, wish, tuple(tensor.shape)) if wish.open else wish.shape
    shape = declared.static_shape(name, given or tuple(tensor.shape), None)
    dtype = getattr(torch, wish.dtype) if wish.dtype else tensor.dtype
    if tuple(tensor.shape) == shape and tensor.dtype == dtype:
        value = tensor.detach()
    else:
        value = torch.rand(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
    return value.float() if dtype.is_floating_point else value


def _layout(name: str, tensor: Any, wish: InputDeclaration) -> Layout:
    if wish.layout in ("NHWC", "NCHW") and tensor.dim() != 4:
        raise ConfigError(f"The input {name!r} of rank {tensor.dim()} cannot have the layout {wish.layout}.")
    return wish.layout or ("NCHW" if tensor.dim() == 4 and tensor.is_floating_point() else "other")


def from_declaration(module: Any, declaration: Declaration) -> Call:
    """Return the call of a module from declared shapes. Raises ConfigError naming the inputs without one."""
    import torch

    parameters = [p for p in _parameters(module) if p.name != "self"]
    names = [p.name for p in parameters]
    wishes = declared.inputs_of(declaration, names)
    given = [(p, w) for p, w in zip(parameters, wishes, strict=True) if w.shape is not None]
    missing = [p.name for p, w in zip(parameters, wishes, strict=True) if w.shape is None and p.default is p.empty]
    if missing or not given:
        raise ConfigError(
            f"The module {type(module).__name__} comes without example inputs, and there is no shape for "
            f"{', '.join(missing) or 'any input'}.",
            hint=declared.HOW_TO_DECLARE.format(name=(missing or ["NAME"])[0], shape="1,3,224,224")
            + " Or return (module, example_inputs) from the factory.",
        )
    kwargs = {p.name: torch.zeros(1, dtype=getattr(torch, w.dtype or "float32")) for p, w in given}
    return from_example(module, (), kwargs, declaration)


def flatten_outputs(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return each tensor of nested outputs with its name: dict keys, field names, else `output_0`, `output_1`, ….

    Raises ConversionError for a value that is no tensor; None is left out.
    """
    import torch

    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [(prefix or "output_0", value)]
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        items = [(str(i) if prefix else f"output_{i}", v) for i, v in enumerate(value)]
    else:
        raise ConversionError(
            f"The module returns {value!r} ({type(value).__name__}) as {prefix or 'its output'}; "
            "a program returns tensors.",
            hint="Wrap the module in one that returns tensors, or a dict of them.",
        )
    return [leaf for k, v in items for leaf in flatten_outputs(v, f"{prefix}_{k}" if prefix else k)]
