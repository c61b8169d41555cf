"""A build in a page: import, calibrate and quantize, lower, check, write. Every heavy step runs in a child process."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import cache, codec, isolate, scratch, verdict
from edge.artifact import Artifact, Manifest, Metrics
from edge.calibration.recipe import REFINEMENTS, Recipe
from edge.devices.base import DeviceSpec
from edge.devices.lock import locked
from edge.errors import EdgekitError
from edge.findings import Finding
from edge.isolate import Progress
from edge.project import Project
from edge.signature import Signature
from edge.sources import routes
from edge.stages import training
from edge.steps import Step, resolve_steps
from edge.targets import registry
from edge.targets.base import Carrier, Inspection, Mode, Program, Target

# Golden vectors, which the check writes beside the program.
_GOLDEN = ("golden.npz", "model.bpte")
_WORK = "edgekit-work-"


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
    training: Mapping[str, Any] | None = None
    route: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[Path, ...] = ()  # carriers of a module's further methods, beside the carrier


@dataclass(frozen=True, kw_only=True)
class Built:
    """One program with its inspection; several steps may share it."""

    program: Program
    inspection: Inspection
    folder: Path
    check: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] | None = None


def build(project: Project, progress: Progress = isolate.no_progress) -> list[Artifact]:
    """Build, check and write one artifact per target; raise EdgekitError."""
    steps = resolve_steps(project)
    with working_folder() as work:
        ready: dict[str, tuple[Imported, Built]] = {}
        for carrier, fold in dict.fromkeys((_carrier(step), _fold(project, step)) for step in steps):
            group = [step for step in steps if (_carrier(step), _fold(project, step)) == (carrier, fold)]
            ready |= _build_group(project, carrier, group, work, progress, fold=fold)
        return [write(project, step, *ready[_key(step)], progress) for step in steps]


def _carrier(step: Step) -> Carrier:
    if step.runtime == "torch_mobile" and step.target.options.get("torch_mobile", {}).get("script"):
        return "scripted"
    return registry.runtime(step.runtime).carrier


def _fold(project: Project, step: Step) -> str:
    """Return what a program with folded preprocessing takes, a kind of edge.sources.folding; empty without folding."""
    if not project.fold_preprocessing:
        return ""
    if step.runtime == "coreml":
        return "image"
    delegates = step.target.options.get("executorch", {}).get("delegates", ())
    # Core ML inside of ExecuTorch has no bytes.
    return "float32" if step.runtime == "executorch" and "coreml" in delegates else "uint8"


def _build_group(
    project: Project, carrier: Carrier, steps: Sequence[Step], work: Path, progress: Progress, *, fold: str = ""
) -> dict[str, tuple[Imported, Built]]:
    """Build the programs of all steps that start from one carrier, which is imported once."""
    folder = work / f"{carrier}{fold}"
    folder.mkdir()
    imported = import_source(project, carrier, folder, progress, fold=fold)
    if project.training is not None:
        answer = training.run(project, carrier, [s.target for s in steps], codec.to_json(imported), folder, progress)
        imported = codec.from_json(Imported, answer)
    built = _build_programs(project, _unique(steps), imported, folder, progress)
    built = check_programs(project, steps, imported, built, folder, progress)
    built = measure_latency(project, steps, built, folder, progress)
    return {key: (imported, b) for key, b in built.items()}


def _build_programs(
    project: Project, steps: Mapping[str, Step], imported: Imported, folder: Path, progress: Progress
) -> dict[str, Built]:
    """Build the programs of a group, as many at once as there are cores."""

    def make(step: Step) -> Built:
        return build_program(project, step, imported, folder, progress)

    with isolate.together(len(steps)) as submit:
        made = {key: submit(make, step) for key, step in steps.items()}
        return {key: future.result() for key, future in made.items()}


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
    with scratch.held(_WORK, Path(tempfile.gettempdir())) as folder:
        try:
            with artifacts.translating_os_errors(folder):
                yield folder
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


def import_source(project: Project, carrier: Carrier, work: Path, progress: Progress, *, fold: str = "") -> Imported:
    """Convert and verify the source, and store the float source's outputs on the evaluation samples."""
    # Phones take channel-first tensors as they are; what stands on LiteRT wants channel-last.
    layout = project.layout or ("channel-last" if carrier == "litert" else "keep")
    data = [d for d in (project.calibration, project.evaluation) if d]

    def attempt(crashed: Mapping[str, str]) -> Mapping[str, Any]:
        job = cache.Job(
            stage="edge.stages.importing:import_source",
            request={
                "source": project.source,
                "carrier": carrier,
                "declaration": codec.to_json(replace(project.declaration, layout=layout)),
                "fold": fold,
                "workdir": str(work),
                "crashed": crashed,
                "data": {
                    "calibration": project.calibration,
                    "evaluation": project.evaluation,
                    "calibration_samples": project.calibration_samples,
                    "evaluation_samples": project.evaluation_samples,
                    "search": project.search,
                },
            },
            root=work,
            workdir=work,
            name="import",
            timeout_s=project.timeout_s,
            content=[project.source, *data],
        )
        return cache.call(job, progress, use=project.cache)

    answer = routes.past_crashes(attempt, work)
    return codec.from_json(Imported, answer)


def build_program(project: Project, step: Step, imported: Imported, work: Path, progress: Progress) -> Built:
    """Quantize, lower and inspect the program of one step."""
    # The name is the same in each build, whatever else is built: results are found again by it.
    folder = work / f"program-{hashlib.sha256(_key(step).encode()).hexdigest()[:12]}"
    folder.mkdir()
    found: Mapping[str, Any] = {}
    if project.search and step.recipe.kind == "int8" and step.runtime in REFINEMENTS:
        found = search(project, step, imported, work, folder, progress)
        target = replace(step.target, options=registry.merged(step.target.options, found["options"]))
        step = replace(step, recipe=codec.from_json(Recipe, found["recipe"]), target=target)
    progress(f"building for {step.target.name}: {step.recipe.name} by {step.runtime}", None)
    answer = cache.call(
        cache.Job(
            stage="edge.stages.building:build_program",
            request={
                "carrier": str(imported.carrier),
                "methods": [str(path) for path in imported.methods],
                "carrier_kind": _carrier(step),
                "signature": codec.to_json(imported.signature),
                "recipe": codec.to_json(step.recipe),
                "target": codec.to_json(step.target),
                "runtime": step.runtime,
                "calibration": imported.calibration if step.recipe.needs_calibration else None,
                "workdir": str(folder),
            },
            root=work,
            workdir=folder,
            name="build",
            timeout_s=project.timeout_s,
            parts=imported.calibration_record if step.recipe.needs_calibration else None,
        ),
        progress,
        use=project.cache,
    )
    program = codec.from_json(Program, answer["program"])
    if found:
        findings = tuple(codec.from_json(Finding, f) for f in found["findings"])
        program = replace(
            program,
            findings=(*program.findings, *findings),
            details={**program.details, "search": found["details"]},
        )
    return Built(
        program=program,
        inspection=codec.from_json(Inspection, answer["inspection"]),
        folder=folder,
    )


def search(
    project: Project, step: Step, imported: Imported, work: Path, folder: Path, progress: Progress
) -> Mapping[str, Any]:
    """Look for the cheapest refinement of int8 that keeps the accuracy budget."""
    progress("searching for a recipe within the accuracy budget", None)
    return cache.call(
        cache.Job(
            stage="edge.stages.searching:search",
            request={
                "carrier": str(imported.carrier),
                "signature": codec.to_json(imported.signature),
                "recipe": codec.to_json(step.recipe),
                "target": codec.to_json(step.target),
                "runtime": step.runtime,
                "calibration": imported.calibration,
                "evaluation": imported.evaluation,
                "metric": project.metric,
                "max_drop": project.budgets.max_drop,
                "kernels": kernels_of(step.target, step.runtime),
                "workdir": str(folder),
                "cache": None,
            },
            root=work,
            workdir=folder,
            name="search",
            timeout_s=project.timeout_s,
            content=_metric_file(project),
            parts=[imported.calibration_record, imported.evaluation_record],
        ),
        progress,
        use=project.cache,
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
    answer = cache.call(
        cache.Job(
            stage="edge.stages.checking:check_programs",
            request={
                "carrier": str(imported.carrier),
                "carrier_runtime": steps[0].runtime,
                "signature": codec.to_json(imported.signature),
                "evaluation": imported.evaluation,
                "reference": str(imported.reference),
                "trained": imported.training is not None,
                "metric": project.metric,
                "programs": [
                    {
                        "runtime": unique[key].runtime,
                        "path": str(b.program.path),
                        "kernels": _checked_kernels(unique[key], b.inspection),
                        "golden": str(b.folder / "golden.npz"),
                    }
                    for key, b in built.items()
                ],
            },
            root=work,
            workdir=work,
            name="check",
            timeout_s=project.timeout_s,
            content=_metric_file(project),
            parts=imported.evaluation_record,
            keep=[b.folder / name for b in built.values() for name in _GOLDEN],
        ),
        progress,
        use=project.cache,
    )
    return {key: replace(b, check=c) for (key, b), c in zip(built.items(), answer["programs"], strict=True)}


def _metric_file(project: Project) -> list[str]:
    """Return the file of a user's own metric, on whose content results depend."""
    return [project.metric] if project.metric and ".py:" in project.metric else []


def kernels_of(target: Target, runtime: str) -> str:
    """Return the runtime's kernel set that comes nearest to the target's own."""
    known = registry.runtime(runtime).kernel_sets
    wanted = str(target.options.get("kernels", "xnnpack"))
    return wanted if wanted in known else known[0]


def _checked_kernels(step: Step, inspection: Inspection) -> str:
    wanted = kernels_of(step.target, step.runtime)
    # LiteRT 2.3's reference kernel of int8 SUM is wrong (it gives -1), which the optimized one is not.
    if wanted == "reference" and any(o.op == "SUM" for o in inspection.operators):
        return "builtin"
    return wanted


def timed_kernels(runtime: str) -> str:
    """Return the kernel set that a CPU would run in production: XNNPACK where the runtime has it."""
    known = registry.runtime(runtime).kernel_sets
    return "xnnpack" if "xnnpack" in known else known[0]


def measure_latency(
    project: Project, steps: Sequence[Step], built: Mapping[str, Built], work: Path, progress: Progress
) -> dict[str, Built]:
    """Time each program on this host."""
    if project.latency_profile == "none":
        return dict(built)
    unique, timed = _unique(steps), {}
    for key, b in built.items():
        mode: Mode = "measured" if unique[key].target.family == "linux" else "emulated"
        golden = b.folder / "golden.npz"
        timing = Timing(
            runtime=unique[key].runtime,
            program=b.program.path,
            kernels=timed_kernels(unique[key].runtime),
            mode=mode,
            golden=golden if golden.is_file() else None,
            profile=project.latency_profile,
        )
        timed[key] = replace(b, latency=time_program(timing, work, progress, use_cache=project.cache))
    return timed


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What to time on this machine: a program, with the first of its golden vectors as its input."""

    runtime: str
    program: Path
    kernels: str
    mode: Mode
    golden: Path | None
    profile: str


def time_program(
    timing: Timing, work: Path, progress: Progress, *, use_cache: bool = False
) -> Mapping[str, Any] | None:
    """Return the latency of a program on this machine.

    None where this machine cannot run the program itself (Core ML): a stand-in's time would say nothing.
    """
    job = cache.Job(
        stage="edge.stages.checking:measure_latency",
        request={
            "runtime": timing.runtime,
            "path": str(timing.program),
            "kernels": timing.kernels,
            "threads": 1,
            "profile": timing.profile,
            "golden": str(timing.golden) if timing.golden else None,
            "mode": timing.mode,
        },
        root=work,
        workdir=work,
        name="latency",
        timeout_s=900.0,
    )
    # Two runs that are timed at once would disturb each other.
    with locked(DeviceSpec(kind="local"), progress=progress):
        answer = cache.call(job, progress, use=use_cache)
    return answer["latency"]  # type: ignore[no-any-return]


def write(project: Project, step: Step, imported: Imported, built: Built, progress: Progress) -> Artifact:
    """Write one artifact folder, whole or not at all."""
    progress(f"writing {step.destination}", None)
    with artifacts.writing(step.destination) as folder:
        roles = _lay_out(folder, imported, built)
        manifest = _manifest(project, step, imported, built)
        size = sum((folder / name).stat().st_size for name, role in roles.items() if role == "program")
        manifest = verdict.judge(manifest, project.budgets, step.target, size)
        write_reports(folder, manifest, roles)
    return artifacts.read(step.destination)


def _lay_out(folder: Path, imported: Imported, built: Built) -> dict[str, artifacts.FileRole]:
    roles = place_program(built.program.path, folder)
    carrier = f"float{imported.carrier.suffix}"
    roles[carrier] = "carrier"
    shutil.copyfile(imported.carrier, folder / carrier)
    for name in _GOLDEN:
        if (golden := built.folder / name).is_file():
            shutil.copyfile(golden, folder / name)
            roles[name] = "golden"
    for extra in built.program.extra_files:
        shutil.copyfile(extra, folder / extra.name)
        roles[extra.name] = role_of(extra)
    if "placement" in built.inspection.details:
        operators = [codec.to_json(o) for o in built.inspection.operators]
        codec.write_atomically(folder / "placement.json", codec.dumps({"mode": "predicted", "operators": operators}))
        roles["placement.json"] = "placement"
    return roles


def place_program(program: Path, folder: Path) -> dict[str, artifacts.FileRole]:
    """Copy a program, a file or (Core ML) a folder, into an artifact; return its files with their role."""
    name = f"model{program.suffix}"
    if program.is_file():
        shutil.copyfile(program, folder / name)
        return {name: "program"}
    shutil.copytree(program, folder / name)
    return {p.relative_to(folder).as_posix(): "program" for p in sorted((folder / name).rglob("*")) if p.is_file()}


def role_of(extra: Path) -> artifacts.FileRole:
    """Return the role of a file that a runtime adds."""
    if extra.name.endswith("_edgetpu.tflite"):
        return "compiled"
    return "log" if extra.suffix == ".log" else "extra"


def write_reports(folder: Path, manifest: Manifest, roles: dict[str, artifacts.FileRole]) -> None:
    """Write report and manifest of an artifact whose other files are in place."""
    from edge.report import html, markdown

    sized = artifacts.with_files(folder, manifest, roles)
    (folder / "report.md").write_text(markdown.render(sized), encoding="utf-8")
    (folder / "report.html").write_text(html.render([Artifact(path=folder, manifest=sized)]), encoding="utf-8")
    artifacts.write_manifest(folder, manifest, {**roles, "report.html": "report", "report.md": "report"})


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
        recipe=codec.to_json(built.program.recipe),
        recipe_name=built.program.recipe.name + ("-qat" if imported.training else ""),
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
        settings=project.recorded(step.named, step.runtime),
        details={
            **inspection.details,
            **built.program.details,
            **({"training": dict(imported.training)} if imported.training else {}),
            "route": dict(imported.route),
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
        accuracy=artifacts.accuracy_of(accuracy, mode) if accuracy else None,
        parity=tuple(codec.from_json(artifacts.OutputParity, p) for p in check.get("parity", ())),
        latency=built.latency,
        predicted_latency=inspection.details.get("latency_ms"),
        memory={"arena_bytes": inspection.arena_bytes, "parameter_bytes": inspection.parameter_bytes},
    )
