"""Build an artifact again from what its manifest says, and compare the two."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge import artifact as artifacts
from edge import codec, isolate, pipeline
from edge.artifact import Artifact, Manifest
from edge.errors import ArtifactError
from edge.isolate import Progress
from edge.project import Project

# What is measured, and when, is another at each build; so are the files that tell of it.
_MEASURED = (
    "created",
    "metrics.latency",
    "details.against_float32",
    "files.report.html",
    "files.report.md",
    "files.manifest.json",
)
_MEASURED_FINDINGS = ("INT8_NOT_FASTER",)
_MEASURED_KEYS = ("host_ms", "seconds", "duration_s", "wall_s", "elapsed_s")
_MOST = 40
_ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where two manifests differ: a dotted path, and both values as short texts."""

    where: str
    recorded: str
    found: str


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of building again.

    `program` tells whether the program's bytes are the same, `manifest` whether all else is but for times.
    `versions` are tools of another version than recorded, which may explain `differences`.
    """

    artifact: str
    outcome: Literal["identical", "same program", "different"]
    program: bool
    manifest: bool
    differences: tuple[Difference, ...]
    versions: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where source and data are, for what does not lie where the manifest says, seen from the current folder."""

    source: str | None = None
    calibration: str | None = None
    evaluation: str | None = None


def reproduce(path: Path, places: Places, progress: Progress = isolate.no_progress) -> Reproduction:
    """Build again without the cache, into a temporary folder, and compare. Raises ArtifactError, and what builds raise.

    A source or data of another content than recorded shows as a difference of its digest.
    """
    opened = artifacts.read(path)
    with tempfile.TemporaryDirectory(prefix="edgekit-reproduce-") as folder:
        project = _project(opened, places, Path(folder))
        (again,) = pipeline.build(project, progress)
        return compare(opened, again)


@artifacts.interprets
def _project(opened: Artifact, places: Places, folder: Path) -> Project:
    settings = dict(opened.manifest.settings)
    if not settings:
        raise ArtifactError(
            f"{opened.path} does not say how it was built.", hint="Build it again with this version of edgekit."
        )
    from pydantic import ValidationError

    try:
        project = codec.from_json(Project, {**settings, "output": str(folder)})
    except ValidationError as error:
        raise ArtifactError(f"{opened.path}: its settings cannot be read: {error.errors()[0]['msg']}.") from error
    given = {name: value for name, value in vars(places).items() if value is not None}
    return replace(project, cache=False, **given)


@artifacts.interprets
def compare(recorded: Artifact, found: Artifact) -> Reproduction:
    """Compare two artifacts: programs by their bytes, manifests but for what is measured."""
    differences = tuple(_differences(_plain(recorded.manifest), _plain(found.manifest)))
    before, after = ({"edgekit": m.edgekit, **m.tools} for m in (recorded.manifest, found.manifest))
    program = _programs(recorded.manifest) == _programs(found.manifest)
    return Reproduction(
        artifact=str(recorded.path),
        outcome="identical" if program and not differences else "same program" if program else "different",
        program=program,
        manifest=not differences,
        differences=differences[:_MOST],
        versions=tuple(_differences(before, after)),
    )


def _programs(m: Manifest) -> list[tuple[str, str]]:
    return [(f.path, f.sha256) for f in m.files if f.role in ("program", "compiled")]


def _plain(m: Manifest) -> dict[str, Any]:
    data: dict[str, Any] = codec.to_json(m)
    data["files"] = {f["path"]: [f["bytes"], f["sha256"]] for f in data["files"]}
    data["findings"] = [f for f in data["findings"] if f["rule"] not in _MEASURED_FINDINGS]
    # Where the user keeps source and data is no part of what was built; their content has its digest.
    for key in ("source", "calibration", "evaluation"):
        data["settings"].pop(key, None)
    return data


def _differences(recorded: Any, found: Any, where: str = "") -> Iterator[Difference]:
    if where in _MEASURED or where.rpartition(".")[2] in _MEASURED_KEYS or recorded == found:
        return
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*recorded, *found]):
            inner = f"{where}.{key}" if where else str(key)
            yield from _differences(recorded.get(key, _ABSENT), found.get(key, _ABSENT), inner)
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for i, pair in enumerate(zip(recorded, found, strict=True)):
            yield from _differences(*pair, f"{where}.{i}")
    else:
        yield Difference(where=where, recorded=_short(recorded), found=_short(found))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
