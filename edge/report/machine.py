"""The JSON that commands print: typed records, whose JSON Schemas are published in edge/report/schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge import codec
from edge.artifact import Artifact, Manifest, Metrics, Verdict, interprets
from edge.findings import Finding
from edge.report.timing import ComparisonRecord, ProfileRecord
from edge.signature import Signature
from edge.targets.base import Inspection

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """What `build --json` and `check --json` print for one artifact; `files` maps a role to a path in `artifact`."""

    schema: int = VERSION
    artifact: str
    name: str
    target: str
    runtime: str
    recipe: str
    quantizer: str
    verdict: Verdict
    reasons: tuple[str, ...]
    size_bytes: int
    metrics: Metrics
    findings: tuple[Finding, ...]
    files: Mapping[str, str]
    board: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorRecord:
    """One operator in execution order; `mapped` says whether it runs on the Edge TPU, `place` where it runs."""

    index: int
    op: str
    mapped: bool
    reason: str | None
    certainty: str | None
    place: str
    outputs: tuple[str, ...]
    subgraph: int


@dataclass(frozen=True, kw_only=True)
class LatencyInterval:
    """Predicted milliseconds for one inference."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class InspectRecord:
    """What `inspect --json` prints for one model; the Edge TPU's fields are null for other targets.

    `latency_ms` is by link of an Edge TPU, or by number of threads of a board. `subgraphs` counts Edge TPU subgraphs;
    `mode` is `predicted`, or `compiled` where the compiled package says it.
    """

    schema: int = VERSION
    model: str
    runtime: str
    operators: tuple[OperatorRecord, ...]
    subgraphs: int | None
    on_chip_bytes: int | None
    off_chip_bytes: int | None
    latency_ms: Mapping[str, LatencyInterval]
    mode: str | None
    parameter_bytes: int
    arena_bytes: int | None
    signature: Signature | None
    findings: tuple[Finding, ...]
    details: Mapping[str, Any]


SCHEMAS: Mapping[str, Any] = {
    "build": BuildRecord,
    "inspect": InspectRecord,
    "manifest": Manifest,
    "profile": ProfileRecord,
    "comparison": ComparisonRecord,
}
_EDGE_TPU = ("subgraphs", "on_chip_bytes", "off_chip_bytes", "latency_ms", "mode")


def dumps(data: object) -> str:
    """Return one line of JSON with its newline."""
    return json.dumps(data, allow_nan=False) + "\n"


@interprets
def build_record(artifact: Artifact) -> Any:
    """Return the BuildRecord of an artifact as JSON-compatible data."""
    m = artifact.manifest
    record = BuildRecord(
        artifact=str(artifact.path),
        name=m.name,
        target=m.target,
        runtime=m.runtime,
        recipe=m.recipe_name,
        quantizer=m.quantizer,
        verdict=m.verdict,
        reasons=m.reasons,
        size_bytes=artifact.size_bytes,
        metrics=m.metrics,
        findings=m.findings,
        files={f.role: f.path for f in reversed(m.files)},
        board=m.details.get("board"),
    )
    return codec.to_json(record)


def inspect_record(model: str, runtime: str, found: Inspection) -> Any:
    """Return the InspectRecord of a model as JSON-compatible data."""
    details = dict(found.details)
    # Other runtimes count their own subgraphs under the same name; here the field is the Edge TPU's.
    predicted = {key: details.pop(key, None) for key in _EDGE_TPU} if "placement" in details else {}
    latency = predicted.get("latency_ms") or details.pop("latency_ms", None) or {}
    record = InspectRecord(
        model=model,
        runtime=runtime,
        operators=tuple(
            OperatorRecord(
                index=o.index,
                op=o.op,
                mapped=o.place == "edgetpu",
                reason=o.reason,
                certainty=o.certainty,
                place=o.place,
                outputs=o.outputs,
                subgraph=o.subgraph,
            )
            for o in found.operators
        ),
        subgraphs=predicted.get("subgraphs"),
        on_chip_bytes=predicted.get("on_chip_bytes"),
        off_chip_bytes=predicted.get("off_chip_bytes"),
        latency_ms={name: LatencyInterval(**p) for name, p in latency.items()},
        mode=predicted.get("mode") or ("predicted" if latency else None),
        parameter_bytes=found.parameter_bytes,
        arena_bytes=found.arena_bytes,
        signature=found.signature,
        findings=found.findings,
        details=details,
    )
    return codec.to_json(record)
