"""`edgekit devices`: what is attached."""

from __future__ import annotations

import sys

import typer

from edge.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("devices", epilog="Example:\n\n  edgekit devices --json")(devices)


def devices(json_: options.Json = False) -> None:
    """List this machine and the Coral devices attached to it."""
    from edge.report.machine import dumps
    from edge.targets.edgetpu import clinic

    found = clinic.attached()
    if json_:
        sys.stdout.write(dumps(found))
        return
    sys.stdout.write("local      this machine\n")
    for device in found:
        sys.stdout.write(f"{device['kind']:10} {device['text']}\n")
    if not found:
        sys.stdout.write("no Coral device is attached (USB 1a6e:089a or 18d1:9302, PCIe /dev/apex_*)\n")
