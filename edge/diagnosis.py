"""Diagnose a source or an artifact: where it loses accuracy on the way to int8, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import codec, isolate, pipeline
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


def of_source(project: Project, progress: Progress = isolate.no_progress) -> dict[str, Any]:
    """Return the diagnosis of a source for its first target (see `edge.stages.diagnosing:diagnose`)."""
    step = resolve_steps(project)[0]
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
            "metric": project.metric,
            "max_drop": project.budgets.max_drop,
        }
        return _ask(asked, step.runtime, step.recipe, step.target, work, progress)


@artifacts.interprets
def of_artifact(path: Path, question: Question, progress: Progress = isolate.no_progress) -> dict[str, Any]:
    """Return the diagnosis of a built artifact; its float carrier stands for the source. Raises ArtifactError."""
    opened = artifacts.read(path)
    manifest = opened.manifest
    carrier = opened.file("carrier")
    if carrier is None:
        raise ArtifactError("The artifact has no float carrier to compare with.", hint="Build the artifact again.")
    recipe = codec.from_json(Recipe, manifest.recipe)
    if recipe.scheme != "int8":
        raise UsageError(f"{path} is {recipe.name}; int8 artifacts are diagnosed.", hint="Diagnose the source instead.")
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
        "metric": question.metric,
        "max_drop": manifest.budgets.get("max_drop"),
    }
    with pipeline.working_folder() as work:
        return _ask(
            asked, manifest.runtime, recipe, registry.target(question.target or manifest.target), work, progress
        )


def _ask(
    asked: Mapping[str, Any], runtime: str, recipe: Recipe, target: Target, work: Path, progress: Progress
) -> dict[str, Any]:
    kernels = pipeline.kernels_of(target, runtime)
    answer = isolate.call(
        "edge.stages.diagnosing:diagnose",
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
