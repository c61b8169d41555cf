"""`edgekit doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog="Examples:\n\n  edgekit doctor --json\n\n  edgekit doctor aar runtime.aar")(doctor)


def doctor(
    subject: Annotated[str | None, typer.Argument(help="`aar`, to check the libraries of a FILE.")] = None,
    file: Annotated[Path | None, typer.Argument(help="The .aar file.")] = None,
    json_: options.Json = False,
) -> int:
    """Check Python, packages, tools and devices; or the 16 KB page alignment of an .aar's libraries."""
    if subject is not None:
        return _aar(subject, file, as_json=json_)
    from edge import codec
    from edge import doctor as clinic
    from edge.report.machine import dumps

    checks = clinic.examine()
    if json_:
        sys.stdout.write(dumps([codec.to_json(c) for c in checks]))
    else:
        marks = {"ok": "ok     ", "missing": "missing", "old": "old    ", "note": "-      "}
        for c in checks:
            sys.stdout.write(f"{marks[c.state]}  {c.name:22} {c.found}\n")
            if c.fix and c.state in ("missing", "old"):
                sys.stdout.write(f"{'':9}  {'':22} {c.fix}\n")
    return 3 if any(c.required and c.state in ("missing", "old") for c in checks) else 0


def _aar(subject: str, file: Path | None, *, as_json: bool) -> int:
    from dataclasses import asdict

    from edge.apps import aar
    from edge.errors import EXIT_BUDGET, UsageError
    from edge.report.machine import dumps

    if subject != "aar" or file is None:
        raise UsageError(f"doctor takes no argument, or `aar FILE`; received {subject!r}.")
    found = aar.check(file)
    if as_json:
        sys.stdout.write(dumps([asdict(library) for library in found]))
    else:
        for library in found:
            mark = "ok    " if library.ok else "failed"
            sys.stdout.write(f"{mark}  {library.path}  aligned to {library.alignment} bytes (16384 are needed)\n")
    return 0 if all(library.ok for library in found) else EXIT_BUDGET
