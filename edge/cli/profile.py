"""`edgekit profile`: latency of an artifact on a device, in detail, with a verdict on the measurement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "profile", epilog="Example:\n\n  edgekit profile edgekit-build/net-rpi5 --device ssh://pi@host --per-op"
    )(profile)


def profile(
    artifact: options.ArtifactPath,
    device: options.Device = "local",
    profile: Annotated[
        str, typer.Option(help="How long: smoke (1 s), quick (10 s), standard (1 min), submission (10 min), sustained.")
    ] = "quick",
    per_op: Annotated[bool, typer.Option("--per-op", help="Time per operator too, by the runtime's profiler.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    kernels: Annotated[
        str | None, typer.Option(help="reference, builtin or xnnpack; default: as in production.")
    ] = None,
    runner: options.Runner = "auto",
    cpus: options.Cpus = None,
    no_controls: options.NoControls = False,
    output: options.Results = Path("edgekit-profiles"),
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure load, cold start, latency, memory and energy on a device, and say whether the numbers can be trusted."""
    from edge import codec, errors, profiling
    from edge.report import machine, timing

    request = profiling.Request(
        device=device,
        profile=profile,
        per_op=per_op,
        threads=threads,
        kernels=kernels,
        runner=runner,
        controls=not no_controls,
        cpus=options.cpu_numbers(cpus),
        output=output,
    )
    talk = Talk(quiet=quiet)
    try:
        record = profiling.profile(artifact, request, talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(codec.to_json(record)))
    else:
        timing.show_profile(record)
    usable = record.latency is None or record.latency["verdict"] != "invalid"
    return errors.EXIT_OK if usable else errors.ToolError.exit_code
