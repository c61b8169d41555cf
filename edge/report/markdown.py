"""The report as Markdown, for the artifact folder and for pull requests."""

from __future__ import annotations

from edge.artifact import Manifest
from edge.report import summary


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def render(manifest: Manifest) -> str:
    """Return the report of one artifact."""
    lines = [f"# {_cell(summary.headline(manifest))}", ""]
    lines += [f"- {_cell(reason)}" for reason in manifest.reasons] + ([""] if manifest.reasons else [])
    lines += ["| | value | mode |", "|---|---|---|"]
    lines += [f"| {_cell(r.label)} | {_cell(r.value)} | {_cell(r.mode)} |" for r in summary.rows(manifest)]
    lines += ["", "## Inputs and outputs", "", "| | tensor | quantization |", "|---|---|---|"]
    for side, tensors in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for t in tensors:
            q = t.quantization
            text = f"scale {q.scale[0]:.8g}, zero point {q.zero_point[0]}" if q else ""
            lines.append(f"| {side} | {_cell(str(t))} | {text} |")
    if findings := summary.counted_findings(manifest):
        lines += ["", "## Findings", ""]
        lines += [f"- **{_cell(kind)}**: {_cell(text)}" for kind, text in findings]
    lines += [
        "",
        "## Made with",
        "",
        f"edgekit {manifest.edgekit}; " + "; ".join(f"{k} {v}" for k, v in manifest.tools.items()),
    ]
    for role, data in (("calibration", manifest.calibration), ("evaluation", manifest.evaluation)):
        if data:
            chosen = f"{data.kind}, {data.selection}"
            lines.append(
                f"\n{role}: {data.samples} samples of {_cell(data.name)} ({chosen}), digest {data.digest[:12]}"
            )
    return "\n".join(lines) + "\n"
