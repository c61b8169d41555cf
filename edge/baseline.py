"""Hold an artifact against an earlier one: a loss is a regression only where the samples show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge import artifact as artifacts
from edge import checkup, codec, isolate, pipeline, profiling, verdict
from edge.artifact import Artifact, Manifest
from edge.budgets import Budgets
from edge.errors import ArtifactError
from edge.findings import Finding
from edge.isolate import Progress
from edge.measure.comparison import DEFAULT_THRESHOLD


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much worse an artifact may be: points of the metric, and shares of time, size and mapped operators."""

    drop: float = 0.0
    slowdown: float = DEFAULT_THRESHOLD
    growth: float = 0.05
    unmapped: float = 0.0


def held_against(
    checked: Artifact, baseline: Path, request: checkup.Request, limits: Limits, progress: Progress
) -> Artifact:
    """Return a checked artifact with what the comparison found; each regression is a finding that is an error.

    Accuracy is compared on the same samples, pairwise: a regression is a 95 % interval that lies above `limits.drop`
    altogether. Latency is compared by interleaved blocks on the request's device. Raises ArtifactError, DataError,
    DeviceError.
    """
    before = artifacts.read(baseline)
    if _names(before.manifest) != _names(checked.manifest):
        raise ArtifactError(
            f"{baseline} is no baseline of {checked.path}: their inputs or outputs differ.",
            hint="Give an earlier build of the same model.",
        )
    found = [*_size(before, checked, limits), *_mapped(before, checked, limits)]
    found += _accuracy(before, checked, request, limits, progress)
    if request.latency_profile != "none":
        found += _latency(baseline, checked, request, limits, progress)
    return _judged(checked, found)


@artifacts.interprets
def _judged(checked: Artifact, found: Sequence[Finding]) -> Artifact:
    manifest = replace(checked.manifest, findings=tuple(dict.fromkeys((*checked.manifest.findings, *found))))
    budgets = Budgets.from_dict(manifest.budgets)
    judged = verdict.judge(manifest, budgets, checkup.target_of(manifest), checked.size_bytes)
    return replace(checked, manifest=judged)


def _names(m: Manifest) -> tuple[frozenset[str], frozenset[str]]:
    signature = m.source_signature
    return frozenset(t.name for t in signature.inputs), frozenset(t.name for t in signature.outputs)


def _told(rule: str, worse: bool, message: str, fix: str = "") -> Finding:
    severity: Literal["error", "info"] = "error" if worse else "info"
    return Finding(rule=f"BASELINE_{rule}", severity=severity, message=message, fix=fix if worse and fix else None)


def _open(rule: str, message: str) -> Finding:
    return Finding(rule=f"BASELINE_{rule}", severity="warning", message=message)


def _size(before: Artifact, after: Artifact, limits: Limits) -> list[Finding]:
    old, new = before.size_bytes, after.size_bytes
    worse = new > old * (1 + limits.growth)
    message = f"The program has {new} bytes, the baseline's {old} ({new / old - 1:+.1%}; allowed {limits.growth:+.1%})."
    return [_told("SIZE", worse, message, "Compare operators and weights with `edgekit inspect`.")]


@artifacts.interprets
def _mapped(before: Artifact, after: Artifact, limits: Limits) -> list[Finding]:
    old, new = verdict.accelerated(before.manifest), verdict.accelerated(after.manifest)
    if old is None or new is None:
        return []
    message = f"{new:.1%} of the operators are on the accelerator, {old:.1%} in the baseline."
    return [_told("MAPPED", new < old - limits.unmapped, message, "`edgekit inspect` names those that left, and why.")]


def _accuracy(
    before: Artifact, after: Artifact, request: checkup.Request, limits: Limits, progress: Progress
) -> list[Finding]:
    if request.evaluation is None:
        return [_open("ACCURACY", "Accuracy was not compared with the baseline: no --evaluation was given.")]
    found = _paired(before, after, request, progress)
    low, high, drop = found["low"], found["high"], found["drop"]
    interval = "no interval" if low is None or high is None else f"95 % interval [{low:+.4g}, {high:+.4g}]"
    message = (
        f"{found['metric']} is {found['candidate']:.4g}, the baseline's {found['reference']:.4g} on the same "
        f"{found['samples']} samples: a drop of {drop:+.4g}, {interval}; allowed {limits.drop:.4g}."
    )
    return [_told("ACCURACY", low is not None and low > limits.drop, message, "`edgekit diagnose` names what loses.")]


def _paired(before: Artifact, after: Artifact, request: checkup.Request, progress: Progress) -> Mapping[str, Any]:
    programs = []
    for one in (before, after):
        runtime = one.manifest.runtime
        kernels = request.kernels or pipeline.kernels_of(checkup.target_of(one.manifest), runtime)
        programs.append({"runtime": runtime, "path": str(one.program), "kernels": kernels})
    recorded = after.manifest.metrics.accuracy
    with pipeline.working_folder() as work:
        return isolate.call(
            "edge.stages.comparing:compare_programs",
            {
                "programs": programs,
                "signature": codec.to_json(after.manifest.source_signature),
                "evaluation": request.evaluation,
                "metric": request.metric or (recorded.metric if recorded else None),
            },
            workdir=work,
            name="baseline",
            progress=progress,
        )


def _latency(
    baseline: Path, after: Artifact, request: checkup.Request, limits: Limits, progress: Progress
) -> list[Finding]:
    wanted = profiling.Request(device=request.device, kernels=request.kernels, threshold=limits.slowdown, output=None)
    record = profiling.compare(baseline, after.path, wanted, progress)
    if record.ratio is None:
        why = "; ".join(record.reasons) or record.outcome
        return [_open("LATENCY", f"Latency could not be compared with the baseline: {why}.")]
    ratio = record.ratio
    message = (
        f"{ratio.ratio:.3f} times the baseline's {'instructions' if record.unit == 'instructions' else 'latency'} on "
        f"{record.device} ({record.mode}, {ratio.confidence:.1%} interval [{ratio.low:.3f}, {ratio.high:.3f}]): "
        f"{record.outcome}; allowed {1 + limits.slowdown:.3f}."
    )
    return [
        _told("LATENCY", record.outcome == "slower", message, "`edgekit profile --per-op` tells where the time goes.")
    ]
