"""What the runtimes on the ExportedProgram carrier share: reading a `.pt2`, its contract, and running it in PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import ConversionError, DataError, MissingPackageError, SourceError
from edge.signature import DTYPES, Signature, TensorSpec
from edge.targets import torch_fake_quant, torch_pickles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# The member of a .pt2 archive that holds its signature as JSON; every writer of the carrier uses this name.
SIGNATURE_FILE = "edgekit_signature.json"
# The member of a .ptl archive, and the key of a Core ML package, that holds the contract as JSON.
CONTRACT = "edgekit.json"
_SEED = 20260101


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ExportedProgram with its signature: inputs and outputs in the order of the program's own tensors."""

    program: Any
    signature: Signature

    def module(self) -> Any:
        """Return a callable of the program's arguments, without the checks that tracing would turn into operators."""
        return self.program.module(check_guards=False)

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs of the program with `tensors` in place of its tensor inputs."""
        from torch.utils import _pytree as pytree

        given = iter(tensors)
        leaves = [next(given) if is_tensor else value for is_tensor, value in _inputs(self.program)]
        args, kwargs = pytree.tree_unflatten(leaves, self.program.call_spec.in_spec)
        return tuple(args), dict(kwargs)

    def run(self, module: Any, tensors: Sequence[Any]) -> list[Any]:
        """Run a module with the program's arguments and return its output tensors in order."""
        import torch

        with torch.no_grad():
            return [leaf.detach().clone() for leaf in self.leaves(module, tensors)]

    def leaves(self, module: Any, tensors: Sequence[Any]) -> list[Any]:
        """As `run`, without detaching: to be traced."""
        import torch
        from torch.utils import _pytree as pytree

        args, kwargs = self.arguments(tensors)
        return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what PyTorch warns of on every use of its export, quantization and TorchScript modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_torch() -> Any:
    """Return the module torch; raise MissingPackageError."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "This runtime needs the package torch, which is not installed.", hint="pip install 'edgekit[torch]'"
        ) from error
    return torch


def save_exported(program: Any, signature: Signature, path: Path) -> None:
    """Write a `.pt2` that carries its signature."""
    torch = import_torch()
    forget_places(program)
    with quiet():
        torch.export.save(program, str(path), extra_files={SIGNATURE_FILE: codec.dumps(codec.to_json(signature))})


def forget_places(program: Any) -> None:
    """Remove from an ExportedProgram the lines of code that it came from: equal sources elsewhere give equal bytes."""
    for graph in (m.graph for m in program.graph_module.modules() if hasattr(m, "graph")):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)


def load_exported(path: Path, signature: Signature | None = None) -> Exported:
    """Read a `.pt2`: with `signature`, else with the one that it carries, else with names of its own graph.

    Dtypes and fixed sizes are the program's. Raises SourceError for a damaged file or another count of tensors.
    """
    torch = import_torch()
    extra = {SIGNATURE_FILE: ""}
    torch_fake_quant.operators()  # a network may bring learned scales
    try:
        with quiet(), torch_pickles.refused():
            program = torch.export.load(str(path), extra_files=extra)
    except torch_pickles.PickleRefusedError:
        raise
    except Exception as error:  # a damaged archive raises whatever its parts lead to
        raise SourceError(
            f"{path.name} cannot be read as an exported program: {type(error).__name__}: {first_line(error)}",
            hint="Save it again with torch.export.save of the installed PyTorch version.",
        ) from error
    held = extra[SIGNATURE_FILE]
    return Exported(program=program, signature=_settled(program, signature or _carried(held, path.name), path.name))


def _carried(text: str, name: str) -> Signature | None:
    if not text:
        return None
    try:
        return codec.from_json(Signature, json.loads(text))
    except ValueError as error:
        raise SourceError(
            f"{name} has a damaged signature: {first_line(error)}", hint="Import the source again."
        ) from error


def functional(program: Any) -> Any:
    """Return the program without in-place operators, otherwise the same operators.

    Raises ConversionError for one that keeps state or writes to its inputs: only here does the program say so.
    """
    with quiet():
        made = program.run_decompositions({})
    found = made.graph_signature
    if changed := sorted({*found.buffers_to_mutate.values(), *found.user_inputs_to_mutate.values()}):
        raise ConversionError(
            f"The program changes {', '.join(changed)} at each call; this runtime would drop that without a word.",
            hint="Make the state an input and an output of the module.",
        )
    return made


def _inputs(program: Any) -> list[tuple[bool, Any]]:
    """Return of each leaf of the program's arguments whether it is a tensor, and the value baked in where it is not."""
    from torch.export.graph_signature import InputKind, TensorArgument

    users = [s for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    return [(isinstance(s.arg, TensorArgument), getattr(s.arg, "value", None)) for s in users]


def _tensors(program: Any) -> tuple[list[Any], list[Any]]:
    """Return the graph's nodes of input and output tensors."""
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    nodes = {n.name: n for n in program.graph.nodes}
    found = program.graph_signature
    ins = [s.arg for s in found.input_specs if s.kind == InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)]
    outs = [s.arg for s in found.output_specs if s.kind == OutputKind.USER_OUTPUT and isinstance(s.arg, TensorArgument)]
    return [nodes[a.name] for a in ins], [nodes[a.name] for a in outs]


def _settled(program: Any, signature: Signature | None, name: str) -> Signature:
    ins, outs = _tensors(program)
    if signature is None:
        named_in = [TensorSpec(name=n.name, shape=()) for n in ins]
        named_out = [TensorSpec(name=f"output_{i}", shape=()) for i in range(len(outs))]
        signature = Signature(inputs=tuple(named_in), outputs=tuple(named_out))
    if (len(ins), len(outs)) != (len(signature.inputs), len(signature.outputs)):
        raise SourceError(
            f"{name} has {len(ins)} input and {len(outs)} output tensors; the signature has "
            f"{len(signature.inputs)} and {len(signature.outputs)}.",
            hint="Import the source again.",
        )
    return signature.with_tensors(
        tuple(_spec(s, n) for s, n in zip(signature.inputs, ins, strict=True)),
        tuple(_spec(s, n) for s, n in zip(signature.outputs, outs, strict=True)),
    )


def _spec(spec: TensorSpec, node: Any) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConversionError(f"{spec.name!r} has dtype {dtype}; a device takes {', '.join(DTYPES)}.")
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return replace(spec, shape=shape, dtype=dtype, quantization=None)


def first_line(error: BaseException) -> str:
    """Return the first line that says something, at most 300 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def static_shape(spec: TensorSpec, example: Sequence[int]) -> tuple[int, ...]:
    """Return the shape with open sizes taken from an example."""
    return tuple(e if d == -1 else d for d, e in zip(spec.shape, example, strict=True))


def example_shapes(exported: Exported) -> list[tuple[int, ...]]:
    """Return a fixed shape per input: the program's, open sizes as in its example inputs, else 1."""
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves(exported.program.example_inputs or ())
    examples = [tuple(v.shape) for v in leaves if isinstance(v, torch.Tensor)]
    if len(examples) != len(exported.signature.inputs):
        examples = [(1,) * len(t.shape) for t in exported.signature.inputs]
    return [static_shape(t, e) for t, e in zip(exported.signature.inputs, examples, strict=True)]


def random_inputs(exported: Exported, count: int) -> list[list[Any]]:
    """Return `count` lists of input tensors, the same at each call: uniform floats, integers 0 and 1."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(_SEED)
    made = []
    for number in range(count):
        tensors = []
        for spec, shape in zip(exported.signature.inputs, example_shapes(exported), strict=True):
            dtype = getattr(torch, spec.dtype)
            if dtype.is_floating_point:
                # Positive, mixed and negative draws, so that a branch on the sign goes either way.
                tensors.append((torch.rand(shape, generator=generator) * 2 - number % 3).to(dtype))
            else:
                tensors.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
        made.append(tensors)
    return made


def sample_inputs(exported: Exported, samples: Iterable[Any] | None, count: int) -> list[list[Any]]:
    """Return the tensors of the first `count` samples; random ones where there are no samples."""
    if samples is None:
        return random_inputs(exported, count)
    return [as_tensors(exported.signature, s.inputs) for s in islice(samples, count)]


def as_tensors(signature: Signature, inputs: Mapping[str, Array]) -> list[Any]:
    """Return input arrays by name as tensors in the signature's order.

    Raises DataError for a wrong name, shape or dtype.
    """
    torch = import_torch()
    if unknown := set(inputs) - {t.name for t in signature.inputs}:
        accepted = ", ".join(repr(t.name) for t in signature.inputs)
        raise DataError(f"{', '.join(map(repr, sorted(unknown)))} are no inputs; accepted: {accepted}.")
    return [torch.from_numpy(_checked(t, inputs)) for t in signature.inputs]


def _checked(spec: TensorSpec, inputs: Mapping[str, Array]) -> Array:
    if spec.name not in inputs:
        raise DataError(f"Input {spec.name!r} is missing; given: {', '.join(map(repr, sorted(inputs))) or 'none'}.")
    values = np.asarray(inputs[spec.name])
    if values.dtype.kind in "iub" and np.dtype(spec.dtype).kind in "iub":
        values = values.astype(spec.dtype)  # carriers of the same source differ in the width of their indices
    fits = values.ndim == len(spec.shape) and all(w in (-1, g) for g, w in zip(values.shape, spec.shape, strict=True))
    if values.dtype != spec.dtype or not fits:
        raise DataError(f"Input {spec.name!r} got {values.dtype}{list(values.shape)}; accepted: {spec}.")
    return np.array(values, order="C")  # a copy: torch shares memory with what it is given


class ExportedSession:
    """`edge.targets.base.Session` over a `.pt2`, run by PyTorch on the CPU."""

    def __init__(self, exported: Exported) -> None:
        self.signature = exported.signature
        self._exported = exported
        self._module = exported.module()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DataError for a wrong name, shape or dtype, SourceError where PyTorch fails."""
        tensors = as_tensors(self.signature, inputs)
        try:
            found = self._exported.run(self._module, tensors)
        except (RuntimeError, ValueError, TypeError) as error:
            raise SourceError(f"PyTorch failed while running the exported program: {first_line(error)}") from error
        return {t.name: v.numpy() for t, v in zip(self.signature.outputs, found, strict=True)}


def open_carrier(path: Path, signature: Signature | None = None) -> ExportedSession:
    """Open a `.pt2` as a session. Raises SourceError."""
    return ExportedSession(load_exported(path, signature))
