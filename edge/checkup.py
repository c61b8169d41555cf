"""What is done with an artifact that exists: check it again, or finish it with the Edge TPU compiler."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from edge import bare, codec, isolate, verdict
from edge.artifact import Artifact, Manifest
from edge.budgets import Budgets
from edge.errors import ArtifactError, ConfigError, DeviceError, UsageError
from edge.findings import Finding
from edge.isolate import Progress
from edge.pipeline import Timing, kernels_of, role_of, time_program, timed_kernels, working_folder, write_reports
from edge.targets import registry
from edge.targets.base import Mode, Target


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to check, and where: `device` is `local`, or `coral` with perhaps a name (`coral:usb:0`)."""

    evaluation: str | None = None
    device: str = "local"
    kernels: str | None = None
    metric: str | None = None
    latency_profile: str = "smoke"
    runner: str = "auto"
    budgets: Budgets = field(default_factory=Budgets)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a program runs: the file for it, the kernels that run it, the kernels that are timed, and the mode."""

    program: Path
    kernels: str
    timed_kernels: str
    mode: Mode


def place_of(opened: Artifact, target: Target, request: Request) -> Place:
    """Return the place of a request; raise DeviceError for an unknown device, ArtifactError for an uncompiled model."""
    if request.device == "local":
        mode: Mode = "measured" if target.family == "linux" else "emulated"
        kernels = request.kernels or kernels_of(target, opened.manifest.runtime)
        return Place(
            program=opened.program,
            kernels=kernels,
            timed_kernels=request.kernels or timed_kernels(opened.manifest.runtime),
            mode=mode,
        )
    kind, _, name = request.device.partition(":")
    if kind != "coral":
        raise DeviceError(f"Device {request.device!r} is unknown; accepted: coral, coral:usb:0, coral:pci:0.")
    compiled = opened.file("compiled")
    if compiled is None:
        raise ArtifactError(
            f"{opened.path} holds no compiled model.",
            hint=f"Run `edgekit compile {opened.path}` where the compiler is.",
        )
    kernels = f"edgetpu:{name}" if name else "edgetpu"
    return Place(program=compiled, kernels=kernels, timed_kernels=kernels, mode="measured")


def check(path: Path, request: Request, progress: Progress = isolate.no_progress) -> Artifact:
    """Verify an artifact's digests and golden vectors, then measure it again; the artifact itself is not changed.

    The float carrier stands for the float source, which is not in the artifact. A program file that edgekit did not
    build is compared with this host's own outputs. Raises ArtifactError, DeviceError.
    """
    if path.is_file():
        return _check_bare(path, request, progress)
    opened = artifacts.read(path)
    manifest = opened.manifest
    target = target_of(manifest)
    if request.device != "local" and not request.device.startswith("coral"):
        return _on_board(opened, target, request, progress)
    place = place_of(opened, target, request)
    with working_folder() as work:
        progress("checking golden vectors" + (" and accuracy" if request.evaluation else ""), None)
        answer = _check(opened, place, request, work, progress)
        latency = manifest.metrics.latency
        if request.latency_profile != "none":
            timing = Timing(
                runtime=manifest.runtime,
                program=place.program,
                kernels=place.timed_kernels,
                mode=place.mode,
                golden=opened.golden,
                profile=request.latency_profile,
            )
            latency = time_program(timing, work, progress)
    return _checked(opened, answer, latency, place.mode, request.budgets, target)


def _check_bare(path: Path, request: Request, progress: Progress) -> Artifact:
    """Check a program without an artifact: its samples are compared, and there is nothing to draw an accuracy from."""
    kernels = request.kernels or timed_kernels(bare.PROGRAMS.get(path.suffix, "litert"))
    with bare.as_artifact(path, kernels=kernels, evaluation=request.evaluation, progress=progress) as folder:
        return replace(check(folder, replace(request, evaluation=None), progress), path=path)


def _on_board(opened: Artifact, target: Target, request: Request, progress: Progress) -> Artifact:
    """Check on an emulated or attached board, through the agent."""
    runtime = opened.manifest.runtime
    with working_folder() as work:
        record = isolate.call(
            "edge.devices.check:check_stage",
            {
                "artifact": str(opened.path),
                "device": request.device,
                "evaluation": request.evaluation,
                "metric": request.metric,
                "kernels": request.kernels or timed_kernels(runtime),
                "profile": request.latency_profile,
                "runner": request.runner,
            },
            workdir=work,
            name="device",
            progress=progress,
        )
    checked = _checked(opened, record, record["latency"], record["mode"], request.budgets, target)
    board = {
        key: record[key] for key in ("device", "mode", "runner", "facts", "golden", "instructions", "memory", "tool")
    }
    return replace(checked, manifest=replace(checked.manifest, details={**checked.manifest.details, "board": board}))


def _check(opened: Artifact, place: Place, request: Request, work: Path, progress: Progress) -> dict[str, Any]:
    manifest = opened.manifest
    carrier, golden, accuracy = opened.file("carrier"), opened.golden, manifest.metrics.accuracy
    return isolate.call(
        "edge.stages.checking:check_artifact",
        {
            "carrier_runtime": manifest.runtime,
            "carrier": str(carrier) if carrier else None,
            "program": str(place.program),
            "golden": str(golden) if golden else None,
            "golden_kernels": accuracy.kernels if accuracy else None,
            "scheme": manifest.recipe.get("scheme", "float32"),
            "runtime": manifest.runtime,
            "kernels": place.kernels,
            "signature": codec.to_json(manifest.source_signature),
            "evaluation": request.evaluation,
            "metric": request.metric or (accuracy.metric if accuracy else None),
        },
        workdir=work,
        name="check",
        progress=progress,
    )


def compile_artifact(path: Path, options: Mapping[str, Any], progress: Progress = isolate.no_progress) -> Artifact:
    """Finish an artifact for the Edge TPU with the compiler; the artifact is replaced whole. Raises ArtifactError."""
    opened = artifacts.read(path)
    manifest = opened.manifest
    if manifest.runtime != "edgetpu":
        raise UsageError(
            f"{path} was built for {manifest.target} with {manifest.runtime}; only edgetpu artifacts are compiled.",
            hint="Build one with --target coral.",
        )
    given = {**target_of(manifest).options, **options}
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


@artifacts.interprets
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
            roles[extra.name] = role_of(extra)
        write_reports(folder, manifest, roles)
    return artifacts.read(opened.path)


def target_of(manifest: Manifest) -> Target:
    """Return the target of an artifact, or one with the host's rules where its own is not at hand."""
    try:
        return registry.target(manifest.target)
    except ConfigError:
        # The user's own target file need not be at hand to check an artifact: the host's rules serve.
        return replace(registry.target("linux"), name=manifest.target, family="other")


@artifacts.interprets
def _checked(
    opened: Artifact,
    answer: Mapping[str, Any],
    latency: Mapping[str, Any] | None,
    mode: Mode,
    budgets: Budgets,
    target: Target,
) -> Artifact:
    m = opened.manifest
    accuracy = answer.get("accuracy")
    metrics = replace(
        m.metrics,
        accuracy=artifacts.accuracy_of(accuracy, mode) if accuracy else m.metrics.accuracy,
        parity=tuple(codec.from_json(artifacts.OutputParity, p) for p in answer["parity"] or ()) or m.metrics.parity,
        latency=latency,
    )
    findings = tuple(codec.from_json(Finding, f) for f in answer["findings"])
    manifest = replace(m, metrics=metrics, findings=tuple(dict.fromkeys((*m.findings, *findings))))
    size = opened.size_bytes
    merged = Budgets.from_dict(m.budgets).replaced_by(budgets)
    return replace(opened, manifest=verdict.judge(manifest, merged, target, size))
