"""`edgekit reproduce`: build an artifact again from its manifest and compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli import options
from edge.cli.talk import Talk

if TYPE_CHECKING:
    from edge.reproduction import Difference

_EXAMPLES = """Examples:

  edgekit reproduce edgekit-build/net-coral

  edgekit reproduce release/net-coral/manifest.json --source checkout/net.onnx --calibration checkout/data.npz
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce", epilog=_EXAMPLES)(reproduce)


def reproduce(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder, or its manifest.json.", metavar="MANIFEST")],
    source: Annotated[str | None, typer.Option(help="Where the source is now; default: where it was.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Where the calibration data is now.", metavar="DATA")] = None,
    evaluation: Annotated[str | None, typer.Option(help="Where the evaluation data is now.", metavar="DATA")] = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Build an artifact again as its manifest says; exit with 1 where the program's bytes are not the same."""
    from edge import codec, errors, reproduction
    from edge.report.machine import dumps

    talk = Talk(quiet=quiet)
    try:
        places = reproduction.Places(source=source, calibration=calibration, evaluation=evaluation)
        found = reproduction.reproduce(artifact, places, talk)
    finally:
        talk.done()
    if json_:
        sys.stdout.write(dumps(codec.to_json(found)))
    else:
        program = "the program has the same bytes" if found.program else "the program's bytes differ"
        manifest = "the manifest is the same but for times" if found.manifest else "the manifest differs"
        sys.stdout.write(f"{found.artifact}: {found.outcome}: {program}; {manifest}\n")
        _list("tools of another version:", found.versions)
        _list("differences:", found.differences)
    return errors.EXIT_OK if found.program else errors.EXIT_BUDGET


def _list(title: str, differences: tuple[Difference, ...]) -> None:
    if differences:
        sys.stdout.write(f"  {title}\n")
        sys.stdout.writelines(f"    {d.where}: {d.recorded} -> {d.found}\n" for d in differences)
