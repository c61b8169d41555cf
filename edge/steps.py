"""What a build will make: one step per target and runtime, resolved before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge import artifact as artifacts
from edge.calibration.recipe import Recipe, lacking
from edge.errors import ConfigError
from edge.project import Project
from edge.targets import registry
from edge.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artifact to make: a target (`named` as it was asked for), its runtime, the recipe, the folder it goes to."""

    named: str
    target: Target
    runtime: str
    recipe: Recipe
    destination: Path


def resolve_steps(project: Project) -> tuple[Step, ...]:
    """Return what will be made; raise ConfigError with all that does not fit, before any work."""
    problems: list[str] = []
    steps: list[Step] = []
    for name in project.targets:
        try:
            target = registry.target(name)
        except ConfigError as error:
            problems.append(error.message)
            continue
        steps += _steps_of(project, name, target, problems)
    if any(s.recipe.needs_calibration for s in steps) and project.calibration is None:
        problems.append("calibration: the recipe needs representative samples (--calibration DATA)")
    if problems:
        raise ConfigError("The build cannot start:\n  " + "\n  ".join(dict.fromkeys(problems)))
    for step in steps:
        artifacts.check_destination(step.destination)
    return tuple(steps)


def _steps_of(project: Project, name: str, target: Target, problems: list[str]) -> list[Step]:
    """Return one step per runtime that was asked for and serves the target; without a wish the target's first."""
    served = [runtime for runtime in project.runtimes or target.runtimes[:1] if runtime in target.runtimes]
    if not served:
        wanted, accepted = ", ".join(project.runtimes), ", ".join(target.runtimes)
        problems.append(f"runtime: {wanted!r} does not serve target {target.name}; accepted: {accepted}")
        return []
    recipe = project.recipe_for(target.recipe, target.io)
    if recipe.kind not in target.recipes:
        known = ", ".join(target.recipes)
        problems.append(f"recipe: target {target.name} does not run {recipe.name}; accepted: {known}")
        return []
    problems += [text for runtime in served if (text := _open_sizes(project, target, runtime))]
    # Options of the project (--multiple-subgraphs, --min-delegated) win over the target's own, table by table.
    ready = replace(target, options=registry.merged(target.options, project.options))
    for runtime in served:
        kinds = registry.recipes(runtime, ready)
        if recipe.kind not in kinds:
            known = ", ".join(r for r in target.recipes if r in kinds)
            problems.append(f"recipe: {runtime} makes no {recipe.kind} for target {target.name}; accepted: {known}")
            return []
        if refused := lacking(runtime, recipe, searching=project.search):
            problems.append(f"recipe: {refused}")
            return []
    return [
        Step(
            named=name, target=ready, runtime=runtime, recipe=recipe, destination=_destination(project, target, runtime)
        )
        for runtime in served
    ]


def _open_sizes(project: Project, target: Target, runtime: str) -> str:
    """Return why a runtime cannot take the declared open dimensions, empty where it can or there are none."""
    opened = [name for name, declared in project.declaration.inputs.items() if declared.open]
    if not opened or runtime == "executorch":
        return ""
    return (
        f"shape: input {', '.join(map(repr, opened))} is declared with an open dimension, and {runtime} programs for "
        f"{target.name} have fixed sizes; accepted by: executorch. Declare a size, such as --shape "
        f"{opened[0]}=1,32, in a build of its own"
    )


def _destination(project: Project, target: Target, runtime: str) -> Path:
    suffix = f"-{runtime}" if runtime != target.runtimes[0] else ""
    return project.output / f"{project.name}-{target.name}{suffix}"
