"""`edgekit sources`: what can be read, by which packages, and whether they are installed."""

from __future__ import annotations

import sys

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sources", epilog="Example:\n\n  edgekit sources --json")(sources)


def sources(json_: options.Json = False) -> None:
    """List the kinds of models that can be read."""
    from edge.report.machine import dumps
    from edge.sources import registry

    found = registry.kinds()
    if json_:
        sys.stdout.write(dumps([k.as_dict() for k in found]))
        return
    width = max(len(k.kind) for k in found)
    for kind in found:
        missing = [name for name, version in kind.packages.items() if version is None]
        state = f"missing: {', '.join(missing)} (pip install 'edgekit[{kind.extra}]')" if missing else "ready"
        have = ", ".join(f"{name} {version}" for name, version in kind.packages.items() if version is not None)
        sys.stdout.write(f"{kind.kind:{width}}  {kind.what}\n{'':{width}}  {state}{'; ' + have if have else ''}\n")
        for name, version in kind.optional.items():
            sys.stdout.write(f"{'':{width}}  {name} {version or 'not installed'}, which only some models need\n")
        for carrier, names in kind.routes.items():
            end = "LiteRT, Edge TPU" if carrier == "litert" else "ExecuTorch, PyTorch Mobile, Core ML"
            sys.stdout.write(f"{'':{width}}  to {end}: {', then '.join(names)}\n")
