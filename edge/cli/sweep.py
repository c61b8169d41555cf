"""`edgekit sweep`: models x targets x recipes x devices, on this machine or on a Dask cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.sweep import Scheduler

_EXAMPLES = """Examples:

  edgekit sweep a.tflite b.keras --target rpi4 --target rpi5 --recipe int8 --recipe float32 --calibration data.npz

  edgekit sweep net.tflite --target rpi4 --device all-of:rpi* --evaluation test.npz

  edgekit sweep net.py:make --target rpi4 --scheduler tcp://10.0.0.2:8786 --build "--preprocess scale=1/255"
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep", epilog=_EXAMPLES)(sweep)


def sweep(
    models: Annotated[list[str], typer.Argument(help="What `edgekit build` takes as source.", metavar="MODEL...")],
    target: Annotated[list[str], typer.Option("--target", "-t", help="Target name or .toml file; may be repeated.")],
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe; may be repeated. Default: that of each target.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Where each artifact is checked, as for check; may be repeated.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Representative samples, the same forms as --evaluation.", metavar="DATA")
    ] = None,
    evaluation: options.Evaluation = None,
    build: Annotated[str, typer.Option(help="More options of `edgekit build`, as one text.", metavar="OPTIONS")] = "",
    check: Annotated[str, typer.Option(help="More options of `edgekit check`, as one text.", metavar="OPTIONS")] = "",
    scheduler: Annotated[
        str, typer.Option(help="local, or the address of a Dask scheduler: tcp://10.0.0.2:8786.")
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(help="Cells at once on this machine (default: half of its cores).")
    ] = None,
    send: Annotated[
        list[str] | None, typer.Option(help="File or folder that the models need on other machines; may be repeated.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for artifacts and sweep.json.")] = Path(
        "edgekit-sweep"
    ),
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Build every model for every target with every recipe, check each artifact on every device, print one table."""
    from edge import sweep as sweeping
    from edge.report import fleet, machine

    plan = sweeping.plan(
        models,
        target,
        recipe or [],
        _devices(device or []),
        output=output,
        evaluation=evaluation,
        calibration=calibration,
        build=tuple(shlex.split(build)),
        check=tuple(shlex.split(check)),
        extra=tuple(send or ()),
    )
    talk = Talk(quiet=quiet)
    try:
        record = sweeping.run(plan, _scheduler(scheduler, jobs), talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps(record))
    else:
        fleet.show_sweep(record)
        sys.stdout.write(f"{output / sweeping.RESULT}\n")
    return int(record["exit_code"])


def _devices(names: list[str]) -> list[str]:
    """Return the names with patterns resolved; raise ConfigError before any work for one that is unknown."""
    from edge.devices import attach

    found: list[str] = []
    for name in names:
        if name.startswith("coral"):
            found.append(name)
        elif name.startswith("all-of:"):
            found += [str(spec.name) for spec in attach.resolve(name)]
        else:
            attach.resolve(name)
            found.append(name)
    return list(dict.fromkeys(found))


def _scheduler(address: str, at_once: int | None) -> Scheduler:
    from edge import errors
    from edge.sweep import LocalScheduler

    if address == "local":
        if at_once is not None and at_once < 1:
            raise errors.UsageError(f"--jobs {at_once}; accepted: 1 or more.")
        return LocalScheduler(at_once)
    if "://" not in address:
        raise errors.UsageError(f"--scheduler {address!r}; accepted: local, or an address such as tcp://10.0.0.2:8786.")
    if at_once is not None:
        raise errors.UsageError(
            "--jobs is for this machine; a worker's --nthreads says how many cells it runs at once."
        )
    from edge.cluster import DaskScheduler

    return DaskScheduler(address)
