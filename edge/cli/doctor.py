"""`edgekit doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import sys

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog="Example:\n\n  edgekit doctor --json")(doctor)


def doctor(json_: options.Json = False) -> int:
    """Check Python, packages, tools and devices; exit 3 where the build of a LiteRT model would fail."""
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
