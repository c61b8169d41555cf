"""The carrier of ExecuTorch: a `.pt2` archive (torch.export) that has edgekit's signature beside its graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import DataError, MissingPackageError, SourceError
from edge.signature import Signature, TensorSpec
from edge.targets import torch_common, torch_fake_quant, torch_pickles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

SIGNATURE_FILE = "edgekit_signature.json"
_LEAST_OF_TORCH = 2


def contract_text(signature: Signature) -> str:
    """Return inputs and outputs of a signature as compact JSON, the same text for the same signature."""
    tensors = {side: [codec.to_json(t) for t in getattr(signature, side)] for side in ("inputs", "outputs")}
    return json.dumps(tensors, separators=(",", ":"), ensure_ascii=True)


def contract_of(text: str) -> Signature:
    """Return the signature that `contract_text` wrote. Raises SourceError for other text."""
    try:
        return codec.from_json(Signature, json.loads(text))
    except ValueError as error:  # pydantic's and json's errors are ValueErrors
        raise SourceError(f"The program's own signature cannot be read: {str(error).splitlines()[0]}.") from error


def save(program: Any, signature: Signature, path: Path) -> None:
    """Write an ExportedProgram whose inputs and outputs stand in the signature's order."""
    import torch

    # torch.export.save reads the memory of a weight that is empty, a view, or not row by row, beyond its end.
    for weights in (program.state_dict, program.constants):
        weights.update({name: _owned(value) for name, value in weights.items() if isinstance(value, torch.Tensor)})
    torch_common.forget_places(program)
    torch.export.save(program, str(path), extra_files={SIGNATURE_FILE: contract_text(signature)})


def _owned(value: Any) -> Any:
    """Return a tensor that is row by row all of its memory: itself, or a copy (an empty one may stand on some)."""
    import torch

    size = value.numel() * value.element_size()
    if size and value.is_contiguous() and value.untyped_storage().nbytes() == size:
        return value
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    return torch.nn.Parameter(copy, requires_grad=value.requires_grad) if type(value) is torch.nn.Parameter else copy


def load(path: Path) -> tuple[Any, Signature]:
    """Return the ExportedProgram of a `.pt2` and its signature. Raises SourceError, MissingPackageError."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "Reading a .pt2 file needs the package torch, which is not installed.",
            hint="pip install 'edgekit[executorch]'",
        ) from error
    extra = {SIGNATURE_FILE: ""}
    torch_fake_quant.operators()  # a network may bring learned scales
    try:
        with torch_pickles.refused():
            program = torch.export.load(str(path), extra_files=extra)
    except torch_pickles.PickleRefusedError:
        raise
    except Exception as error:  # zip, JSON and torch each raise their own
        raise SourceError(
            f"{path} is no exported program that this torch can read: {type(error).__name__}: {_first(error)}",
            hint="Export it again with the torch that is installed here.",
        ) from error
    text = extra[SIGNATURE_FILE]
    return program, contract_of(text if isinstance(text, str) else bytes(text).decode()) if text else unnamed(program)


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


def user_inputs(program: Any) -> list[Any]:
    """Return the example values (fake tensors) of an ExportedProgram's inputs, in order."""
    wanted = set(program.graph_signature.user_inputs)
    return [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]


def user_outputs(program: Any) -> list[Any]:
    """Return the example values of an ExportedProgram's outputs, in order."""
    wanted = set(program.graph_signature.user_outputs)
    last = next(n for n in program.graph.nodes if n.op == "output")
    return [n.meta["val"] for n in last.args[0] if n is not None and n.name in wanted]


def size_of(dimension: Any) -> int | None:
    """Return a dimension's size, None where it is dynamic; torch leaves a symbol that it fixed as a constant one."""
    if isinstance(dimension, int):
        return dimension
    expression = dimension.node.expr
    return None if expression.free_symbols else int(expression)


def limits(program: Any) -> dict[Any, tuple[int, int]]:
    """Return the smallest and the largest value of each symbol that an open size of the inputs is made of."""
    opened = [d.node.expr for value in user_inputs(program) for d in value.shape if size_of(d) is None]
    found = {}
    for symbol in {s for expression in opened for s in expression.free_symbols}:
        if (span := program.range_constraints.get(symbol)) is None:
            continue
        # torch.export never says less than 2, because it takes sizes 0 and 1 for constants; programs do take 1.
        alone = symbol in opened and int(span.lower) == _LEAST_OF_TORCH
        found[symbol] = (1 if alone else max(int(span.lower), 1), int(span.upper))
    return found


def example_sizes(value: Any) -> list[int]:
    """Return the sizes that a fake tensor was exported with, those of dynamic dimensions too."""
    return [d if isinstance(d, int) else int(d.node.hint) for d in value.shape]


def size_at(dimension: Any, values: Mapping[Any, int]) -> int:
    """Return a dimension's size where its symbols have these values; `4*s` is 32 with s = 8."""
    size = size_of(dimension)
    return int(dimension.node.expr.subs(values)) if size is None else size


def span_of(dimension: Any, spans: Mapping[Any, tuple[int, int]]) -> tuple[int, int]:
    """Return the smallest and the largest size of a dimension; twice its size where that is fixed."""
    low, high = (size_at(dimension, {s: span[k] for s, span in spans.items()}) for k in (0, 1))
    return min(low, high), max(low, high)


def shape_of(value: Any) -> tuple[int, ...]:
    """Return a fake tensor's shape with -1 for dynamic dimensions."""
    return tuple(-1 if (size := size_of(d)) is None else size for d in value.shape)


def dtype_of(value: Any) -> str:
    """Return `float32` of a tensor of torch.float32."""
    return str(value.dtype).removeprefix("torch.")


def specs(values: Sequence[Any], prefix: str) -> tuple[TensorSpec, ...]:
    """Return specs named `prefix_0`, `prefix_1`, … of example values."""
    try:
        return tuple(
            TensorSpec(name=f"{prefix}_{i}", shape=shape_of(v), dtype=dtype_of(v)) for i, v in enumerate(values)
        )
    except (ValueError, AttributeError) as error:
        raise SourceError(f"An {prefix} of the exported program is no tensor that a device takes: {error}.") from error


def unnamed(program: Any) -> Signature:
    """Return a signature by position for a program without edgekit's own."""
    return Signature(inputs=specs(user_inputs(program), "input"), outputs=specs(user_outputs(program), "output"))


class ExportedSession:
    """An exported program run by torch: the float carrier, or the last form of a program that runs on this host.

    Dtypes are the signature's; raises DataError for an input that does not fit, SourceError where the graph fails.
    """

    mode = "emulated"
    kernels = "emulated"

    def __init__(self, program: Any, signature: Signature, *, not_run: tuple[str, ...] = ()) -> None:
        self.signature = signature
        self.not_run = not_run
        # A guard would refuse a size that the graph takes; sizes are checked against the signature here.
        self._module = program.module(check_guards=False)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return copies, by signature name."""
        import torch
        from torch.utils import _pytree as pytree

        tensors = as_tensors(self.signature, inputs)
        try:
            with torch.no_grad():
                results = self._module(*tensors)
        except Exception as error:
            raise SourceError(f"torch failed while running the exported program: {_first(error)}") from error
        return as_arrays(self.signature, [r for r in pytree.tree_leaves(results) if r is not None])


def as_tensors(signature: Signature, inputs: Mapping[str, Array]) -> list[Any]:
    """Return the inputs as tensors in the signature's order. Raises DataError for a wrong name, shape or dtype."""
    import torch

    known = {t.name for t in signature.inputs}
    if unknown := sorted(set(inputs) - known):
        raise DataError(f"{', '.join(map(repr, unknown))} are no inputs; accepted: {', '.join(sorted(known))}.")
    return [torch.from_numpy(_checked(spec, inputs)) for spec in signature.inputs]


def _checked(spec: TensorSpec, inputs: Mapping[str, Array]) -> Array:
    if spec.name not in inputs:
        raise DataError(f"Input {spec.name!r} is missing; given: {', '.join(inputs) or 'none'}.")
    values = np.asarray(inputs[spec.name])
    fits = len(values.shape) == len(spec.shape) and all(
        w in (-1, g) for g, w in zip(values.shape, spec.shape, strict=True)
    )
    if values.dtype != spec.dtype or not fits:
        raise DataError(
            f"Input {spec.name!r} got {values.dtype}[{', '.join(map(str, values.shape))}]; accepted: {spec}."
        )
    # torch cannot share memory that is read-only or has negative strides.
    return np.array(values, order="C", copy=True)


def as_arrays(signature: Signature, results: Sequence[Any]) -> dict[str, Array]:
    """Return torch results as arrays by the signature's output names. Raises SourceError for another count."""
    if len(results) != len(signature.outputs):
        raise SourceError(f"The program gives {len(results)} outputs; its signature has {len(signature.outputs)}.")
    return {
        spec.name: np.array(value.detach().cpu().numpy(), order="C", copy=True)
        for spec, value in zip(signature.outputs, results, strict=True)
    }


def renamed(found: Signature, base: Signature) -> Signature:
    """Return `found` (by position) with the names and layouts of `base`. Raises SourceError for another count."""
    sides = []
    for side in ("inputs", "outputs"):
        got, wanted = getattr(found, side), getattr(base, side)
        if len(got) != len(wanted):
            raise SourceError(f"The program has {len(got)} {side}; its signature has {len(wanted)}.")
        sides.append(tuple(replace(g, name=w.name, layout=w.layout) for g, w in zip(got, wanted, strict=True)))
    return base.with_tensors(*sides)
