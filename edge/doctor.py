"""What this machine has and lacks: Python, packages with the versions that were tested, tools, devices."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

State = Literal["ok", "missing", "old", "note"]

# Package, version that was tested, least version, extra that brings it, whether a LiteRT build needs it.
_PACKAGES = (
    ("ai-edge-litert", "2.3", (2, 1), "litert", True),
    ("ai-edge-quantizer", "0.10", (0, 9), "litert", True),
    ("tensorflow", "2.21", (2, 20), "tensorflow", False),
    ("keras", "3.15", (3, 10), "tensorflow", False),
    ("torch", "2.13", (2, 9), "torch", False),
    ("litert-torch", "0.10", (0, 9), "torch", False),
    ("executorch", "1.5", (1, 5), "executorch", False),
    ("coremltools", "9", (9, 0), "coreml", False),
    ("onnx", "1.23", (1, 16), "onnx", False),
    ("onnxruntime", "1.31", (1, 18), "onnx", False),
    ("jax", "0.10", (0, 4, 30), "jax", False),
    ("transformers", "5.23", (4, 56), "transformers", False),
)
_ALIASES = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos")}
_LEAST_DISK_BYTES = 2 * 10**9


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `required` where no LiteRT build works without it."""

    name: str
    state: State
    found: str
    fix: str | None = None
    required: bool = False


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+", maxsplit=1)[0].split(".")[:3]:
        digits = "".join(ch for ch in part if ch.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _installed(name: str) -> str | None:
    for candidate in _ALIASES.get(name, (name,)):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def _package(name: str, tested: str, least: tuple[int, ...], extra: str, required: bool) -> Check:
    version = _installed(name)
    fix = f"pip install 'edgekit[{extra}]'"
    if version is None:
        return Check(name=name, state="missing", found="not installed", fix=fix, required=required)
    if _numbers(version) < least:
        wanted = ".".join(map(str, least))
        return Check(
            name=name, state="old", found=f"{version}; at least {wanted} is needed", fix=fix, required=required
        )
    note = "" if version.startswith(tested) else f" (tested with {tested})"
    return Check(name=name, state="ok", found=version + note, required=required)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check(
        name="python", state="ok" if supported else "old", found=found, fix="Use Python 3.11 to 3.13.", required=True
    )


def _disk() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= _LEAST_DISK_BYTES else "missing"
    return Check(
        name="free disk", state=state, found=f"{free / 1e9:.1f} GB in {folder}", fix="Free some space, or set TMPDIR."
    )


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Check(name="memory", state="note", found="unknown")
    return Check(name="memory", state="note", found=f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores")


def examine() -> tuple[Check, ...]:
    """Return all checks, without importing any framework."""
    from edge.targets.edgetpu import clinic

    packages = tuple(_package(*p) for p in _PACKAGES)
    coral = tuple(
        Check(name=c.name, state="ok" if c.found else "missing", found=c.text, fix=c.fix) for c in clinic.examine()
    )
    return (_python(), *packages, _memory(), _disk(), *coral)
