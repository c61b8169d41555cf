"""`edgekit devices`: what is attached and reachable, what is missing, and how to get it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli import options

if TYPE_CHECKING:
    from edge.devices.farm import Listed

_EXAMPLES = """Examples:

  edgekit devices

  edgekit devices --no-probe --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("devices", epilog=_EXAMPLES)(devices)


def devices(
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Connect to the entries of devices.toml and to phones.")
    ] = True,
    json_: options.Json = False,
) -> None:
    """List this machine, Coral devices, emulated boards, phones and devices.toml, each with what it lacks."""
    from edge import codec
    from edge.devices import farm
    from edge.report.machine import dumps
    from edge.targets.edgetpu import clinic

    corals = clinic.attached()
    found = farm.listed(probe=probe)
    if json_:
        sys.stdout.write(dumps({"schema": 1, "devices": [codec.to_json(d) for d in found], "corals": corals}))
        return
    width = max(len(d.name) for d in found)
    for device in found:
        _show(device, width)
    _show_corals(corals, width)


def _show(device: Listed, width: int) -> None:
    tags = f" [{', '.join(device.tags)}]" if device.tags else ""
    sys.stdout.write(f"{device.name:{width}}  {device.state:11}  {device.text}{tags}\n")
    if device.fix:
        sys.stdout.write(f"{'':{width}}  {'':11}  -> {device.fix}\n")


def _show_corals(corals: list[dict[str, Any]], width: int) -> None:
    for coral in corals:
        sys.stdout.write(f"{coral['kind']:{width}}  {'attached':11}  {coral['text']}\n")
    if not corals:
        sys.stdout.write("no Coral device is attached (USB 1a6e:089a or 18d1:9302, PCIe /dev/apex_*)\n")
