"""The report on a terminal."""

from __future__ import annotations

import sys
from typing import IO

from edge.artifact import Artifact, interprets
from edge.report import summary

_COLOURS = {"pass": "green", "fail": "red", "unchecked": "yellow"}


@interprets
def show(artifact: Artifact, stream: IO[str] | None = None) -> None:
    """Write the summary of one artifact."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    manifest = artifact.manifest
    out = stream or sys.stdout
    # Wrapping at the width of a pipe would cut what scripts read: there lines are as long as they need to be.
    console = Console(file=out, highlight=False, width=None if out.isatty() else 160)
    console.print(f"\n[bold {_COLOURS[manifest.verdict]}]{escape(summary.headline(manifest))}[/]")
    for reason in manifest.reasons:
        console.print(f"  {escape(reason)}")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for row in summary.rows(manifest):
        table.add_row(escape(row.label), f"[bold]{escape(row.value)}[/]", f"[dim]{escape(row.mode)}[/]")
    console.print(table)
    if tried := summary.search_table(manifest):
        console.print(f"  {escape(tried.caption)}")
        table = Table(*(escape(c) for c in tried.columns), box=None, padding=(0, 2), header_style="dim")
        for cells in tried.rows:
            table.add_row(*(escape(cell) for cell in cells), style="bold" if "chosen" in cells[-1] else None)
        console.print(table)
        for note in tried.notes:
            console.print(f"  [dim]{escape(note)}[/]")
    for kind, text in summary.counted_findings(manifest):
        colour = {"error": "red", "warning": "yellow"}.get(kind.split()[0], "dim")
        console.print(f"  [{colour}]{escape(kind)}[/] {escape(text)}")
    console.print(f"  artifact: {escape(str(artifact.path))}", soft_wrap=True)
