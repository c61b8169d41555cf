"""`edgekit init`: a commented edgekit.toml for a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init", epilog="Example:\n\n  edgekit init model.keras")(init)


def init(
    source: Annotated[str, typer.Argument(help="The model, as for `edgekit build`.", metavar="SOURCE")],
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="Targets to write into it.")] = None,
    shape: options.Shape = None,
    trust: Annotated[bool, typer.Option("--trust", help="Allow code that the model file carries to run.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("edgekit.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a commented edgekit.toml with the model's real inputs and outputs."""
    from edge import scaffold

    talk = Talk(quiet=quiet)
    try:
        scaffold.write(
            source,
            tuple(target or ("coral",)),
            options.fixed_shapes(shape),
            output,
            trust=trust,
            force=force,
            progress=talk,
        )
    finally:
        talk.done()
    sys.stdout.write(f"Wrote {output}; fill in data.calibration, then run `edgekit build`.\n")
