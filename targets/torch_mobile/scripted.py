"""The script route of PyTorch Mobile: a TorchScript carrier, for control flow that torch.export refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.errors import ConversionError, QuantizationError, SourceError
from edge.signature import Signature
from edge.targets.torch_common import CONTRACT, as_tensors, first_line, import_torch, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

SUFFIX = ".pt"
_SEED = 20260104


def script(module: Any, signature: Signature, dtypes: Sequence[str], results: Any, path: Path) -> None:
    """Write a module as TorchScript of flat tensors in the signature's dtypes, with the signature inside.

    `dtypes` are the module's own of its inputs, `results` what it returned for the example. Raises ConversionError with
    the user's line where torch.jit.script refuses, or for outputs that are nested deeper than one level.
    """
    import torch

    holder = torch.nn.Module()
    try:
        with quiet():
            holder.inner = torch.jit.script(module)
            made = torch.jit.script(holder)
            made.define(_forward(signature, dtypes, results))
            made.eval()
            torch.jit.save(made, str(path), _extra_files={CONTRACT: codec.dumps(codec.to_json(signature))})
    except (RuntimeError, TypeError, AttributeError, OSError) as error:
        raise ConversionError(
            f"torch.jit.script refuses the module{_line(error)}: {first_line(error)}",
            hint="TorchScript knows a part of Python only: annotate types, or write the branch with torch.cond and "
            "build without --script.",
        ) from error


def _line(error: BaseException) -> str:
    quoted = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    own = [(Path(file).name, line) for file, line in quoted if "site-packages" not in file]
    return " at {}, line {}".format(*own[-1]) if own else ""


def _forward(signature: Signature, dtypes: Sequence[str], results: Any) -> str:
    names = [f"x{i}" for i in range(len(signature.inputs))]
    given = [
        n if t.dtype == d else f"{n}.to(torch.{d})" for n, t, d in zip(names, signature.inputs, dtypes, strict=True)
    ]
    taken = [_cast(e, t.dtype) for e, t in zip(_leaves(results), signature.outputs, strict=True)]
    head, call = ", ".join(names), ", ".join(given)
    ends = "".join(f"{t}, " for t in taken)
    return f"def forward(self, {head}):\n    r = self.inner({call})\n    return ({ends})\n"


def _cast(expression: str, dtype: str) -> str:
    return f"{expression}.to(torch.{dtype})"


def _leaves(results: Any) -> list[str]:
    import torch

    if isinstance(results, torch.Tensor):
        return ["r"]
    pairs = results.items() if isinstance(results, Mapping) else enumerate(results)
    found = [(key, value) for key, value in pairs if value is not None]
    if not all(isinstance(value, torch.Tensor) for _, value in found):
        raise ConversionError(
            "The module returns nested outputs, which the script route does not take.",
            hint="Return one tensor, a tuple of tensors or a dict of them.",
        )
    return [f"r[{key!r}]" for key, _ in found]


class ScriptedSession:
    """A TorchScript carrier run by PyTorch: the float reference of the script route."""

    def __init__(self, path: Path) -> None:
        torch = import_torch()
        held = {CONTRACT: ""}
        try:
            with quiet():
                self.module = torch.jit.load(str(path), _extra_files=held).eval()
            text: Any = held[CONTRACT]
            self.signature = codec.from_json(Signature, json.loads(text))
        except (RuntimeError, ValueError) as error:
            raise SourceError(
                f"{path.name} is no TorchScript carrier of edgekit: {first_line(error)}", hint="Import it again."
            ) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DataError for a wrong name, shape or dtype, SourceError where TorchScript fails."""
        import torch

        tensors = as_tensors(self.signature, inputs)
        try:
            with torch.no_grad():
                found = self.module(*tensors)
        except RuntimeError as error:
            raise SourceError(f"TorchScript failed while running the module: {first_line(error)}") from error
        return {t.name: v.numpy() for t, v in zip(self.signature.outputs, found, strict=True)}

    def draws(self, count: int) -> list[list[Any]]:
        """Return input tensors, the same at each call; the sign of the floats goes either way."""
        import torch

        generator = torch.Generator().manual_seed(_SEED)
        made = []
        for number in range(count):
            tensors = []
            for t in self.signature.inputs:
                dtype = getattr(torch, t.dtype)
                uniform = torch.rand(t.shape, generator=generator)
                tensors.append((uniform * 2 - number % 3).to(dtype) if dtype.is_floating_point else uniform.to(dtype))
            made.append(tensors)
        return made


def refuse(recipe: str) -> None:
    """Raise QuantizationError for a recipe that the script route has not."""
    if recipe != "float32":
        raise QuantizationError(
            f"The script route of PyTorch Mobile makes float32 programs, not {recipe}: its quantizers need a graph "
            "without Python's branches.",
            hint="Write the branch with torch.cond and build without --script, or use --recipe float32.",
        )
