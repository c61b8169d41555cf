"""Source: TorchScript archives (`.pt`, `.jit`), traced or scripted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, SourceError
from edge.sources import declared
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.sniff import sniff
from edge.sources.torch import to_float32
from edge.sources.torch_io import Call
from edge.sources.torch_model import LoadedTorch
from edge.sources.torchscript_convert import exported

_NUMBERS = {"int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class TorchScriptSource:
    """Archives of torch.jit.save."""

    kind: str = "torchscript"
    packages: tuple[str, ...] = ("torch", "litert_torch")

    def matches(self, location: str) -> bool:
        """Tell whether the file is a TorchScript archive that is not one of PyTorch Mobile."""
        return sniff(location) == "torchscript"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the archive. Raises ConfigError for inputs without a shape, SourceError for a damaged file."""
        import torch

        path = Path(location)
        try:
            script = torch.jit.load(str(path), map_location="cpu").eval()
        except Exception as error:  # a damaged archive raises whatever its parts lead to
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
            raise SourceError(
                f"{path} cannot be read as TorchScript: {type(error).__name__}: {first[:300]}",
                hint="Save it again with torch.jit.save; custom operators must be builtin ones.",
            ) from error
        findings = to_float32(script)
        call = _call(script, declaration)
        digest = declared.file_digest(path)
        return LoadedTorchScript(script, call, declaration, digest=digest, findings=findings, kind="torchscript")


class LoadedTorchScript(LoadedTorch):
    """A ScriptModule: it is the reference itself; its exported form is what converters take."""

    _exported: Any = None

    @property
    def convertible(self) -> Any:
        """The exported form."""
        if self._exported is None:
            self._exported = exported(self._module, self._call.arguments(self._call.tensors)[0])
        return self._exported


def _call(script: Any, declaration: Declaration) -> Call:
    """Return the call of a ScriptModule: its tensors from declared shapes, its numbers from declared values."""
    from torch.utils import _pytree as pytree

    arguments = script.forward.schema.arguments[1:]  # the first is the module, whatever its author calls it
    names = declared.unique(a.name.replace(".", "_") for a in arguments)
    wishes = declared.inputs_of(declaration, names)
    leaves: list[Any] = []
    for argument, name, wish in zip(arguments, names, wishes, strict=True):
        leaves.append(_leaf(argument, name, wish))
    import torch

    positions = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    if not positions:
        raise ConfigError(
            "There is no shape for any input.", hint=declared.HOW_TO_DECLARE.format(name=names[0], shape="1,3,224,224")
        )
    tensors = tuple(leaves[i] for i in positions)
    layouts = tuple(
        wishes[i].layout or ("NCHW" if leaves[i].dim() == 4 and leaves[i].is_floating_point() else "other")
        for i in positions
    )
    structure = pytree.tree_flatten(((0,) * len(leaves), {}))[1]
    return Call(tuple(names[i] for i in positions), tensors, layouts, tuple(leaves), positions, structure)


def _leaf(argument: Any, name: str, wish: InputDeclaration) -> Any:
    import torch

    kind = str(argument.type)
    if kind in _NUMBERS:
        if wish.value is None and not argument.has_default_value():
            raise ConfigError(
                f"The input {name!r} of the TorchScript model is one {kind}: a constant of the program.",
                hint=f"Fix it: --set {name}=VALUE.",
            )
        return argument.default_value if wish.value is None else _NUMBERS[kind](wish.value)
    if wish.shape is None and argument.has_default_value():
        return argument.default_value
    if kind not in ("Tensor", "Optional[Tensor]"):
        raise SourceError(
            f"The input {name!r} of the TorchScript model is a {kind}; a program takes tensors.",
            hint="Wrap the module in one that takes tensors, and trace that.",
        )
    if wish.shape is None:
        raise ConfigError(
            f"A TorchScript archive does not say its shapes, and there is none for {name!r}.",
            hint=declared.HOW_TO_DECLARE.format(name=name, shape="1,3,224,224"),
        )
    shape = declared.static_shape(name, wish.shape, None)
    dtype = getattr(torch, wish.dtype or "float32")
    return torch.rand(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
