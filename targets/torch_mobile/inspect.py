"""What a `.ptl` is made of: operators in order, the ones an app must link, bytecode version, parameter bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from edge.errors import SourceError
from edge.targets.base import Inspection, Operator
from edge.targets.torch_common import first_line, import_torch, quiet
from edge.targets.torch_mobile import session
from edge.targets.torch_mobile.quantize import engine


def required_operators(path: Path) -> list[str]:
    """Return the names of the operators that an app's runtime must be linked with, sorted (selective build)."""
    from torch.jit.mobile import _get_model_ops_and_info

    return sorted(_get_model_ops_and_info(str(path)))


def bytecode_version(path: Path) -> int:
    """Return the version of the bytecode: a runtime older than it refuses the file."""
    from torch.jit.mobile import _get_model_bytecode_version

    return int(_get_model_bytecode_version(str(path)))


def inspect_program(path: Path) -> Inspection:
    """Read a `.ptl` without running it. Raises SourceError for a damaged file."""
    torch = import_torch()
    signature = session.read_contract(path)
    try:
        with engine(), quiet():
            names, version = required_operators(path), bytecode_version(path)
            graph = torch.jit.load(str(path), map_location="cpu").inlined_graph
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{path.name} cannot be read: {first_line(error)}", hint="Build it again.") from error
    return Inspection(
        operators=tuple(_operators(graph)),
        parameter_bytes=_parameter_bytes(path),
        signature=signature,
        details={"operators": names, "bytecode_version": version},
    )


def _operators(graph: Any) -> list[Operator]:
    """Return the operators in order; those of a condition or loop follow it, in its own subgraph."""
    found: list[Operator] = []

    def walk(block: Any, subgraph: int) -> None:
        for node in block.nodes():
            kind = node.kind()
            inner = list(node.blocks())
            if not kind.startswith("prim::") or inner:
                outputs = tuple(o.debugName() for o in node.outputs())
                found.append(Operator(index=len(found), op=kind, outputs=outputs, subgraph=subgraph))
            for number, child in enumerate(inner):
                walk(child, subgraph + number + 1)

    walk(graph, 0)
    return found


def _parameter_bytes(path: Path) -> int:
    """Return the bytes of all stored tensors."""
    with zipfile.ZipFile(path) as archive:
        return sum(
            i.file_size
            for i in archive.infolist()
            if i.filename.split("/")[1:2] in (["constants"], ["data"]) and not i.filename.endswith(".pkl")
        )
