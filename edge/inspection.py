"""Look at a model without building it: its operators, where they would run, its memory and what is wrong with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import codec, isolate
from edge.isolate import Progress
from edge.sources.base import Declaration, InputDeclaration
from edge.targets import registry
from edge.targets.base import Inspection, Target


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to look for."""

    target: Target | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One model that was looked at; `model` is what the user named it."""

    model: str
    runtime: str
    inspection: Inspection


def inspect(path: Path, model: str, request: Request, progress: Progress) -> Inspected:
    """Return the inspection of a flatbuffer, an artifact, or any source (converted to a temporary carrier first)."""
    if path.is_dir() and (path / artifacts.MANIFEST).is_file():
        opened = artifacts.read(path)
        return _look(opened.program, model, request, opened.manifest.runtime)
    if path.is_file() and _is_flatbuffer(path):
        return _look(path, model, request, None)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        carrier = _convert(model, Path(folder), request, progress)
        return _look(carrier, model, request, None)


def _is_flatbuffer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(8)[4:] == b"TFL3" or path.suffix == ".tflite"


def _look(path: Path, model: str, request: Request, runtime: str | None) -> Inspected:
    name = request.target.runtimes[0] if request.target else runtime or _runtime_of(path)
    # Reading a flatbuffer runs nothing of it, so no child process is needed: this keeps `inspect` fast.
    found = registry.runtime(name).inspect(path, request.target, request.options)
    return Inspected(model=model, runtime=name, inspection=found)


def _runtime_of(path: Path) -> str:
    from edge.targets.edgetpu import package

    return "edgetpu" if package.is_compiled_file(path) else "litert"


def _convert(model: str, folder: Path, request: Request, progress: Progress) -> Path:
    declaration = Declaration(
        inputs={name: InputDeclaration(shape=shape) for name, shape in request.shapes.items()}, trust=request.trust
    )
    progress(f"converting {model} to look at it", None)
    result = isolate.call(
        "edge.stages.importing:convert",
        {"source": model, "declaration": codec.to_json(declaration), "workdir": str(folder)},
        workdir=folder,
        progress=progress,
    )
    return Path(result["carrier"])
