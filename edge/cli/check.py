"""`edgekit check`: accuracy and parity of an artifact, verdict by exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "check", epilog="Example:\n\n  edgekit check edgekit-build/mnist-coral --evaluation test.npz --max-drop 1%"
    )(check)


def check(
    artifact: options.ArtifactPath,
    evaluation: options.Evaluation = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where to run: local, coral, emulator:rpi4, ssh://pi@host, adb:SERIAL, or a name of devices.toml."
        ),
    ] = "local",
    kernels: Annotated[
        str | None, typer.Option(help="reference, builtin or xnnpack; default: what the target uses.")
    ] = None,
    max_drop: Annotated[str | None, typer.Option(help="Budget in place of the artifact's, such as 1%.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Budget in place of the artifact's, such as 5ms.")] = None,
    metric: Annotated[str | None, typer.Option(help="top1, top5, mae, ... or file.py:metric.")] = None,
    latency: Annotated[str, typer.Option(help="Latency profile: none, smoke, quick, standard.")] = "smoke",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Verify digests and golden vectors, then accuracy against the float carrier, latency, and budgets."""
    from pathlib import Path

    from edge import checkup, errors
    from edge.project import Budgets, parse_duration_ms, parse_share
    from edge.report import console, machine

    try:
        budgets = Budgets(
            max_drop=parse_share(max_drop) if max_drop else None,
            max_latency_ms=parse_duration_ms(max_latency) if max_latency else None,
        )
    except ValueError as error:
        raise errors.ConfigError(f"A budget is {error}.") from None
    talk = Talk(quiet=quiet)
    try:
        checked = checkup.check(
            Path(artifact),
            checkup.Request(
                evaluation=evaluation,
                device=device,
                kernels=kernels,
                metric=metric,
                latency_profile=latency,
                budgets=budgets,
            ),
            talk,
        )
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(machine.build_record(checked)))
    else:
        console.show(checked)
    return errors.EXIT_BUDGET if checked.manifest.verdict == "fail" else errors.EXIT_OK
