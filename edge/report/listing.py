"""What `edgekit inspect` shows: a table of operators, or one JSON object per line."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge.errors import EdgekitError
from edge.report import machine
from edge.report.summary import predicted_label, predicted_mode, size

if TYPE_CHECKING:
    from edge.inspection import Inspected

_MOST_ROWS = 60


def json_line(found: Inspected) -> str:
    """Return the JSON object of one model as a line."""
    return machine.dumps(machine.inspect_record(found.model, found.runtime, found.inspection))


def show_error(model: str, error: EdgekitError, *, as_json: bool) -> None:
    """Report one model of several that could not be read."""
    if as_json:
        sys.stdout.write(json.dumps({"model": model, **error.to_json()}) + "\n")
    sys.stderr.write(f"ERROR: {error.message}\n")


def show(found: Inspected) -> None:
    """Write the operators, counts, sizes and findings of one model."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    i = found.inspection
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"\n[bold]{escape(found.model)}[/] ({found.runtime})")
    if i.signature:
        for side, tensors in (("input", i.signature.inputs), ("output", i.signature.outputs)):
            for t in tensors:
                q = t.quantization
                scale = f"  scale {q.scale[0]:.6g}, zero point {q.zero_point[0]}" if q else ""
                console.print(f"  {side:6} {escape(str(t))}{scale}")
    counts = Counter((o.op, o.place, o.reason or "") for o in i.operators)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("operator", "count", "runs on", "reason"):
        table.add_column(column)
    for (op, place, reason), n in counts.most_common(_MOST_ROWS):
        table.add_row(op, str(n), place, escape(reason))
    console.print(table)
    console.print(
        f"  parameters {size(i.parameter_bytes)}" + (f", arena about {size(i.arena_bytes)}" if i.arena_bytes else "")
    )
    _show_details(console, dict(i.details))
    for f in i.findings:
        console.print(f"  {f.severity} {f.rule} {escape(f.text)}")


def _show_details(console: Any, details: dict[str, Any]) -> None:
    if "on_chip_bytes" in details:
        on_chip, streamed = size(details["on_chip_bytes"]), size(details["off_chip_bytes"])
        console.print(
            f"  Edge TPU ({details.get('mode')}): {details['subgraphs']} subgraph(s), {on_chip} of parameters on chip, "
            f"{streamed} streamed at every inference"
        )
    for how, p in details.get("latency_ms", {}).items():
        told = f"{p['value']:.2f} ms [{p['low']:.2f}, {p['high']:.2f}]"
        console.print(f"  {predicted_label(how)} ({predicted_mode(p)}): {told}", markup=False)
    for method, ends in details.get("method_signatures", {}).items():
        told = f"{', '.join(ends['inputs'])} -> {', '.join(ends['outputs'])}"
        console.print(f"  method {method}: {told}", markup=False)
    for name, most in details.get("largest_inputs", {}).items():
        console.print(f"  {name} takes sizes up to {most}", markup=False)
    if "latency_note" in details:
        console.print(f"  {details['latency_note']}", markup=False)
