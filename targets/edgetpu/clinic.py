"""What `edgekit doctor` and `edgekit devices` say about Coral: compiler, library, attached devices."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgekitError
from edge.targets.edgetpu import compiler, devices


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One thing that was looked for; `fix` says how to get what is not there."""

    name: str
    found: bool
    text: str
    fix: str | None = None


def examine(root: Path = Path("/")) -> tuple[Symptom, ...]:
    """Look for the compiler, the library and devices; nothing is loaded or run but `edgetpu_compiler --version`."""
    return (_compiler(), _library(root), _devices(root))


def _compiler() -> Symptom:
    name = "edgetpu_compiler"
    try:
        found = compiler.find()
    except EdgekitError as error:
        machine = platform.machine()
        note = "" if machine in ("x86_64", "AMD64") else f" It runs on x86-64 only; this is {machine}."
        return Symptom(name=name, found=False, text=error.message + note, fix=error.hint)
    return Symptom(name=name, found=True, text=f"version {found.version}: {shlex.join(found.command)}")


def _library(root: Path) -> Symptom:
    found = devices.find_library(root)
    if found is None:
        return Symptom(
            name="libedgetpu", found=False, text=f"{devices.LIBRARY} is not installed", fix=devices.HOW_TO_GET
        )
    facts = ", ".join(part for part in (found.variant, found.version) if part)
    return Symptom(name="libedgetpu", found=True, text=f"{found.path}" + (f" ({facts})" if facts else ""))


def _devices(root: Path) -> Symptom:
    found = attached(root)
    if not found:
        return Symptom(
            name="Coral device", found=False, text="none attached", fix="Attach one, or build and check without it."
        )
    return Symptom(name="Coral device", found=True, text="; ".join(d["text"] for d in found))


def attached(root: Path = Path("/")) -> list[dict[str, Any]]:
    """Return the attached Corals: kind, name, state, text."""
    found = []
    for device in devices.attached(root):
        heat = "" if device.temperature_c is None else f", {device.temperature_c:.1f} C"
        speed = "" if device.speed_mbps is None else f", {device.speed_mbps} Mbit/s"
        text = f"{device.name} at {device.path}, {device.state}{speed}{heat}"
        found.append({"kind": f"coral-{device.bus}", "text": text, **vars(device)})
    return found
