"""Diagnose a source or an artifact: where it loses accuracy on the way to int8, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import codec, isolate, pipeline
from edge.artifact import Artifact
from edge.calibration.recipe import Recipe
from edge.calibration.selection import plan
from edge.errors import ArtifactError, UsageError
from edge.isolate import Progress
from edge.project import DEFAULT_CALIBRATION_SAMPLES, Project
from edge.steps import resolve_steps
from edge.targets import registry
from edge.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to diagnose an artifact with; an artifact itself holds no data."""

    calibration: str
    evaluation: str | None = None
    calibration_samples: int = DEFAULT_CALIBRATION_SAMPLES
    evaluation_samples: int | None = None
    metric: str | None = None
    target: str | None = None
    device: str | None = None


def of_source(
    project: Project, progress: Progress = isolate.no_progress, *, device: str | None = None
) -> dict[str, Any]:
    """Return the diagnosis of a source for its first target (see `edge.stages.diagnosing:diagnose`).

    `device` runs the int8 program as the last rung. Raises UsageError for one that cannot.
    """
    step = resolve_steps(project)[0]
    _check_device(device)
    if device and step.runtime == "edgetpu":
        raise UsageError(
            "Only a compiled program runs on an Edge TPU, and a source has none.",
            hint="Diagnose an artifact that `edgekit build` or `edgekit compile` has compiled, or leave out --device.",
        )
    with pipeline.working_folder() as work:
        carrier = registry.runtime(step.runtime).carrier
        imported = pipeline.import_source(project, carrier, work, progress)
        asked = {
            "carrier": str(imported.carrier),
            "signature": codec.to_json(imported.signature),
            "calibration": imported.calibration,
            "evaluation": imported.evaluation,
            "reference": str(imported.reference) if imported.reference else None,
            "program": None,
            "device": device,
            "compiled": None,
            "metric": project.metric,
            "max_drop": project.budgets.max_drop,
        }
        return _ask(asked, step.runtime, step.recipe, step.target, work, progress)


def of_artifact(path: Path, question: Question, progress: Progress = isolate.no_progress) -> dict[str, Any]:
    """Return the diagnosis of a built artifact; its float carrier stands for the source. Raises ArtifactError."""
    _check_device(question.device)
    opened = artifacts.read(path)
    manifest = opened.manifest
    carrier = opened.file("carrier")
    if carrier is None:
        raise ArtifactError("The artifact has no float carrier to compare with.", hint="Build the artifact again.")
    recipe = _recipe(opened)
    if recipe.scheme != "int8":
        raise UsageError(f"{path} is {recipe.name}; int8 artifacts are diagnosed.", hint="Diagnose the source instead.")
    compiled = opened.file("compiled") if manifest.runtime == "edgetpu" else None
    if question.device and manifest.runtime == "edgetpu" and compiled is None:
        raise ArtifactError(
            f"{path} holds no compiled model.", hint=f"Run `edgekit compile {path}` where the compiler is."
        )
    signature = manifest.source_signature
    data = plan(
        signature,
        {
            "calibration": question.calibration,
            "evaluation": question.evaluation,
            "calibration_samples": question.calibration_samples,
            "evaluation_samples": question.evaluation_samples,
        },
    )
    asked = {
        "carrier": str(carrier),
        "signature": codec.to_json(signature),
        "calibration": codec.to_json(data.calibration),
        "evaluation": codec.to_json(data.evaluation) if data.evaluation else None,
        "reference": None,
        "program": str(opened.program),
        "device": question.device,
        "compiled": str(compiled) if compiled else None,
        "metric": question.metric,
        "max_drop": manifest.budgets.get("max_drop"),
    }
    with pipeline.working_folder() as work:
        return _ask(
            asked, manifest.runtime, recipe, registry.target(question.target or manifest.target), work, progress
        )


@artifacts.interprets
def _recipe(opened: Artifact) -> Recipe:
    return codec.from_json(Recipe, opened.manifest.recipe)


def _check_device(device: str | None) -> None:
    """Raise UsageError for a device that is no rung of its own."""
    if device == "local":
        raise UsageError("The ladder ends on this host in any case.", hint="Leave out --device.")
    if device and device.partition(":")[0] == "coral":
        raise UsageError(
            f"A diagnosis runs no program on {device}, attached to this host.",
            hint="`edgekit check ARTIFACT --device coral --evaluation DATA` compares it with the float carrier; "
            "boards, phones and emulators (ssh://, adb:, emulator:) are accepted here.",
        )


def _ask(
    asked: Mapping[str, Any], runtime: str, recipe: Recipe, target: Target, work: Path, progress: Progress
) -> dict[str, Any]:
    kernels = pipeline.kernels_of(target, runtime)
    answer = isolate.call(
        "edge.devices.ladder:diagnose_stage" if asked["device"] else "edge.stages.diagnosing:diagnose",
        {
            **asked,
            "runtime": runtime,
            "recipe": codec.to_json(recipe),
            "target": codec.to_json(target),
            "kernels": kernels,
            "device_kernels": "xnnpack" if kernels == "reference" else kernels,
            "workdir": str(work),
        },
        workdir=work,
        name="diagnose",
        progress=progress,
    )
    return {"target": target.name, "runtime": runtime, "recipe": recipe.name, **answer}
