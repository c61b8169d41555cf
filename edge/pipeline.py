"""A build in a page: import, calibrate and quantize, lower, check, write. Every heavy step runs in a child process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import codec, isolate, verdict
from edge.artifact import Artifact, Manifest, Metrics
from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, EdgekitError, UsageError
from edge.findings import Finding
from edge.isolate import Progress
from edge.project import Budgets, Project
from edge.signature import Signature
from edge.targets import registry
from edge.targets.base import Inspection, Program, Target

LEAST_GOLDEN = 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artifact to make: a target, the runtime that makes it, the recipe, the folder it goes to."""

    target: Target
    runtime: str
    recipe: Recipe
    destination: Path


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What the import stage found: the verified float carrier and the chosen samples."""

    kind: str
    digest: str
    signature: Signature
    carrier: Path
    tools: Mapping[str, str]
    findings: tuple[Finding, ...]
    reference: Path | None
    calibration: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    calibration_record: Mapping[str, Any] | None
    evaluation_record: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Built:
    """One program with its inspection; several steps may share it."""

    program: Program
    inspection: Inspection
    folder: Path
    check: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] | None = None


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
        steps += _step(project, target, problems)
    if any(s.recipe.needs_calibration for s in steps) and project.calibration is None:
        problems.append("calibration: the recipe needs representative samples (--calibration DATA)")
    if problems:
        raise ConfigError("The build cannot start:\n  " + "\n  ".join(dict.fromkeys(problems)))
    for step in steps:
        artifacts.check_destination(step.destination)
    return tuple(steps)


def _step(project: Project, target: Target, problems: list[str]) -> list[Step]:
    runtime = project.runtime or target.runtimes[0]
    if runtime not in target.runtimes:
        accepted = ", ".join(target.runtimes)
        problems.append(f"runtime: {runtime!r} does not serve target {target.name}; accepted: {accepted}")
        return []
    # Options of the project (--multiple-subgraphs) win over the target's own.
    target = replace(target, options={**target.options, **project.options})
    recipe = project.recipe_for(target.recipe, target.io)
    if recipe.name not in target.recipes:
        accepted = ", ".join(target.recipes)
        problems.append(f"recipe: target {target.name} does not run {recipe.name}; accepted: {accepted}")
        return []
    suffix = f"-{runtime}" if runtime != target.runtimes[0] else ""
    destination = project.output / f"{project.name}-{target.name}{suffix}"
    return [Step(target=target, runtime=runtime, recipe=recipe, destination=destination)]


def build(project: Project, progress: Progress = isolate.no_progress) -> list[Artifact]:
    """Build, check and write one artifact per target; raise EdgekitError."""
    steps = resolve_steps(project)
    with working_folder() as work:
        imported = import_source(project, work, progress)
        built = {key: build_program(project, step, imported, work, progress) for key, step in _unique(steps).items()}
        built = check_programs(project, steps, imported, built, work, progress)
        built = measure_latency(project, steps, built, work, progress)
        return [write(project, step, imported, built[_key(step)], progress) for step in steps]


def _key(step: Step) -> str:
    """Steps with the same key have the same program: what a runtime reads of a target is in it."""
    return codec.dumps(
        [step.runtime, codec.to_json(step.recipe), dict(step.target.options), dict(step.target.hardware)]
    )


def _unique(steps: Sequence[Step]) -> dict[str, Step]:
    return {_key(step): step for step in reversed(steps)}


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a temporary folder; when a stage fails its log is kept, and the error names where."""
    with tempfile.TemporaryDirectory(prefix="edgekit-", ignore_cleanup_errors=True) as folder:
        try:
            with artifacts.translating_os_errors(Path(folder)):
                yield Path(folder)
        except EdgekitError as error:
            error.log = _kept(error.log)
            raise


def _kept(log: str | None) -> str | None:
    if log is None or not Path(log).is_file():
        return None
    with contextlib.suppress(OSError):
        kept = Path(tempfile.mkdtemp(prefix="edgekit-log-")) / Path(log).name
        shutil.copyfile(log, kept)
        return str(kept)
    return None


def import_source(project: Project, work: Path, progress: Progress) -> Imported:
    """Convert and verify the source, and store the float source's outputs on the evaluation samples."""
    answer = isolate.call(
        "edge.stages.importing:import_source",
        {
            "source": project.source,
            "declaration": codec.to_json(project.declaration),
            "workdir": str(work),
            "data": {
                "calibration": project.calibration,
                "evaluation": project.evaluation,
                "calibration_samples": project.calibration_samples,
                "evaluation_samples": project.evaluation_samples,
            },
        },
        workdir=work,
        name="import",
        progress=progress,
        timeout_s=project.timeout_s,
    )
    return codec.from_json(Imported, answer)


def build_program(project: Project, step: Step, imported: Imported, work: Path, progress: Progress) -> Built:
    """Quantize, lower and inspect the program of one step."""
    folder = Path(tempfile.mkdtemp(prefix="program-", dir=work))
    progress(f"building for {step.target.name}: {step.recipe.name} by {step.runtime}", None)
    answer = isolate.call(
        "edge.stages.building:build_program",
        {
            "carrier": str(imported.carrier),
            "signature": codec.to_json(imported.signature),
            "recipe": codec.to_json(step.recipe),
            "target": codec.to_json(step.target),
            "runtime": step.runtime,
            "calibration": imported.calibration if step.recipe.needs_calibration else None,
            "workdir": str(folder),
        },
        workdir=folder,
        name="build",
        progress=progress,
        timeout_s=project.timeout_s,
    )
    return Built(
        program=codec.from_json(Program, answer["program"]),
        inspection=codec.from_json(Inspection, answer["inspection"]),
        folder=folder,
    )


def check_programs(
    project: Project,
    steps: Sequence[Step],
    imported: Imported,
    built: Mapping[str, Built],
    work: Path,
    progress: Progress,
) -> dict[str, Built]:
    """Run carrier and programs over the evaluation samples in one pass; add accuracy, parity and golden vectors."""
    if imported.evaluation is None:
        return dict(built)
    unique = _unique(steps)
    progress("checking accuracy", None)
    answer = isolate.call(
        "edge.stages.checking:check_programs",
        {
            "carrier": str(imported.carrier),
            "carrier_runtime": "litert",
            "signature": codec.to_json(imported.signature),
            "evaluation": imported.evaluation,
            "reference": str(imported.reference),
            "metric": project.metric,
            "programs": [
                {
                    "runtime": unique[key].runtime,
                    "path": str(b.program.path),
                    "kernels": kernels_of(unique[key].target),
                    "golden": str(b.folder / "golden.npz"),
                }
                for key, b in built.items()
            ],
        },
        workdir=work,
        name="check",
        progress=progress,
        timeout_s=project.timeout_s,
    )
    return {key: replace(b, check=c) for (key, b), c in zip(built.items(), answer["programs"], strict=True)}


def kernels_of(target: Target) -> str:
    """Return the kernel set that comes nearest to the target's own."""
    return str(target.options.get("kernels", "xnnpack"))


def measure_latency(
    project: Project, steps: Sequence[Step], built: Mapping[str, Built], work: Path, progress: Progress
) -> dict[str, Built]:
    """Time each program on this host."""
    if project.latency_profile == "none":
        return dict(built)
    unique = _unique(steps)
    return {
        key: replace(b, latency=host_latency(unique[key], b.program.path, b, project.latency_profile, work, progress))
        for key, b in built.items()
    }


def host_latency(
    step: Step, program: Path, built: Built, profile: str, work: Path, progress: Progress
) -> Mapping[str, Any]:
    """Return the latency of a program on this host with XNNPACK, the kernels that a CPU would use."""
    golden = built.folder / "golden.npz"
    return isolate.call(
        "edge.stages.checking:measure_latency",
        {
            "runtime": step.runtime,
            "path": str(program),
            "kernels": "xnnpack",
            "threads": 1,
            "profile": profile,
            "golden": str(golden) if golden.is_file() else None,
            "mode": "measured" if step.target.family == "linux" else "emulated",
        },
        workdir=work,
        name="latency",
        progress=progress,
        timeout_s=900.0,
    )


def write(project: Project, step: Step, imported: Imported, built: Built, progress: Progress) -> Artifact:
    """Write one artifact folder, whole or not at all."""
    progress(f"writing {step.destination}", None)
    with artifacts.writing(step.destination) as folder:
        roles = _lay_out(folder, imported, built)
        manifest = _manifest(project, step, imported, built)
        size = (folder / "model.tflite").stat().st_size
        manifest = verdict.judge(manifest, project.budgets, step.target, size)
        _write_reports(folder, manifest, roles)
    return artifacts.read(step.destination)


def _lay_out(folder: Path, imported: Imported, built: Built) -> dict[str, artifacts.FileRole]:
    roles: dict[str, artifacts.FileRole] = {"model.tflite": "program", "float.tflite": "carrier"}
    shutil.copyfile(built.program.path, folder / "model.tflite")
    shutil.copyfile(imported.carrier, folder / "float.tflite")
    if (golden := built.folder / "golden.npz").is_file():
        shutil.copyfile(golden, folder / "golden.npz")
        roles["golden.npz"] = "golden"
    for extra in built.program.extra_files:
        shutil.copyfile(extra, folder / extra.name)
        roles[extra.name] = _role(extra)
    if "placement" in built.inspection.details:
        operators = [codec.to_json(o) for o in built.inspection.operators]
        codec.write_atomically(folder / "placement.json", codec.dumps({"mode": "predicted", "operators": operators}))
        roles["placement.json"] = "placement"
    return roles


def _role(extra: Path) -> artifacts.FileRole:
    if extra.name.endswith("_edgetpu.tflite"):
        return "compiled"
    return "log" if extra.suffix == ".log" else "extra"


def _write_reports(folder: Path, manifest: Manifest, roles: dict[str, artifacts.FileRole]) -> None:
    from edge.report import markdown

    sized = artifacts.with_files(folder, manifest, roles)
    (folder / "report.md").write_text(markdown.render(sized), encoding="utf-8")
    artifacts.write_manifest(folder, manifest, {**roles, "report.md": "report"})


def _manifest(project: Project, step: Step, imported: Imported, built: Built) -> Manifest:
    from importlib.metadata import version

    check, inspection = built.check, built.inspection
    findings = (*imported.findings, *built.program.findings, *inspection.findings)
    found = tuple(codec.from_json(Finding, f) for f in check.get("findings", ()))
    return Manifest(
        edgekit=version("edgekit"),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        name=project.name,
        target=step.target.name,
        runtime=step.runtime,
        recipe=codec.to_json(step.recipe),
        recipe_name=step.recipe.name,
        quantizer=built.program.quantizer,
        source=artifacts.SourceRecord(name=_base_name(project.source), kind=imported.kind, digest=imported.digest),
        calibration=_record(imported.calibration_record) if step.recipe.needs_calibration else None,
        evaluation=_record(imported.evaluation_record),
        tools={**imported.tools, **built.program.tools},
        source_signature=imported.signature,
        signature=built.program.signature,
        metrics=_metrics(step.target, built),
        budgets=project.budgets.as_dict(),
        verdict="unchecked",
        reasons=(),
        findings=tuple(dict.fromkeys((*findings, *found))),
        details={
            **inspection.details,
            **built.program.details,
            **({"rounding": check["rounding"]} if check.get("rounding") else {}),
        },
    )


def _base_name(source: str) -> str:
    return Path(source).name


def _record(data: Mapping[str, Any] | None) -> artifacts.DataRecord | None:
    return codec.from_json(artifacts.DataRecord, data) if data else None


def _metrics(target: Target, built: Built) -> Metrics:
    check, inspection = built.check, built.inspection
    mode = "measured" if target.family == "linux" else "emulated"
    accuracy = check.get("accuracy")
    return Metrics(
        accuracy=codec.from_json(artifacts.Accuracy, {**accuracy, "mode": mode}) if accuracy else None,
        parity=tuple(codec.from_json(artifacts.OutputParity, p) for p in check.get("parity", ())),
        latency=built.latency,
        predicted_latency=inspection.details.get("latency_ms"),
        memory={"arena_bytes": inspection.arena_bytes, "parameter_bytes": inspection.parameter_bytes},
    )


def check(
    path: Path,
    *,
    evaluation: str | None,
    kernels: str | None,
    budgets: Budgets,
    metric: str | None,
    latency_profile: str,
    progress: Progress = isolate.no_progress,
) -> Artifact:
    """Verify an artifact's digests and golden vectors, then measure it again; the artifact itself is not changed.

    The float carrier stands for the float source, which is not in the artifact. Raises ArtifactError.
    """
    opened = artifacts.read(path)
    manifest = opened.manifest
    target = _target_of(manifest)
    chosen = kernels or kernels_of(target)
    with working_folder() as work:
        progress("checking golden vectors" + (" and accuracy" if evaluation else ""), None)
        answer = isolate.call(
            "edge.stages.checking:check_artifact",
            {
                "carrier_runtime": manifest.runtime,
                "carrier": str(opened.file("carrier")) if opened.file("carrier") else None,
                "program": str(opened.program),
                "golden": str(opened.file("golden")) if opened.file("golden") else None,
                "golden_kernels": manifest.metrics.accuracy.kernels if manifest.metrics.accuracy else None,
                "runtime": manifest.runtime,
                "kernels": chosen,
                "signature": codec.to_json(manifest.source_signature),
                "evaluation": evaluation,
                "metric": metric or (manifest.metrics.accuracy.metric if manifest.metrics.accuracy else None),
            },
            workdir=work,
            name="check",
            progress=progress,
        )
        built = Built(
            program=_program_of(opened), inspection=_empty_inspection(manifest), folder=opened.path, check=answer
        )
        step = Step(
            target=target, runtime=manifest.runtime, recipe=codec.from_json(Recipe, manifest.recipe), destination=path
        )
        latency = manifest.metrics.latency
        if latency_profile != "none":
            progress("measuring latency on this host", None)
            latency = host_latency(step, opened.program, built, latency_profile, work, progress)
    return _checked(opened, answer, latency, budgets, target)


def compile_artifact(path: Path, options: Mapping[str, Any], progress: Progress = isolate.no_progress) -> Artifact:
    """Finish an artifact for the Edge TPU with the compiler; the artifact is replaced whole. Raises ArtifactError."""
    opened = artifacts.read(path)
    manifest = opened.manifest
    if manifest.runtime != "edgetpu":
        raise UsageError(
            f"{path} was built for {manifest.target} with {manifest.runtime}; only edgetpu artifacts are compiled.",
            hint="Build one with --target coral.",
        )
    given = {**_target_of(manifest).options, **options}
    with working_folder() as work:
        answer = isolate.call(
            "edge.stages.building:compile_program",
            {"path": str(opened.program), "options": given, "workdir": str(work)},
            workdir=work,
            name="compile",
            progress=progress,
            # The compiler may run three times and be bisected; each run has its own limit.
            timeout_s=20 * float(options.get("timeout_s", 180)),
        )
        return _with_compiled(opened, answer)


def _with_compiled(opened: Artifact, answer: Mapping[str, Any]) -> Artifact:
    findings = tuple(codec.from_json(Finding, f) for f in answer["findings"])
    kept = tuple(f for f in opened.manifest.findings if f.rule != "EDGETPU_NOT_COMPILED")
    manifest = replace(
        opened.manifest,
        findings=tuple(dict.fromkeys((*kept, *findings))),
        details={**opened.manifest.details, **answer["details"]},
    )
    roles = {f.path: f.role for f in opened.manifest.files if f.role not in ("compiled", "report")}
    with artifacts.writing(opened.path) as folder:
        for name in roles:
            shutil.copyfile(opened.path / name, folder / name)
        for extra in map(Path, answer["files"]):
            shutil.copyfile(extra, folder / extra.name)
            roles[extra.name] = _role(extra)
        _write_reports(folder, manifest, roles)
    return artifacts.read(opened.path)


def _target_of(manifest: Manifest) -> Target:
    try:
        return registry.target(manifest.target)
    except ConfigError:
        # The user's own target file need not be at hand to check an artifact: the host's rules serve.
        return replace(registry.target("linux"), name=manifest.target, family="other")


def _program_of(opened: Artifact) -> Program:
    m = opened.manifest
    return Program(
        path=opened.program, signature=m.signature, recipe=codec.from_json(Recipe, m.recipe), quantizer=m.quantizer
    )


def _empty_inspection(manifest: Manifest) -> Inspection:
    return Inspection(operators=(), parameter_bytes=int(manifest.metrics.memory.get("parameter_bytes") or 0))


def _checked(
    opened: Artifact, answer: Mapping[str, Any], latency: Mapping[str, Any] | None, budgets: Budgets, target: Target
) -> Artifact:
    m = opened.manifest
    mode = "measured" if target.family == "linux" else "emulated"
    accuracy = answer.get("accuracy")
    metrics = replace(
        m.metrics,
        accuracy=codec.from_json(artifacts.Accuracy, {**accuracy, "mode": mode}) if accuracy else m.metrics.accuracy,
        parity=tuple(codec.from_json(artifacts.OutputParity, p) for p in answer["parity"]) or m.metrics.parity,
        latency=latency,
    )
    findings = tuple(codec.from_json(Finding, f) for f in answer["findings"])
    manifest = replace(m, metrics=metrics, findings=tuple(dict.fromkeys((*m.findings, *findings))))
    size = opened.program.stat().st_size
    merged = replace(
        Budgets(
            max_drop=m.budgets.get("max_drop"),
            max_latency_ms=m.budgets.get("max_latency_ms"),
            max_size_bytes=int(m.budgets["max_size_bytes"]) if "max_size_bytes" in m.budgets else None,
        ),
        **budgets.as_dict(),  # type: ignore[arg-type]
    )
    return replace(opened, manifest=verdict.judge(manifest, merged, target, size))
