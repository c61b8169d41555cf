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
    delegate_search_step: Annotated[int, typer.Option(help="Operators fewer at each retry (-k).", min=1)] = 1,
    num_segments: Annotated[int, typer.Option(help="Split for a pipeline of several Edge TPUs (-n).", min=1)] = 1,
    min_runtime_version: Annotated[
        int | None, typer.Option(help="Oldest runtime that must run it, 10 to 14 (-m).")
    ] = None,
    intermediate_tensors: Annotated[
        list[str] | None, typer.Option(help="Cut here: what follows stays on the CPU (-i); may be repeated.")
    ] = None,
    multiple_subgraphs: Annotated[
        bool, typer.Option("--multiple-subgraphs", help="Keep every mapped subgraph (-a).")
    ] = False,
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
            {
                "timeout_s": timeout,
                "search_delegate": search_delegate,
                "delegate_search_step": delegate_search_step,
                "num_segments": num_segments,
                "intermediate_tensors": intermediate_tensors or (),
                **({"min_runtime_version": min_runtime_version} if min_runtime_version else {}),
                **({"multiple_subgraphs": True} if multiple_subgraphs else {}),
            },
            talk,
        )
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(machine.build_record(done)))
    else:
        console.show(done)
    return 0
