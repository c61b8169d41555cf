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
    max_drop: options.MaxDrop = None,
    max_latency: options.MaxLatency = None,
    max_size: options.MaxSize = None,
    max_memory: options.MaxMemory = None,
    min_mapped: options.MinMapped = None,
    min_delegated: options.MinDelegated = None,
    metric: Annotated[str | None, typer.Option(help="top1, top5, mae, ... or file.py:metric.")] = None,
    latency: Annotated[str, typer.Option(help="Latency profile: none, smoke, quick, standard.")] = "smoke",
    runner: Annotated[
        str, typer.Option(help="Who runs it on a device: auto, python (the agent), native (compiled here, no Python).")
    ] = "auto",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Verify digests and golden vectors, then accuracy against the float carrier, latency, and budgets."""
    from pathlib import Path

    from edge import budgets, checkup, errors
    from edge.report import console, machine

    problems: list[str] = []
    given = (max_drop, max_latency, max_size, max_memory, min_mapped, min_delegated)
    wanted = budgets.parse(dict(zip(budgets.KEYS, given, strict=True)), problems)
    if problems:
        raise errors.ConfigError("The budgets cannot be read:\n  " + "\n  ".join(problems))
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
                runner=runner,
                budgets=wanted,
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
