"""The history of checks: each is a run of MLflow, with parameters, metrics that name their mode, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import isolate
from edge.artifact import MANIFEST, Artifact, Manifest, interprets
from edge.errors import ConfigError
from edge.isolate import Progress
from edge.pipeline import working_folder

DEFAULT = "mlruns"
EXPERIMENT = "edgekit"
_SCHEMES = ("file", "http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
_MOST = 250


@dataclass(frozen=True, kw_only=True)
class Run:
    """One check as it was logged; `metrics` have their mode in their names, `started_ms` is milliseconds since 1970."""

    id: str
    started_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def address(text: str) -> str:
    """Return the tracking URI of a URI or a folder. Raises ConfigError for an unknown scheme."""
    scheme, colon, _ = text.partition(":")
    if colon and "/" not in scheme:
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"--mlflow {text!r}; accepted: a folder, or an address of MLflow such as http://127.0.0.1:5000"
            )
        return text
    return Path(text or DEFAULT).absolute().as_uri()


def log(artifacts: Sequence[Artifact], where: str, progress: Progress = isolate.no_progress) -> list[str]:
    """Log each checked artifact as a run; return their ids. Raises ConfigError, MissingPackageError, ToolError."""
    uri = address(where)
    with working_folder() as work:
        answer = isolate.call(
            "edge.stages.tracking:log",
            {"uri": uri, "experiment": EXPERIMENT, "runs": [_run(a) for a in artifacts]},
            workdir=work,
            name="history",
            progress=progress,
            timeout_s=300.0,
        )
    return [str(i) for i in answer["runs"]]


def read(where: str, progress: Progress = isolate.no_progress) -> list[Run]:
    """Return the logged checks, the newest first. Raises ConfigError, MissingPackageError, ToolError."""
    uri = address(where)
    with working_folder() as work:
        answer = isolate.call(
            "edge.stages.tracking:read",
            {"uri": uri, "experiment": EXPERIMENT},
            workdir=work,
            name="history",
            progress=progress,
            timeout_s=300.0,
        )
    return [Run(**run) for run in answer["runs"]]


@interprets
def _run(artifact: Artifact) -> dict[str, Any]:
    m = artifact.manifest
    params = {
        "name": m.name,
        "target": m.target,
        "runtime": m.runtime,
        "recipe": m.recipe_name,
        "quantizer": m.quantizer,
        "source": m.source.name,
        "source_digest": m.source.digest,
        "calibration_digest": m.calibration.digest if m.calibration else "",
        "evaluation_digest": m.evaluation.digest if m.evaluation else "",
        "program_sha256": next((f.sha256 for f in m.files if f.role == "program"), ""),
        "edgekit": m.edgekit,
        **{f"tool.{name}": version for name, version in m.tools.items()},
    }
    board = m.details.get("board") or {}
    tags = {"verdict": m.verdict, "device": str(board.get("device", "local")), "reasons": "; ".join(m.reasons)}
    return {
        "name": f"{m.name}-{m.target}",
        "params": {k: str(v)[:_MOST] for k, v in params.items()},
        "tags": {k: v[:_MOST] for k, v in tags.items()},
        "metrics": {**metrics(m), "size_bytes": float(artifact.size_bytes)},
        "files": [str(p) for name in (MANIFEST, "report.html", "report.md") if (p := artifact.path / name).is_file()],
    }


def metrics(m: Manifest) -> dict[str, float]:
    """Return the numbers of an artifact by name; each name ends with the mode of its number."""
    found: dict[str, float] = {}
    if a := m.metrics.accuracy:
        found |= {f"{a.metric}.float.measured": a.float, f"{a.metric}.quantized.{a.mode}": a.quantized}
        found[f"{a.metric}.drop.{a.mode}"] = a.drop
    if latency := m.metrics.latency:
        for key in ("median_ms", "p90_ms", "p95_ms", "p99_ms"):
            if isinstance(latency.get(key), (int, float)):
                found[f"latency.{key}.{latency['mode']}"] = float(latency[key])
    for way, p in (m.metrics.predicted_latency or {}).items():
        if isinstance(p, Mapping) and isinstance(p.get("value"), (int, float)):
            found[f"latency.{way}_ms.predicted"] = float(p["value"])
    for key, value in m.metrics.memory.items():
        if isinstance(value, (int, float)):
            found[f"memory.{key}.predicted"] = float(value)
    # MLflow takes letters, digits, underscores, dashes, dots, spaces and slashes.
    return {"".join(ch if ch.isalnum() or ch in "_-./" else "_" for ch in k): v for k, v in found.items()}
