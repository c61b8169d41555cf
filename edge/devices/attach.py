"""From a name to an open device: devices.toml, locks, and the right implementation."""

from __future__ import annotations

import contextlib
import fnmatch
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from edge.devices.base import Device, DeviceSpec, parse
from edge.devices.lock import locked
from edge.devices.places import devices_files
from edge.errors import ConfigError
from edge.isolate import Progress, no_progress

_ALL = "all-of:"


def named() -> Mapping[str, Mapping[str, Any]]:
    """Return the tables of devices.toml by name, empty where there is no file; raise ConfigError."""
    path = next((p for p in devices_files() if p.is_file()), None)
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from error
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ConfigError(f'{path}: {", ".join(wrong)} must be a table, such as [bench-pi] with device = "ssh://...".')
    return tables


def resolve(text: str) -> tuple[DeviceSpec, ...]:
    """Return the device that `text` names, or all of devices.toml that match `all-of:PATTERN`; raise ConfigError.

    A pattern matches names and tags.
    """
    tables = named()
    if not text.startswith(_ALL):
        return (parse(text, tables),)
    pattern = text.removeprefix(_ALL)
    names = sorted(
        name
        for name, table in tables.items()
        if any(fnmatch.fnmatchcase(word, pattern) for word in (name, *map(str, table.get("tags") or ())))
    )
    if not names:
        known = ", ".join(sorted(tables)) or "none"
        raise ConfigError(f"No device of devices.toml matches {pattern!r}; there: {known}.")
    return tuple(parse(name, tables) for name in names)


@contextlib.contextmanager
def opened(spec: DeviceSpec, progress: Progress = no_progress) -> Iterator[Device]:
    """Open a device under its lock, waiting for its turn, and close it whatever happens. Raises DeviceError."""
    with locked(spec, progress=progress), _make(spec) as device:
        yield device


def _make(spec: DeviceSpec) -> Device:
    if spec.kind == "local":
        from edge.devices.local import LocalDevice

        return LocalDevice(spec)
    if spec.kind == "emulator":
        from edge.devices.emulator import open_emulated

        return open_emulated(spec)
    if spec.kind == "ssh":
        from edge.devices.ssh import SshDevice

        return SshDevice(spec)
    from edge.devices.adb import AdbDevice

    return AdbDevice(spec)
