"""Several devices, or a whole sweep, as one table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge.report.summary import difference, size

_COLOURS = {"pass": "green", "fail": "red", "unchecked": "yellow"}


def show_devices(record: Mapping[str, Any]) -> None:
    """Write the table of `edge.fleet.check`."""
    rows = [(d["device"], *_cells(d)) for d in record["devices"]]
    _table(("device", "verdict", "mode", "latency", "drop", "instructions", "why"), rows)
    passed = sum(d["verdict"] == "pass" for d in record["devices"])
    sys.stdout.write(f"{passed} of {len(record['devices'])} devices pass\n")


def show_sweep(record: Mapping[str, Any]) -> None:
    """Write the table of `edge.sweep.run`: a line for each build, and one below it for each device."""
    rows: list[Sequence[str]] = []
    for cell in record["cells"]:
        head = (cell["model"], cell["target"], cell["recipe"])
        built = cell["build"]
        rows.append((*head, "", *_cells({**cell, "record": built, "verdict": built["verdict"] if built else None})))
        rows += [("", "", "", check["device"], *_cells(check)) for check in cell["checks"]]
    _table(("model", "target", "recipe", "device", "verdict", "mode", "latency", "drop", "instructions", "why"), rows)


def _cells(entry: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Return verdict, mode, latency, drop, instructions and the reason of one result."""
    found = entry["record"]
    if not found:
        return "error", "", "", "", "", str((entry["error"] or {}).get("message", "unknown"))
    metrics, board = found["metrics"], found.get("board") or {}
    accuracy = metrics["accuracy"]
    drop = difference(accuracy["metric"], accuracy["drop"]) if accuracy else ""
    counted = (board.get("instructions") or {}).get("total")
    mode, latency = _latency(metrics, board)
    why = "; ".join(found["reasons"]) or size(found["size_bytes"])
    return str(entry["verdict"]), mode, latency, drop, f"{counted:,}" if counted else "", why


def _latency(metrics: Mapping[str, Any], board: Mapping[str, Any]) -> tuple[str, str]:
    """Return the mode and the latency: what was timed, else what is predicted where no board was asked."""
    timed = metrics["latency"]
    if timed:
        return timed["mode"], f"{timed['median_ms']:.3f} ms"
    if board:
        return str(board.get("mode", "")), ""
    for predicted in (metrics["predicted_latency"] or {}).values():
        return "predicted", f"{predicted['value']:.2f} [{predicted['low']:.2f}, {predicted['high']:.2f}] ms"
    return "", ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, padding=(0, 2))
    for head in heads:
        table.add_column(head, overflow="fold")
    verdict = heads.index("verdict")
    for row in rows:
        cells = [escape(cell) for cell in row]
        cells[verdict] = f"[{_COLOURS.get(row[verdict], 'red')}]{cells[verdict]}[/]"
        table.add_row(*cells)
    console.print(table)
