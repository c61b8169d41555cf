"""`edgekit compare`: artifacts in one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "compare", epilog="Example:\n\n  edgekit compare edgekit-build/net-rpi5 edgekit-build/net-rpi5-executorch"
    )(compare)


def compare(
    artifacts: Annotated[list[Path], typer.Argument(help="Two or more artifact folders.", metavar="ARTIFACT...")],
    json_: options.Json = False,
) -> None:
    """Show accuracy, size, latency and memory of artifacts side by side, each number with its mode."""
    from edge import artifact
    from edge.errors import UsageError
    from edge.report import comparison
    from edge.report.machine import dumps

    if len(artifacts) < 2:
        raise UsageError("compare takes two or more artifacts; one was given.")
    opened = [artifact.read(path) for path in artifacts]
    if json_:
        records = [comparison.record(a) for a in opened]
        sys.stdout.write(dumps({"artifacts": records, "notes": comparison.notes(opened)}))
    else:
        comparison.show(opened)
