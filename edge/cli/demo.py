"""`edgekit demo`: the whole tool in one command, on real data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog="Example:\n\n  edgekit demo --target coral --framework torch")(demo)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path("demo-out"),
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="Default: coral and rpi4.")] = None,
    framework: Annotated[list[str] | None, typer.Option(help="keras, torch; default: both.")] = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Train two small networks on handwritten digits, build them for a Coral and a Raspberry Pi 4, check them."""
    from edge import errors
    from edge.demo import run as show
    from edge.report import console, machine

    frameworks = tuple(framework or show.FRAMEWORKS)
    if unknown := set(frameworks) - set(show.FRAMEWORKS):
        raise errors.UsageError(f"--framework {sorted(unknown)[0]!r}; accepted: {', '.join(show.FRAMEWORKS)}.")
    talk = Talk(quiet=quiet)
    try:
        artifacts = show.run(output, tuple(target or ("coral", "rpi4")), frameworks, talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(machine.dumps([machine.build_record(a) for a in artifacts]))
    else:
        for artifact in artifacts:
            console.show(artifact)
    failed = any(a.manifest.verdict == "fail" for a in artifacts)
    return errors.EXIT_BUDGET if failed else errors.EXIT_OK
