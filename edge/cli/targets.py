"""`edgekit targets`: what can be built for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("targets", epilog="Example:\n\n  edgekit targets coral")(targets)


def targets(
    name: Annotated[str | None, typer.Argument(help="A target's name or .toml file, for its details.")] = None,
    json_: options.Json = False,
) -> None:
    """List the targets, or show one."""
    from edge import codec
    from edge.report.machine import dumps
    from edge.targets import registry

    found = [registry.target(n) for n in ([name] if name else registry.names())]
    if json_:
        sys.stdout.write(dumps(codec.to_json(found[0]) if name else [codec.to_json(t) for t in found]))
        return
    if name:
        sys.stdout.write(codec.dumps(codec.to_json(found[0])))
        return
    width = max(len(t.name) for t in found)
    for t in found:
        status = "" if t.status == "supported" else f" [{t.status}]"
        sys.stdout.write(f"{t.name:{width}}  {t.title}{status}; {t.recipe}; {', '.join(t.runtimes)}\n")
