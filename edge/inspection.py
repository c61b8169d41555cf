"""Look at a model without building it: its operators, where they would run, its memory and what is wrong with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import codec, isolate
from edge.errors import SourceError, UsageError, blaming
from edge.isolate import Progress
from edge.sources.base import Declaration, InputDeclaration
from edge.targets import registry
from edge.targets.base import Inspection, Target

# Programs for phones, by the runtime that reads them.
_PROGRAMS = {".pte": "executorch", ".ptl": "torch_mobile", ".mlpackage": "coreml"}
# Runtimes that read a file by edgekit's own code, which checks every offset and runs nothing of it: no child process is
# needed, which keeps `inspect` fast. Others leave it to the framework's code.
_OWN_READERS = ("litert", "edgetpu")


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


class SharedCache:
    """The Edge TPU's parameter cache of models that are compiled together: earlier ones take it first."""

    def __init__(self, models: Sequence[Path]) -> None:
        from edge.targets.edgetpu.predict import shared_cache

        if any(not _is_flatbuffer(m) for m in models):
            raise UsageError("--co-compile takes int8 .tflite files only.", hint="Give model.tflite of each artifact.")
        self._left = shared_cache(models)

    def take(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with what is left of the cache."""
        return {**options, "available_bytes": self._left}

    def used(self, found: Inspection) -> None:
        """Note what a model keeps on the chip."""
        self._left = max(0, self._left - int(found.details.get("on_chip_bytes") or 0))


def inspect(
    path: Path, model: str, request: Request, progress: Progress, cache: SharedCache | None = None
) -> Inspected:
    """Return the inspection of a flatbuffer, an artifact, or any source (converted to a temporary carrier first)."""
    if cache:
        found = _look(path, model, replace(request, options=cache.take(request.options)), None, progress)
        cache.used(found.inspection)
        return found
    if path.is_dir() and (path / artifacts.MANIFEST).is_file():
        opened = artifacts.read(path)
        return _look(opened.program, model, request, opened.manifest.runtime, progress)
    if path.is_file() and _is_flatbuffer(path):
        return _look(path, model, request, None, progress)
    if path.suffix in _PROGRAMS and path.exists():
        return _look(path, model, request, _PROGRAMS[path.suffix], progress)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        carrier = _convert(model, Path(folder), request, progress)
        return _look(carrier, model, request, None, progress)


def _is_flatbuffer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(8)[4:] == b"TFL3" or path.suffix == ".tflite"


def _look(path: Path, model: str, request: Request, runtime: str | None, progress: Progress) -> Inspected:
    name = runtime or (request.target.runtimes[0] if request.target else _runtime_of(path))
    if name in _OWN_READERS:
        with blaming(SourceError, f"{model} cannot be inspected", hint="Convert or download it again."):
            found = registry.runtime(name).inspect(path, request.target, request.options)
    else:
        found = _apart(path, name, request, progress)
    return Inspected(model=model, runtime=name, inspection=found)


def _apart(path: Path, runtime: str, request: Request, progress: Progress) -> Inspection:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        answer = isolate.call(
            "edge.stages.inspecting:inspect_program",
            {
                "path": str(path.absolute()),
                "runtime": runtime,
                "target": codec.to_json(request.target) if request.target else None,
                "options": dict(request.options),
            },
            workdir=Path(folder),
            name="inspect",
            progress=progress,
        )
    return codec.from_json(Inspection, answer["inspection"])


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
