"""`edgekit compare`: artifacts in one table, or the latency of two on a device."""

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
        "compare",
        epilog="Examples:\n\n  edgekit compare edgekit-build/net-rpi5 edgekit-build/net-rpi5-executorch\n\n"
        "  edgekit compare old/net-rpi5 new/net-rpi5 --device ssh://pi@host --max-slowdown 5%",
    )(compare)


def compare(
    artifacts: Annotated[list[Path], typer.Argument(help="Two or more artifact folders.", metavar="ARTIFACT...")],
    device: Annotated[
        str | None, typer.Option(help="Measure the latency of two there, the first being the reference.")
    ] = None,
    max_slowdown: Annotated[
        str | None, typer.Option(help="As a gate, such as 5%: exit code 1 where the second is surely slower by more.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime, with --device.")] = 1,
    kernels: Annotated[str | None, typer.Option(help="reference, builtin or xnnpack, with --device.")] = None,
    runner: options.Runner = "auto",
    cpus: options.Cpus = None,
    no_controls: options.NoControls = False,
    output: options.Results = Path("edgekit-profiles"),
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Show artifacts side by side, each number with its mode; with --device compare the latency of two."""
    from edge import profiling
    from edge.budgets import parse_share
    from edge.errors import ConfigError, UsageError
    from edge.measure.comparison import DEFAULT_THRESHOLD

    if len(artifacts) < 2:
        raise UsageError("compare takes two or more artifacts; one was given.")
    if device is None:
        if max_slowdown is not None:
            raise UsageError("--max-slowdown is about a measurement.", hint="Add --device, such as --device local.")
        return _table(artifacts, json_=json_)
    if len(artifacts) > 2:
        raise UsageError(f"compare --device takes two artifacts; {len(artifacts)} were given.")
    try:
        threshold = parse_share(max_slowdown) if max_slowdown else DEFAULT_THRESHOLD
    except ValueError as error:
        raise ConfigError(f"--max-slowdown is {error}.") from None
    request = profiling.Request(
        device=device,
        threads=threads,
        kernels=kernels,
        runner=runner,
        controls=not no_controls,
        cpus=options.cpu_numbers(cpus),
        output=output,
        threshold=threshold,
    )
    return _measured(artifacts, request, gate=max_slowdown is not None, json_=json_, quiet=quiet)


def _measured(artifacts: list[Path], request: object, *, gate: bool, json_: bool, quiet: bool) -> int:
    from edge import codec, errors, profiling
    from edge.report import machine, timing

    assert isinstance(request, profiling.Request)
    talk = Talk(quiet=quiet)
    try:
        record = profiling.compare(artifacts[0], artifacts[1], request, talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(codec.to_json(record)))
    else:
        timing.show_comparison(record)
    if record.outcome == "invalid":
        return errors.ToolError.exit_code
    return errors.EXIT_BUDGET if gate and record.outcome == "slower" else errors.EXIT_OK


def _table(artifacts: list[Path], *, json_: bool) -> int:
    from edge import artifact, errors
    from edge.report import comparison
    from edge.report.machine import dumps

    opened = [artifact.read(path) for path in artifacts]
    if json_:
        records = [comparison.record(a) for a in opened]
        sys.stdout.write(dumps({"artifacts": records, "notes": comparison.notes(opened)}))
    else:
        comparison.show(opened)
    return errors.EXIT_OK
