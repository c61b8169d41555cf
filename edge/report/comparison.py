"""Artifacts side by side: one model, several runtimes, recipes or targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.artifact import Artifact, Manifest, interprets, what_ran
from edge.report.summary import difference, score, size


@interprets
def record(artifact: Artifact) -> dict[str, Any]:
    """Return the numbers of one artifact that are compared, each with its mode, as JSON-compatible data."""
    m = artifact.manifest
    accuracy, latency = m.metrics.accuracy, m.metrics.latency
    return {
        "artifact": str(artifact.path),
        "target": m.target,
        "runtime": m.runtime,
        "recipe": m.recipe_name,
        "verdict": m.verdict,
        "source_digest": m.source.digest,
        "metric": accuracy.metric if accuracy else None,
        "quantized": accuracy.quantized if accuracy else None,
        "drop": accuracy.drop if accuracy else None,
        "samples": accuracy.samples if accuracy else None,
        "accuracy_mode": accuracy.mode if accuracy else None,
        "accuracy_ran": what_ran(accuracy.kernels) if accuracy else None,
        "worst_snr_db": min((p.snr_db for p in m.metrics.parity if p.snr_db is not None), default=None),
        "size_bytes": artifact.size_bytes,
        "latency_ms": latency["median_ms"] if latency else None,
        "latency_mode": latency["mode"] if latency else None,
        "latency_verdict": latency["verdict"] if latency else None,
        "threads": latency["threads"] if latency else None,
        "predicted_ms": {link: p["value"] for link, p in (m.metrics.predicted_latency or {}).items()},
        "resident_bytes": latency.get("resident_bytes") if latency else None,
        "activation_bytes": m.metrics.memory.get("arena_bytes"),
        "activation_mode": "predicted" if _is_whole(m) else "predicted, outside of the delegate",
        "delegated_share": (m.details.get("delegation") or {}).get("delegated_share"),
    }


def _is_whole(m: Manifest) -> bool:
    """Tell whether the activations inside of delegates are counted."""
    inside = m.details.get("delegate_bytes")
    # Only ExecuTorch plans memory around delegates.
    return "planned_bytes" not in m.details if inside is None else None not in inside.values()


@interprets
def notes(artifacts: Sequence[Artifact]) -> list[str]:
    """Return what keeps the numbers from being compared."""
    found = []
    if len({a.manifest.source.digest for a in artifacts}) > 1:
        found.append("The artifacts come from different sources: their accuracies are of different models.")
    evaluated = {a.manifest.evaluation.digest if a.manifest.evaluation else None for a in artifacts}
    if len(evaluated) > 1:
        found.append("The artifacts were evaluated on different samples.")
    settings = {(r["threads"], r["latency_mode"]) for r in map(record, artifacts) if r["latency_ms"] is not None}
    if len(settings) > 1:
        found.append("Latencies differ in threads or mode: compare only those of one kind.")
    if any(r["latency_verdict"] == "invalid" for r in map(record, artifacts)):
        found.append("A latency marked invalid is no basis for a decision; measure again on a quiet machine.")
    return found


def _resident(r: dict[str, Any]) -> str:
    if r["resident_bytes"] is None:
        return "-"
    small = r["resident_bytes"] < _RESIDENT_RESOLUTION
    value = f"under {size(_RESIDENT_RESOLUTION)}" if small else size(r["resident_bytes"])
    return f"{value} ({r['latency_mode']})"


def cells(r: dict[str, Any]) -> list[str]:
    """Return the row of one record, in the order of COLUMNS."""
    latency = "-"
    if r["latency_ms"] is not None:
        mark = ", invalid" if r["latency_verdict"] == "invalid" else ""
        latency = f"{r['latency_ms']:.3f} ms, {r['threads']} thread(s) ({r['latency_mode']}{mark})"
    accuracy, drop = "-", "-"
    if r["metric"]:
        accuracy = f"{r['metric']} {score(r['metric'], r['quantized'])} ({r['accuracy_mode']}, {r['accuracy_ran']})"
        drop = difference(r["metric"], r["drop"])
    return [
        Path(r["artifact"]).name,
        f"{r['runtime']} {r['recipe']}",
        accuracy,
        drop,
        "-" if r["worst_snr_db"] is None else f"{r['worst_snr_db']:.1f} dB",
        size(r["size_bytes"]),
        latency,
        _resident(r),
        "-" if r["activation_bytes"] is None else f"{size(r['activation_bytes'])} ({r['activation_mode']})",
        "-" if r["delegated_share"] is None else f"{r['delegated_share']:.0%}",
    ]


# Below this a program fits into memory that the process had freed, and the growth says nothing.
_RESIDENT_RESOLUTION = 2**16
COLUMNS = (
    "artifact",
    "built",
    "accuracy",
    "drop",
    "SNR",
    "size",
    "latency on the host",
    "peak memory on the host",
    "activations",
    "delegated",
)


@interprets
def show(artifacts: Sequence[Artifact]) -> None:
    """Write the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in COLUMNS:
        table.add_column(column)
    for artifact in artifacts:
        table.add_row(*map(escape, cells(record(artifact))))
    console.print(table)
    for note in notes(artifacts):
        console.print(f"  {escape(note)}")


def markdown(artifacts: Sequence[Artifact]) -> str:
    """Return the table and its notes as Markdown."""
    from edge.report.markdown import cell

    rows = [COLUMNS, ["---"] * len(COLUMNS), *(cells(record(a)) for a in artifacts)]
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {cell(note)}" for note in notes(artifacts)), ""]) + "\n"
