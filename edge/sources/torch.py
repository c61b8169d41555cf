"""Source: PyTorch modules from `file.py:factory`, and exported programs (`.pt2`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConversionError, SourceError
from edge.findings import Finding
from edge.sources import declared, factory, torch_io
from edge.sources.base import Declaration, LoadedSource
from edge.sources.sniff import sniff, split_factory
from edge.sources.torch_model import LoadedTorch
from edge.targets import torch_fake_quant, torch_pickles

_STATE_HINT = "Make the state an input and an output of the module."


@dataclass(frozen=True)
class TorchSource:
    """PyTorch modules and exported programs."""

    kind: str = "torch"
    packages: tuple[str, ...] = ("torch", "litert_torch")

    def matches(self, location: str) -> bool:
        """Tell whether the location is `file.py:factory` or a `.pt2` archive."""
        found = split_factory(location)
        return sniff(location) == "pt2" or bool(found and found[1] and sniff(location) == "python")

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the module. Raises SourceError with the user's line where their code fails."""
        found = split_factory(location)
        return _from_factory(*found, declaration) if found else _from_exported(Path(location), declaration)


def _from_factory(path: Path, name: str, declaration: Declaration) -> LoadedSource:
    torch = _torch()
    if torch:
        torch.manual_seed(0)  # a factory without trained weights gives the same module at each build
    made = factory.call(path, name)
    model, example, methods = _parts(made)
    if type(model).__module__.partition(".")[0] == "keras" or _is_keras(model):
        return _from_keras(path, name, model, declaration)
    if torch is None or isinstance(model, torch.jit.ScriptModule) or not isinstance(model, torch.nn.Module):
        return _from_function(path, name, (model, example), declaration)
    model.eval()
    model, faked = torch_fake_quant.freeze(model)
    findings = (*to_float32(model), *faked)
    if example is None:
        call = torch_io.from_declaration(model, declaration)
    else:
        args, kwargs = torch_io.as_arguments(example)
        call = torch_io.from_example(model, args, kwargs, declaration)
    digest = _digest(path.read_bytes(), model.state_dict())
    return LoadedTorch(model, call, declaration, digest=digest, findings=findings, methods=methods)


def _parts(made: Any) -> tuple[Any, Any, Mapping[str, tuple[Any, ...]]]:
    """Return module, example inputs and further methods with theirs: a factory may return one, two or all three."""
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 3):
        return made, None, {}
    model, example, *rest = made
    if not rest:
        return model, example, {}
    if not isinstance(rest[0], Mapping) or not all(isinstance(n, str) for n in rest[0]):
        raise SourceError(
            f"The third value of the factory is {type(rest[0]).__name__}; accepted: further methods of the module "
            "with their example inputs, such as {'decode': (tensor,)}.",
        )
    return model, example, {n: torch_io.as_arguments(v)[0] for n, v in rest[0].items()}


def _torch() -> Any:
    """Return torch, None where it is not installed: a factory of another framework does not need it."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def _from_function(path: Path, name: str, made: tuple[Any, Any], declaration: Declaration) -> LoadedSource:
    """Open what a factory returned that is no module of PyTorch or Keras: a JAX function with example inputs."""
    from edge.sources import jax_function

    model, example = made
    scripted = type(model).__module__.startswith("torch.")
    function = None if scripted else jax_function.as_function(model)
    if function is not None and example is not None:
        return jax_function.load(path, function, example, declaration)
    raise SourceError(
        f"{path.name}:{name} returned {type(model).__name__}; accepted: a torch.nn.Module (not scripted), "
        "a Keras model, such a one with example inputs: (module, (tensor, …)) or (module, {'name': tensor}), "
        f"or a JAX function: {jax_function.ACCEPTED}.",
    )


def _is_keras(model: Any) -> bool:
    return any(c.__module__.partition(".")[0] == "keras" for c in type(model).__mro__)


def _from_keras(path: Path, name: str, model: Any, declaration: Declaration) -> LoadedSource:
    from edge.sources.keras import import_keras
    from edge.sources.keras_model import LoadedKeras

    import_keras()
    weights = {v.path: v.numpy() for v in model.weights}
    location = f"{path}:{name}"
    return LoadedKeras(model, declaration, digest=_digest(path.read_bytes(), weights), findings=(), location=location)


def _digest(text: bytes, weights: Mapping[str, Any]) -> str:
    import numpy as np

    total = hashlib.sha256(text)
    for name in sorted(weights):
        value = weights[name]
        array = (
            np.ascontiguousarray(_array(value))
            if hasattr(value, "shape")
            else np.frombuffer(repr(value).encode(), "u1")
        )
        total.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _array(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    import torch

    plain = value.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def to_float32(module: Any) -> tuple[Finding, ...]:
    """Cast half and double precision parameters and buffers to float32, in place, with a finding."""
    import torch

    held = [*module.named_parameters(), *module.named_buffers()]
    odd = [(n, str(t.dtype)) for n, t in held if t.is_floating_point() and t.dtype != torch.float32]
    if not odd:
        return ()
    module.float()
    kinds = ", ".join(sorted({d.removeprefix("torch.") for _, d in odd}))
    return (
        Finding(
            rule="WEIGHTS_CAST",
            severity="info",
            op=odd[0][0],
            message=f"{len(odd)} weights are {kinds} in the source; the program and its reference compute in float32.",
        ),
    )


def _from_exported(path: Path, declaration: Declaration) -> LoadedSource:
    import torch

    torch_fake_quant.operators()
    try:
        with torch_pickles.refused(trust=declaration.trust):
            program = torch.export.load(str(path))
    except torch_pickles.PickleRefusedError:
        raise
    except Exception as error:  # a damaged archive raises whatever its parts lead to
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise SourceError(
            f"{path} cannot be read: {type(error).__name__}: {first[:300]}",
            hint="Save it again with torch.export.save of this PyTorch version; custom operators must be builtin ones.",
        ) from error
    _refuse_training(program, path)
    if not program.example_inputs:
        raise SourceError(
            f"{path} holds no example inputs.", hint="Export it again with torch.export.export(module, inputs)."
        )
    module = program.module(check_guards=False)
    if torch_fake_quant.marks(module.graph):
        torch_fake_quant.rewrite(module)
    findings = (*to_float32(module), *_baked(program))
    args, kwargs = _batch_of_one(program)
    call = torch_io.from_example(module, args, kwargs, declaration)
    return LoadedTorch(module, call, declaration, digest=declared.file_digest(path), findings=findings, kind="torch")


def _refuse_training(program: Any, path: Path) -> None:
    """Raise for a program exported in training mode (arguments of dropout and batch_norm say so) or with state."""
    flags = {"dropout": 2, "batch_norm": 5, "feature_dropout": 2, "alpha_dropout": 2}
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if name == "native_dropout" or (
            name in flags and len(node.args) > flags[name] and node.args[flags[name]] is True
        ):
            raise SourceError(
                f"{path} was exported in training mode: it applies {name}.",
                hint="Call module.eval() before torch.export.export.",
            )
    if changed := sorted(set(program.graph_signature.buffers_to_mutate.values())):
        raise ConversionError(
            f"{path} changes its buffers {', '.join(changed)} at each call; a program would drop that without a word.",
            hint=_STATE_HINT,
        )


def _batch_of_one(program: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the example inputs, cut to one sample where the first dimensions are one open size used nowhere else."""
    import torch
    from torch.utils import _pytree as pytree

    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    shapes = [list(map(str, n.meta["val"].shape)) for n in inputs if isinstance(n.meta.get("val"), torch.Tensor)]
    batch = {s[0] for s in shapes if s and not s[0].isdigit()}
    elsewhere = {d for s in shapes for d in s[1:]}
    example: tuple[tuple[Any, ...], dict[str, Any]] = program.example_inputs
    if len(batch) != 1 or batch & elsewhere:
        return example
    opened = iter([bool(s) and s[0] in batch for s in shapes])
    cut: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(
        lambda v: v[:1] if isinstance(v, torch.Tensor) and next(opened) else v, example
    )
    return cut


def _baked(program: Any) -> tuple[Finding, ...]:
    ranges = {str(symbol): str(limits) for symbol, limits in program.range_constraints.items()}
    if not ranges:
        return ()
    return (
        Finding(
            rule="SHAPES_BAKED",
            severity="warning",
            message=f"{len(ranges)} dynamic sizes become fixed: an open batch 1, others as in the example inputs.",
            fix="Declare shapes for other sizes.",
        ),
    )
