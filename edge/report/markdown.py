"""The report as Markdown, for the artifact folder and for pull requests."""

from __future__ import annotations

from edge.artifact import Manifest
from edge.report import summary


def cell(text: str) -> str:
    """Return a text that stays within one cell of a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def render(manifest: Manifest) -> str:
    """Return the report of one artifact."""
    lines = [f"# {cell(summary.headline(manifest))}", ""]
    lines += [f"- {cell(reason)}" for reason in manifest.reasons] + ([""] if manifest.reasons else [])
    lines += ["| | value | mode |", "|---|---|---|"]
    lines += [f"| {cell(r.label)} | {cell(r.value)} | {cell(r.mode)} |" for r in summary.rows(manifest)]
    lines += _search(manifest)
    lines += ["", "## Inputs and outputs", "", "| | tensor | quantization |", "|---|---|---|"]
    for side, tensors in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for t in tensors:
            q = t.quantization
            text = f"scale {q.scale[0]:.8g}, zero point {q.zero_point[0]}" if q else ""
            lines.append(f"| {side} | {cell(str(t))} | {text} |")
    if findings := summary.counted_findings(manifest):
        lines += ["", "## Findings", ""]
        lines += [f"- **{cell(kind)}**: {cell(text)}" for kind, text in findings]
    lines += [
        "",
        "## Made with",
        "",
        f"edgekit {manifest.edgekit}; " + "; ".join(f"{k} {v}" for k, v in manifest.tools.items()),
    ]
    if route := manifest.details.get("route"):
        lines.append(f"\nconverted by {cell(route['what'])} (route {cell(route['name'])})")
    for role, data in (("calibration", manifest.calibration), ("evaluation", manifest.evaluation)):
        if data:
            chosen = f"{data.kind}, {data.selection}"
            lines.append(f"\n{role}: {data.samples} samples of {cell(data.name)} ({chosen}), digest {data.digest[:12]}")
    return "\n".join(lines) + "\n"


def _search(manifest: Manifest) -> list[str]:
    tried = summary.search_table(manifest)
    if tried is None:
        return []
    lines = ["", "## Search", "", cell(tried.caption), ""]
    lines += [f"| {' | '.join(map(cell, tried.columns))} |", "|---" * len(tried.columns) + "|"]
    lines += [f"| {' | '.join(map(cell, cells))} |" for cells in tried.rows]
    return [*lines, *([""] if tried.notes else []), *(f"- {cell(note)}" for note in tried.notes)]
