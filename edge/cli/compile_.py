"""`edgekit compile`: finish an artifact with the Edge TPU compiler."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile", epilog="Example:\n\n  edgekit compile edgekit-build/mnist-coral")(compile_)


def compile_(
    artifact: options.ArtifactPath,
    timeout: Annotated[float, typer.Option(help="Seconds for the compiler.")] = 600.0,
    search_delegate: Annotated[
        bool, typer.Option("--search-delegate", help="Let the compiler retry with fewer operators (-d).")
    ] = False,
    num_segments: Annotated[int, typer.Option(help="Split for a pipeline of several Edge TPUs.", min=1)] = 1,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Compile an artifact's int8 program for the Edge TPU and hold the result against the prediction."""
    from pathlib import Path

    from edge import checkup
    from edge.report import console, machine

    talk = Talk(quiet=quiet)
    try:
        done = checkup.compile_artifact(
            Path(artifact),
            {"timeout_s": timeout, "search_delegate": search_delegate, "num_segments": num_segments},
            talk,
        )
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(machine.build_record(done)))
    else:
        console.show(done)
    return 0
