"""Run a `.ptl` with the lite interpreter, the code that runs it in an app."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import SourceError, UsageError
from edge.signature import Signature
from edge.targets.torch_common import CONTRACT, as_tensors, first_line, import_torch, quiet
from edge.targets.torch_mobile.quantize import ENGINE, engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

KERNEL_SETS = (ENGINE,)


def read_contract(path: Path) -> Signature | None:
    """Return the signature inside a `.ptl`, None where edgekit did not write it. Raises SourceError for no `.ptl`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            if "bytecode.pkl" not in members:
                raise SourceError(
                    f"{path.name} holds no bytecode for the lite interpreter.",
                    hint="Save the TorchScript module with _save_for_lite_interpreter.",
                )
            held = archive.read(members[f"extra/{CONTRACT}"]) if f"extra/{CONTRACT}" in members else None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(f"{path.name} is no .ptl file: {first_line(error)}", hint="Build it again.") from error
    if held is None:
        return None
    try:
        return codec.from_json(Signature, json.loads(held))
    except ValueError as error:
        raise SourceError(f"{path.name} has a damaged contract: {first_line(error)}", hint="Build it again.") from error


class LiteInterpreterSession:
    """An opened `.ptl`; arrays in the program's own dtypes, by signature name.

    `kernels` is that of the quantized operators, `aten` where there are none.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        torch = import_torch()
        from torch.jit.mobile import _get_model_ops_and_info, _load_for_lite_interpreter

        contract = read_contract(path)
        if contract is None:
            raise SourceError(
                f"{path.name} was not written by edgekit: it does not say its inputs.",
                hint="Build it with edgekit, or look at its operators with `edgekit inspect`.",
            )
        self.signature: Signature = contract
        torch.set_num_threads(threads)
        try:
            with engine(), quiet():
                self._module = _load_for_lite_interpreter(str(path), map_location="cpu")
                operators = _get_model_ops_and_info(str(path))
        except RuntimeError as error:
            raise SourceError(f"The lite interpreter cannot load {path.name}: {first_line(error)}") from error
        self.kernels = ENGINE if any(name.startswith("quantized::") for name in operators) else "aten"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DataError for a wrong name, shape or dtype, SourceError where the interpreter fails."""
        found = self.run_tensors(as_tensors(self.signature, inputs))
        return {t.name: v.numpy() for t, v in zip(self.signature.outputs, found, strict=True)}

    def run_tensors(self, tensors: Sequence[Any]) -> list[Any]:
        """Run once on tensors in the signature's order; only tensors may reach the interpreter, it dies of a str."""
        import torch
        from torch.utils import _pytree as pytree

        try:
            with engine(), torch.no_grad():
                return [t.detach().clone() for t in pytree.tree_leaves(self._module(*tensors))]
        except RuntimeError as error:
            raise SourceError(f"The lite interpreter failed: {first_line(error)}") from error


def open_program(path: Path, *, kernels: str, threads: int) -> LiteInterpreterSession:
    """Open a `.ptl`. Raises SourceError, UsageError for an unknown kernel set."""
    if kernels not in KERNEL_SETS:
        raise UsageError(f"The kernel set {kernels!r} is unknown; accepted: {', '.join(KERNEL_SETS)}.")
    return LiteInterpreterSession(path, threads=threads)
