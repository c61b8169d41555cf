"""`edgekit check`: accuracy and parity of an artifact, verdict by exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.baseline import Limits

_EXAMPLES = """Examples:

  edgekit check edgekit-build/mnist-coral --evaluation test.npz --max-drop 1%

  edgekit check new/mnist-rpi4 --baseline released/mnist-rpi4 --evaluation test.npz --max-regression 0.5%

  edgekit check edgekit-build/mnist-rpi4 --device all-of:rpi* --evaluation test.npz
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check", epilog=_EXAMPLES)(check)


def check(
    context: typer.Context,
    artifact: Annotated[
        Path,
        typer.Argument(
            help="The folder that `edgekit build` wrote, or any .tflite or .pte, which is compared with this host.",
            metavar="ARTIFACT",
        ),
    ],
    evaluation: options.Evaluation = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where to run: local, coral, emulator:rpi4, ssh://pi@host, adb:SERIAL, a name of devices.toml, or "
            "all-of:PATTERN for all names and tags there that match, at once."
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
    runner: options.Runner = "auto",
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="An earlier artifact: being surely less accurate, slower or larger fails.", metavar="ARTIFACT"
        ),
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option(help="How much the metric may fall against --baseline, such as 0.5% (default 0).")
    ] = None,
    max_slowdown: Annotated[
        str | None, typer.Option(help="How much slower than --baseline it may be, such as 5% (the default).")
    ] = None,
    reports: options.Reports = None,
    mlflow: options.MlFlow = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Verify digests and golden vectors, then accuracy against the float carrier, latency, and budgets."""
    from edge import budgets, checkup, errors
    from edge.cli import report
    from edge.report import console, machine

    if device.startswith("all-of:"):
        return _check_several(context, str(artifact), device, as_json=json_, quiet=quiet)
    problems: list[str] = []
    given = (max_drop, max_latency, max_size, max_memory, min_mapped, min_delegated)
    wanted = budgets.parse(dict(zip(budgets.KEYS, given, strict=True)), problems)
    if problems:
        raise errors.ConfigError("The budgets cannot be read:\n  " + "\n  ".join(problems))
    report.ready(reports or (), mlflow)
    limits = _limits(baseline, max_regression, max_slowdown)
    request = checkup.Request(
        evaluation=evaluation,
        device=device,
        kernels=kernels,
        metric=metric,
        latency_profile=latency,
        runner=runner,
        budgets=wanted,
    )
    talk = Talk(quiet=quiet)
    try:
        checked = checkup.check(artifact, request, talk)
        if baseline is not None:
            from edge.baseline import held_against

            checked = held_against(checked, baseline, request, limits, talk)
    finally:
        talk.done()
    report.save([checked], reports or ())
    if json_:
        sys.stdout.write(machine.dumps(machine.build_record(checked)))
    else:
        console.show(checked)
    report.log([checked], mlflow, quiet=quiet)
    return errors.EXIT_BUDGET if checked.manifest.verdict == "fail" else errors.EXIT_OK


def _limits(baseline: Path | None, max_regression: str | None, max_slowdown: str | None) -> Limits:
    from edge.baseline import Limits
    from edge.budgets import parse_share
    from edge.errors import ConfigError, UsageError

    given = {"drop": max_regression, "slowdown": max_slowdown}
    if baseline is None and any(given.values()):
        raise UsageError("--max-regression and --max-slowdown are about a baseline.", hint="Add --baseline ARTIFACT.")
    try:
        return Limits(**{name: parse_share(text) for name, text in given.items() if text is not None})
    except ValueError as error:
        raise ConfigError(f"A limit is {error}.") from None


def _check_several(context: typer.Context, artifact: str, pattern: str, *, as_json: bool, quiet: bool) -> int:
    from edge import errors, fleet
    from edge.cli import again
    from edge.devices import attach
    from edge.report import fleet as reporting
    from edge.report import machine

    if context.params.get("reports"):
        raise errors.UsageError(
            "--report writes the report of one device; several give one record.", hint="Use --json, or one device."
        )
    names = [str(spec.name) for spec in attach.resolve(pattern)]
    arguments = again.arguments(context, without=("device", "json_", "quiet", "reports"))
    talk = Talk(quiet=quiet)
    try:
        record = fleet.check(artifact, arguments, names, talk)
    finally:
        talk.done()
    if as_json:
        sys.stdout.write(machine.dumps(record))
    else:
        reporting.show_devices(record)
    return int(record["exit_code"])
