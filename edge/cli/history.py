"""`edgekit history`: the checks that were logged to MLflow."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options

if TYPE_CHECKING:
    from edge.history import Run

_EXAMPLES = """Examples:

  edgekit check edgekit-build/net-coral --evaluation test.npz --mlflow mlruns

  edgekit history --mlflow mlruns --name net
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("history", epilog=_EXAMPLES)(history)


def history(
    mlflow: Annotated[
        str, typer.Option(help="Where checks were logged: a folder, or an address of MLflow.")
    ] = "mlruns",
    name: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Only this target.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many, the newest.", min=1)] = 20,
    json_: options.Json = False,
) -> int:
    """List logged checks, the newest first, each number with its mode."""
    from edge import codec, errors
    from edge import history as kept
    from edge.report.machine import dumps

    runs = [r for r in kept.read(mlflow) if _fits(r, name, target)][:limit]
    if json_:
        sys.stdout.write(dumps({"runs": [codec.to_json(r) for r in runs]}))
    else:
        for r in runs:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(r.started_ms / 1000))
            head = " ".join(r.params.get(k, "?") for k in ("name", "target", "runtime", "recipe"))
            sys.stdout.write(f"{when}  {head}  {r.tags.get('verdict', '?')}  on {r.tags.get('device', '?')}\n")
            sys.stdout.writelines(f"    {key:<40} {value:.6g}\n" for key, value in sorted(r.metrics.items()))
        if not runs:
            sys.stdout.write("No check was logged there. `edgekit check ARTIFACT --mlflow FOLDER` logs one.\n")
    return errors.EXIT_OK


def _fits(run: Run, name: str | None, target: str | None) -> bool:
    return name in (None, run.params.get("name")) and target in (None, run.params.get("target"))
