"""The ways from each kind of source to each carrier, in the order in which they are tried, and the trying.

A route converts in a process of its own: the import stage's, or a child of it. The first whose program gives the
source's results wins. What a route did wrong is kept for the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge import codec, isolate
from edge.errors import (
    ConversionError,
    EdgekitError,
    MissingPackageError,
    SourceError,
    StageCrashError,
    StageMemoryError,
    StageTimeoutError,
    UsageError,
)
from edge.findings import Finding
from edge.isolate import Progress
from edge.sources.base import LoadedSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Sample = Mapping[str, "Array"]
Findings = tuple[Finding, ...]
T = TypeVar("T")

# Where a route that is being tried in the import stage's own process leaves its name.
_CURRENT = "route.txt"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One crossing: the source that is open, the file that the carrier goes to, versions of packages that shape it."""

    loaded: LoadedSource
    path: Path
    progress: Progress
    tools: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way: a name, what it is for a reader, the conversion, and what names the first operator that differs."""

    name: str
    what: str
    convert: Callable[[Task], Findings]
    culprit: Callable[[Task, Sample], str] | None = None


def _own_litert(task: Task) -> Findings:
    task.loaded.to_litert(task.path)
    return ()


def _own_export(task: Task) -> Findings:
    found: Findings = tuple(task.loaded.to_exported(task.path, task.progress) or ())  # type: ignore[attr-defined]
    return found


def _onnx(name: str) -> dict[str, Route]:
    """Return the routes of an ONNX model by one of its forms in PyTorch, which are processes of their own."""

    def litert(task: Task) -> Findings:
        task.loaded.to_litert(task.path, route=name)  # type: ignore[call-arg]
        return ()

    def exported(task: Task) -> Findings:
        found: Findings = task.loaded.to_exported(task.path, task.progress, route=name)  # type: ignore[attr-defined]
        return found

    def culprit(task: Task, sample: Sample) -> str:
        where: str = task.loaded.first_difference(sample, route=name)  # type: ignore[attr-defined]
        return where

    form = {"graph": "edgekit's own ONNX operators in PyTorch", "onnx2torch": "onnx2torch and TS2EPConverter"}[name]
    return {
        "litert": Route(name=name, what=f"{form}, then litert-torch", convert=litert, culprit=culprit),
        "exported": Route(name=name, what=f"{form}, then torch.export", convert=exported, culprit=culprit),
    }


def _flatbuffer_of(task: Task) -> Path:
    return task.path.with_name(f"{task.path.stem}.source.tflite")


def _by_flatbuffer(task: Task) -> Findings:
    """Write the float flatbuffer of the source, and that as a PyTorch graph by edgekit's own LiteRT operators."""
    if found := [t.name for t in task.loaded.signature.inputs if -1 in t.shape]:
        raise ConversionError(f"A flatbuffer has fixed sizes, and a dimension of {found[0]!r} is open.")
    flat = _flatbuffer_of(task)
    task.loaded.to_litert(flat)
    request = {
        "flatbuffer": str(flat.resolve()),
        "signature": codec.to_json(task.loaded.signature),
        "path": str(task.path.resolve()),
    }
    answer = _child("edge.sources.litert_exported:export", request, task)
    task.tools.update(answer["tools"])
    return _findings(answer)


def _flatbuffer_culprit(task: Task, sample: Sample) -> str:
    import numpy as np

    inputs = task.path.with_name("culprit.npz")
    np.savez(inputs, *[np.asarray(sample[t.name]) for t in task.loaded.signature.inputs])
    request = {"flatbuffer": str(_flatbuffer_of(task).resolve()), "inputs": str(inputs.resolve())}
    where: str = _child("edge.sources.litert_exported:culprit", request, task)["where"]
    return where


def _keras_by_torch(task: Task) -> Findings:
    """Export the model by Keras's torch backend, and convert that by litert-torch."""
    exported = task.path.with_name(f"{task.path.stem}.source.pt2")
    found = tuple(task.loaded.to_exported(exported, task.progress))  # type: ignore[attr-defined]
    request = {
        "exported": str(exported.resolve()),
        "signature": codec.to_json(task.loaded.signature),
        "path": str(task.path.resolve()),
    }
    return (*found, *_findings(_child("edge.sources.litert_exported:convert_exported", request, task)))


def _child(stage: str, request: dict[str, Any], task: Task) -> dict[str, Any]:
    name = stage.replace(":", ".").rpartition("sources.")[2]
    return isolate.call(stage, request, workdir=task.path.parent, name=name, progress=task.progress)


def _findings(answer: Mapping[str, Any]) -> Findings:
    return tuple(codec.from_json(Finding, f) for f in answer["findings"])


def _own_script(task: Task) -> Findings:
    script = getattr(task.loaded, "to_scripted", None)
    if script is None:
        raise ConversionError(
            f"A source of kind {task.loaded.kind} has no Python to script.",
            hint="Build it without --script, or give the PyTorch module as file.py:factory.",
        )
    script(task.path)
    return ()


_SCRIPT = Route(name="torch.jit.script", what="torch.jit.script", convert=_own_script)
_TFLITE = Route(name="tflite-converter", what="TensorFlow's converter over a SavedModel", convert=_own_litert)
_FLATBUFFER = Route(
    name="flatbuffer",
    what="the float flatbuffer, then edgekit's own LiteRT operators in PyTorch and torch.export",
    convert=_by_flatbuffer,
    culprit=_flatbuffer_culprit,
)
_LITERT_TORCH = Route(name="litert-torch", what="litert-torch", convert=_own_litert)
_TORCH_EXPORT = Route(name="torch.export", what="torch.export", convert=_own_export)
_GRAPH, _ONNX2TORCH = _onnx("graph"), _onnx("onnx2torch")

ROUTES: dict[tuple[str, str], tuple[Route, ...]] = {
    ("keras", "litert"): (
        _TFLITE,
        Route(name="torch-backend", what="Keras's torch backend, then litert-torch", convert=_keras_by_torch),
    ),
    ("keras", "exported"): (
        # Keras's torch backend leaves batch normalization and layout copies in the graph: mlperf-vww's int8 has 19 dB
        # by it and at 33 dB by the flatbuffer, in a quarter of the time.
        _FLATBUFFER,
        Route(name="torch-backend", what="Keras's torch backend and torch.export", convert=_own_export),
    ),
    ("torch", "litert"): (_LITERT_TORCH,),
    ("torch", "exported"): (_TORCH_EXPORT,),
    ("torchscript", "litert"): (_LITERT_TORCH,),
    ("torchscript", "exported"): (_TORCH_EXPORT,),
    ("hugging-face", "litert"): (_LITERT_TORCH,),
    ("hugging-face", "exported"): (_TORCH_EXPORT,),
    ("litert", "litert"): (Route(name="as it is", what="the file itself", convert=_own_litert),),
    ("litert", "exported"): (_FLATBUFFER,),
    ("onnx", "litert"): (_GRAPH["litert"], _ONNX2TORCH["litert"]),
    ("onnx", "exported"): (_GRAPH["exported"], _ONNX2TORCH["exported"]),
    ("saved-model", "litert"): (_TFLITE,),
    ("saved-model", "exported"): (_FLATBUFFER,),
    ("frozen-graph", "litert"): (_TFLITE,),
    ("frozen-graph", "exported"): (_FLATBUFFER,),
    ("jax", "litert"): (Route(name="jax2tf", what="jax2tf, then TensorFlow's converter", convert=_own_litert),),
    ("jax", "exported"): (_FLATBUFFER,),
}


def routes_of(kind: str, carrier: str) -> tuple[Route, ...]:
    """Return the routes of a crossing in order; a plug-in's source has its own methods, or its flatbuffer."""
    if carrier == "litert":
        return ROUTES.get((kind, carrier), (Route(name=kind, what=f"{kind}'s own converter", convert=_own_litert),))
    return (_SCRIPT,) if carrier == "scripted" else ROUTES.get((kind, carrier), (_FLATBUFFER,))


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What came of the routes: the name of the one that won, what it is, the others' reasons, the findings."""

    route: str
    what: str
    failed: Mapping[str, str]
    findings: Findings

    def record(self) -> dict[str, Any]:
        """Return the choice as JSON-compatible data."""
        return {"name": self.route, "what": self.what, "failed": dict(self.failed)}


def cross(
    task: Task,
    carrier: str,
    *,
    verify: Callable[[Path], Sequence[Finding]] | None = None,
    sample: Sample | None = None,
    crashed: Mapping[str, str] | None = None,
) -> Crossing:
    """Write the carrier by the first route whose program passes `verify`, which raises ConversionError where not.

    `sample` is an input to look for the first operator that differs with; `crashed` are routes that ended an earlier
    process of this stage, with the reason. Raises ConversionError with the reason of every route.
    """
    failed: dict[str, EdgekitError] = {}
    for route in routes_of(task.loaded.kind, carrier):
        if route.name in (crashed or {}):
            failed[route.name] = ConversionError((crashed or {})[route.name])
            continue
        (task.path.parent / _CURRENT).write_text(route.name, encoding="utf-8")
        task.progress(f"converting by {route.what}", None)
        try:
            findings = _attempt(route, task, verify, sample)
        except EdgekitError as error:
            if not failed and is_users(error):
                raise
            failed[route.name] = error
        else:
            reasons = {name: error.message for name, error in failed.items()}
            chosen = route_finding(route.name, reasons)
            return Crossing(route=route.name, what=route.what, failed=reasons, findings=(*findings, *chosen))
        finally:
            (task.path.parent / _CURRENT).unlink(missing_ok=True)
    raise all_failed(failed)


def _attempt(
    route: Route, task: Task, verify: Callable[[Path], Sequence[Finding]] | None, sample: Sample | None
) -> Findings:
    found = route.convert(task)
    if verify is None:
        return found
    try:
        return (*found, *verify(task.path))
    except ConversionError as error:
        if route.culprit is None or sample is None:
            raise
        where = route.culprit(task, sample)
        raise ConversionError(f"{error.message} {where}", hint=error.hint, log=error.log) from error


def is_users(error: EdgekitError) -> bool:
    """Tell whether a first route's error is for the user to mend, so that no other route is tried."""
    return isinstance(error, (UsageError, SourceError, MissingPackageError))


def all_failed(failed: Mapping[str, EdgekitError]) -> EdgekitError:
    """Return the error for a crossing without a way: the first route's, with the reasons of the others."""
    (_, first), *others = failed.items()
    if not others:
        return first
    reasons = "; ".join(f"{name}: {error.message}" for name, error in others)
    message = f"{first.message} The other routes failed as well: {reasons}"
    return ConversionError(message, hint=first.hint, log=first.log)


def route_finding(route: str, failed: Mapping[str, str]) -> Findings:
    """Return the finding that a route was taken after others had failed, none where it was the first."""
    if not failed:
        return ()
    reasons = "; ".join(f"{name}: {text}" for name, text in failed.items())
    return (
        Finding(
            rule="ROUTE_CHOSEN",
            severity="info",
            message=f"The model was converted by the route {route}; others failed before it: {reasons}",
        ),
    )


def past_crashes(attempt: Callable[[dict[str, str]], T], workdir: Path) -> T:
    """Return what `attempt` returns; where a route ended its process, call it again with that route's reason.

    `attempt` takes routes with reasons, and runs a stage with `cross` in a child process that works in `workdir`.
    """
    crashed: dict[str, str] = {}
    while True:
        try:
            return attempt(dict(crashed))
        except (StageCrashError, StageMemoryError, StageTimeoutError) as error:
            current = workdir / _CURRENT
            route = current.read_text(encoding="utf-8") if current.is_file() else ""
            current.unlink(missing_ok=True)
            if not route or route in crashed:
                raise
            crashed[route] = error.message
