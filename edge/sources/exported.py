"""From PyTorch modules and Keras models to the exported carrier: a `.pt2` with the signature's names and layouts."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.errors import ConversionError, EdgekitError, SourceError, ToolError
from edge.findings import Finding
from edge.signature import Signature, TensorSpec
from edge.sources.base import InputDeclaration, OpenDimension
from edge.sources.declared import example_shape, largest
from edge.sources.factory import is_users
from edge.sources.torch_convert import _where as where
from edge.sources.torch_convert import explain, wrapper
from edge.sources.torch_io import Call
from edge.targets.executorch import carrier

if TYPE_CHECKING:
    from edge.isolate import Progress

_STEERING = "GuardOnDataDependentSymNode|data-dependent|Could not guard|DataDependentOutput"
_EFFECTS = r"side effect|HOP|mutat(?:e|ion|ing)|setattr|buffers? .*mutat|HigherOrderOperator"
_WAY_OUT = (
    "Use torch.cond for a branch (ExecuTorch's portable kernels run it), torch.where to compute both sides, or move "
    "the decision out of forward. PyTorch Mobile can script it: --script."
)


def export_torch(
    module: Any,
    call: Call,
    signature: Signature,
    path: Path,
    *,
    last_inputs: frozenset[int] = frozenset(),
    last_outputs: frozenset[int] = frozenset(),
) -> tuple[Finding, ...]:
    """Write the carrier of a module at `path`.

    `last_inputs` and `last_outputs` are the positions that the module has channel-first and the signature channel-last.
    Dimensions of -1 in the signature stay dynamic. Raises ConversionError with the user's line where torch.export
    refuses.
    """
    flat = _typed(wrapper(module, call, last_inputs, last_outputs), call.tensors, signature.outputs)
    examples = [t.movedim(1, -1).contiguous() if i in last_inputs else t for i, t in enumerate(call.tensors)]
    given = [_as(t, spec) for t, spec in zip(examples, signature.inputs, strict=True)]
    spans = [_spans(call.axes(i), given[i].dim(), turned=i in last_inputs) for i in range(len(given))]
    program = export(flat, given, signature.inputs, spans)
    carrier.save(program, signature, path)
    return bounds(program, signature)


def export_methods(module: Any, methods: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    """Write further methods of a module beside its carrier: `carrier.encode.pt2` for `{"encode": example inputs}`.

    Raises SourceError for a name that the module has not.
    """
    import torch

    for name, examples in methods.items():
        method = getattr(module, name, None)
        if not callable(method) or not name.isidentifier():
            raise SourceError(f"The module {type(module).__name__} has no method {name!r}.")
        program = export(_Bound.of(method, module), list(examples), ())
        if not all(isinstance(v, torch.Tensor) for v in carrier.user_outputs(program)):
            raise ConversionError(f"The method {name!r} returns values that are no tensors.")
        carrier.save(program, carrier.unnamed(program), path.with_name(f"{path.stem}.{name}{path.suffix}"))


class _Bound:
    """Makes a module of a method, because torch.export takes modules."""

    @staticmethod
    def of(method: Any, owner: Any) -> Any:
        import torch

        class Method(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.owner = owner

            def forward(self, *tensors: Any) -> Any:
                return method(*tensors)

        bound = Method()
        bound.training = False
        return bound


def _typed(flat: Any, sources: Sequence[Any], outputs: Sequence[TensorSpec]) -> Any:
    """Wrap a flat module so that it takes and gives the signature's dtypes and computes in the source's."""
    import torch

    dtypes = [t.dtype for t in sources]
    wanted = [getattr(torch, t.dtype) for t in outputs]

    class Typed(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            cast = [t if t.dtype == d else t.to(d) for t, d in zip(tensors, dtypes, strict=True)]
            results = self.inner(*cast)
            return tuple(r if r.dtype == d else r.to(d) for r, d in zip(results, wanted, strict=True))

    typed = Typed()
    # The wrapper's own mode only: an exported program's module refuses train() and eval().
    typed.training = False
    flat.training = False
    return typed


def _as(tensor: Any, spec: TensorSpec) -> Any:
    """Return an example of the spec's dtype; a dynamic dimension of 1 is doubled, because torch.export fixes those."""
    import torch

    value = tensor.detach().to(getattr(torch, spec.dtype))
    for axis, size in enumerate(spec.shape):
        if size == -1 and value.shape[axis] == 1:
            value = torch.cat([value, value], dim=axis)
    return value


def _spans(axes: Mapping[int, OpenDimension], rank: int, *, turned: bool) -> Mapping[int, OpenDimension]:
    """Return open dimensions by the axis that they have in the program."""
    to_last = (0, *range(2, rank), 1)
    return {to_last.index(axis): d for axis, d in axes.items()} if turned else axes


def export(
    module: Any,
    examples: Sequence[Any],
    specs: Sequence[TensorSpec],
    spans: Sequence[Mapping[int, OpenDimension]] = (),
) -> Any:
    """Return the ExportedProgram of a module of flat tensors; `specs` (may be empty) tell the dynamic dimensions.

    `spans` has their bounds per input and axis; without them `declared.largest` is the upper one.

    Raises ConversionError with the user's file and line, and a way out.
    """
    import torch

    bounded = spans or [{}] * len(specs)
    dynamic = [_dims(t, s, b) for t, s, b in zip(examples, specs, bounded, strict=True)] if specs else []
    try:
        with torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            program = torch.export.export(
                module, tuple(examples), dynamic_shapes=_shapes(module, dynamic), strict=False
            )
    except Exception as error:  # torch.export raises dozens of kinds
        raise refused(error) from error
    _refuse_effects(module, [str(w.message) for w in said])
    _refuse_state(program)
    _refuse_fixed(program, specs)
    return program


def _shapes(module: Any, dynamic: Sequence[Mapping[int, Any]]) -> Any:
    if not any(dynamic):
        return None
    parameters = inspect.signature(module.forward).parameters.values()
    together = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return (tuple(dynamic),) if together else tuple(dynamic)


def _dims(tensor: Any, spec: TensorSpec, spans: Mapping[int, OpenDimension]) -> dict[int, Any]:
    import torch

    made = {}
    for axis in (k for k, size in enumerate(spec.shape) if size == -1):
        span = spans.get(axis, OpenDimension(axis=axis))
        most = span.most or largest(axis, int(tensor.shape[axis]))
        made[axis] = torch.export.Dim.AUTO(min=span.least, max=most)
    return made


def _refuse_effects(module: Any, warned: Sequence[str]) -> None:
    """Raise for a tensor that the user's forward keeps in an attribute: torch.export only warns, and drops that.

    Torch's own layers do so as well (the weights of an LSTM), without harm.
    """
    for text in warned:
        found = re.search(r"tensor attributes? (self\.[\w.\[\]]+).*assigned during export", text)
        if found is None:
            continue
        names = [n for n in re.split(r"[.\[\]]+", found[1]) if n and not n.isdigit()]
        if line := _line_of(module, names[-1]):
            raise ConversionError(
                f"The module keeps a tensor in {_own_name(found[1])} from one call to the next{line}: a Python side "
                "effect that a program cannot have.",
                hint="Make it an output of the module, and an input where the next call needs it.",
            )


def _own_name(name: str) -> str:
    """Return the name that the user's module has for `inner.module.x` of the wrappers here."""
    return name.removeprefix("self.").rpartition("inner.")[2].removeprefix("module.")


def _line_of(module: Any, attribute: str) -> str:
    for part in module.modules():
        forward = getattr(type(part), "forward", None)
        file = getattr(getattr(forward, "__code__", None), "co_filename", "")
        if not is_users(file):
            continue
        lines, start = inspect.getsourcelines(part.forward)
        for number, line in enumerate(lines, start):
            if re.search(rf"\bself\.{attribute}\b", line):
                return f" at {Path(file).name}, line {number} ({line.strip()})"
    return ""


def _mutated(program: Any) -> set[str]:
    """Return the buffers that the graph changes: as outputs of their own, or in place in a graph not yet functional."""
    names = set(program.graph_signature.buffers_to_mutate.values())
    buffers = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.is_write and getattr(value, "name", None) in buffers:
                names.add(buffers[value.name])
    return names


def _refuse_state(program: Any) -> None:
    if changed := sorted(map(_own_name, _mutated(program))):
        raise ConversionError(
            f"The module changes its buffers {', '.join(changed)} at each call: a Python side effect that a program "
            "does not share with its caller.",
            hint="Make the state an input and an output of the module.",
        )


def _refuse_fixed(program: Any, specs: Sequence[TensorSpec]) -> None:
    for spec, value in zip(specs, carrier.user_inputs(program), strict=False):
        for axis, (wanted, size) in enumerate(zip(spec.shape, carrier.shape_of(value), strict=True)):
            if wanted == -1 and size != -1:
                raise ConversionError(
                    f"Dimension {axis} of {spec.name!r} is declared as dynamic, and the module fixes it to {size}.",
                    hint="Declare its size, or remove what depends on it (a reshape to one size, a position table).",
                )


def refused(error: Exception) -> ConversionError:
    """Return what a failure of torch.export means, at which line of the user's, and a way out."""
    if isinstance(error, ConversionError):
        return error
    if isinstance(error, EdgekitError):
        return ConversionError(error.message, hint=error.hint)
    found = explain(error)
    text = f"{type(error).__name__}: {error}"
    if re.search(_STEERING, text):
        return ConversionError(found.message, hint=_WAY_OUT)
    message = found.message.replace("litert-torch failed", "torch.export failed")
    hint = found.hint
    fake = r"no fake impl registered for <?(?:CustomOpDef\()?([\w.:]+)"
    if unknown := re.search(rf"UnsupportedOperatorException: ([\w.]+)|{fake}", text):
        message = f"torch.export knows no shape rule of the operator {unknown[1] or unknown[2]}{where(error)}."
        hint = "Write it with torch's own operators, or register one with torch.library.register_fake."
    elif "numpy" in text and not hint:
        hint = "Compute with torch's own operators: a program has no NumPy."
    elif re.search(_EFFECTS, text, re.IGNORECASE) and not hint:
        hint = "Keep forward free of side effects: no lists, attributes or globals that it changes."
    return ConversionError(message, hint=hint or "Write the line named here with tensors and fixed sizes only.")


def bounds(program: Any, signature: Signature) -> tuple[Finding, ...]:
    """Return one finding per input with dynamic dimensions: up to which size memory is planned."""
    limits = carrier.limits(program)
    made = []
    for spec, value in zip(signature.inputs, carrier.user_inputs(program), strict=True):
        if -1 not in spec.shape:
            continue
        most = [carrier.span_of(d, limits)[1] for d in value.shape]
        made.append(
            Finding(
                rule="DYNAMIC_BOUND",
                severity="info",
                op=spec.name,
                message=f"{spec} takes sizes up to {most}; memory is planned for that.",
                fix=f"Other bounds: --shape {spec.name}=..., an open dimension as LEAST..MOST.",
            )
        )
    return tuple(made)


# --- Keras, by its torch backend ---------------------------------------------------------------------------------


def export_keras(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: write the exported carrier of a Keras model, in a process where keras was not imported yet.

    Request: `source` (file, or `file.py:factory`), `signature` (of edge.sources.keras), `path`, `trust`; for a factory
    `weights`, an npz in the order of Keras. Answer: `findings`, `tools`.
    """
    signature = codec.from_json(Signature, request["signature"])
    progress("exporting by Keras's torch backend", None)
    _use_torch_backend()
    model = _keras_model(str(request["source"]), trust=bool(request.get("trust", False)))
    if "weights" in request:
        import numpy as np

        with np.load(request["weights"], allow_pickle=False) as stored:
            model.set_weights([stored[f"arr_{i}"] for i in range(len(stored.files))])
    path = Path(request["path"])
    given = {n: tuple(codec.from_json(OpenDimension, d) for d in dims) for n, dims in request.get("open", {}).items()}
    found = export_keras_model(model, signature, path, given)
    from edge.sources import declared

    return {"findings": [codec.to_json(f) for f in found], "tools": dict(declared.versions("keras", "torch"))}


def _use_torch_backend() -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    if keras.backend.backend() != "torch":
        raise ToolError(
            f"Keras runs on its {keras.backend.backend()} backend in this process; the export needs torch.",
            hint="Run the export in a process of its own.",
        )


def _keras_model(source: str, *, trust: bool) -> Any:
    from edge.sources import factory, sniff
    from edge.sources.keras import load_model

    found = sniff.split_factory(source)
    if found is None:
        return load_model(Path(source), trust=trust)[0]
    made = factory.call(*found)
    return made[0] if isinstance(made, (tuple, list)) and len(made) == 2 else made


def export_keras_model(
    model: Any, signature: Signature, path: Path, opened: Mapping[str, tuple[OpenDimension, ...]] | None = None
) -> tuple[Finding, ...]:
    """Write the carrier of a Keras model that runs on the torch backend. Raises ConversionError.

    `opened` has the bounds of the signature's open dimensions by input name.
    """
    import torch

    dims = [(opened or {}).get(t.name, ()) for t in signature.inputs]
    shapes = [
        example_shape(t.name, InputDeclaration(shape=t.shape, open=d))
        for t, d in zip(signature.inputs, dims, strict=True)
    ]
    examples = [torch.zeros(s, dtype=getattr(torch, t.dtype)) for s, t in zip(shapes, signature.inputs, strict=True)]
    spans = [{d.axis: d for d in of} for of in dims]
    flat = _keras_module(model, signature)
    program = export(flat, examples, signature.inputs, spans)
    stripped = program.module(check_guards=False)
    if _strip_layouts(stripped):
        program = export(_Flat.of(stripped), examples, signature.inputs, spans)
    carrier.save(program, signature, path)
    return bounds(program, signature)


class _Flat:
    """Makes a module of *tensors of a graph module, so that both are exported alike."""

    @staticmethod
    def of(graph: Any) -> Any:
        import torch

        class Inner(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.graph_module = graph

            def forward(self, *tensors: Any) -> Any:
                return self.graph_module(*tensors)

        inner = Inner()
        inner.training = False
        return inner


def _keras_module(model: Any, signature: Signature) -> Any:
    import torch

    from edge.sources.base import Declaration
    from edge.sources.keras_model import _symbolic_inputs, flatten

    declared = {t.name: InputDeclaration(shape=t.shape, dtype=t.dtype) for t in signature.inputs}
    structure, _ = _symbolic_inputs(model, Declaration(inputs=declared))
    wanted = [getattr(torch, t.dtype) for t in signature.outputs]

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            import keras

            results = self.model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)
            leaves = [value for _, value in flatten(results)]
            return tuple(v if v.dtype == d else v.to(d) for v, d in zip(leaves, wanted, strict=True))

    module = Model()
    module.training = False
    return module


def _strip_layouts(graph: Any) -> int:
    """Remove copies into an explicit memory format: they lower, but ExecuTorch's kernel refuses them at run time."""
    import torch

    targets = {torch.ops.aten.contiguous.default, torch.ops.aten.clone.default}
    found = [
        n
        for n in graph.graph.nodes
        if n.op == "call_function" and n.target in targets and n.kwargs.get("memory_format")
    ]
    for node in found:
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    graph.recompile()
    return len(found)
