"""What a device is: a protocol, its facts, and the syntax of its name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from edge.errors import ConfigError

Kind = Literal["local", "emulator", "ssh", "adb"]
DeviceMode = Literal["measured", "emulated"]
# What an entry of devices.toml may have beside its address.
# The runtimes' own programs on an Android phone.
TOOLS = ("benchmark_model", "run_model", "executor_runner")
KEYS = ("python", "workdir", "ssh_config", "runner", "tags", *TOOLS, *(f"{tool}_sha256" for tool in TOOLS))
SYNTAX = "local, emulator:NAME, ssh://[user@]host[:port], adb:SERIAL, or a name from devices.toml"
DEFAULT_TIMEOUT_S = 600.0

_HOST = r"(?:\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
_SSH = re.compile(rf"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?(?P<host>{_HOST})(?::(?P<port>\d+))?/?")
# A serial never starts with a dash, so that it cannot be read as an option of adb.
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """A device as named by the user.

    `address` is the board (`emulator`), the host (`ssh`) or the serial (`adb`; empty: the only one attached). `options`
    come from devices.toml: `python`, `workdir`, `ssh_config`, `runner`, and the TOOLS with their digests.
    """

    kind: Kind
    address: str = ""
    user: str | None = None
    port: int | None = None
    name: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.kind == "local":
            return "local"
        if self.kind == "ssh":
            user = f"{self.user}@" if self.user else ""
            port = f":{self.port}" if self.port else ""
            return f"ssh://{user}{self.address}{port}"
        return f"{self.kind}:{self.address}"


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the agent found on a device. `runtimes` maps each installed runtime to its version; sizes in bytes.

    `cpu_part` is the ARM part number (`0xd08`), which decides the kernels; `emulated` that no number of it is a timing.
    """

    model: str | None = None
    machine: str = ""
    kernel: str = ""
    system: str = ""
    cpu_part: str | None = None
    cpu_features: tuple[str, ...] = ()
    cpus: int = 1
    memory_bytes: int | None = None
    free_disk_bytes: int | None = None
    page_bytes: int | None = None
    python: str = ""
    numpy: str | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False


@dataclass(frozen=True, kw_only=True)
class Completed:
    """An ended command; `code` above 128 is 128 + the signal that ended it."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def error_text(self) -> str:
        """The last words on stderr, at most 400 characters."""
        return self.stderr.decode(errors="replace").strip()[-400:]


class Device(Protocol):
    """A place where programs run; a context manager that leaves nothing behind when it is closed.

    All methods raise DeviceError with the reason where the device fails.
    """

    spec: DeviceSpec
    mode: DeviceMode
    workdir: str
    python: str

    def push(self, path: Path) -> str:
        """Copy a file into the working folder, once per content, under its hash; return its path there."""
        ...

    def forget(self, remote: str) -> None:
        """Remove a file of the working folder, if it is there."""
        ...

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a command in the working folder; raise DeviceError where it takes longer than `timeout_s`."""
        ...

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        ...

    def facts(self) -> DeviceFacts:
        """Return what the agent finds there."""
        ...

    def close(self) -> None:
        """End what runs there and remove the working folder. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def parse(text: str, named: Mapping[str, Mapping[str, Any]] | None = None) -> DeviceSpec:
    """Return the device that `text` names; `named` are the tables of devices.toml. Raises ConfigError."""
    if text == "local":
        return DeviceSpec(kind="local")
    if text.startswith("ssh://"):
        return _parse_ssh(text)
    kind, colon, rest = text.partition(":")
    if kind == "emulator" and colon:
        return _parse_emulator(rest)
    if kind == "adb":
        if rest and not _SERIAL.fullmatch(rest):
            raise ConfigError(f"{rest!r} is no serial of adb.", hint="`adb devices` lists them.")
        return DeviceSpec(kind="adb", address=rest)
    if text in (named or {}):
        return _parse_named(text, (named or {})[text])
    known = f" Names there: {', '.join(sorted(named))}." if named else ""
    raise ConfigError(f"Device {text!r} is unknown; accepted: {SYNTAX}.{known}", hint="`edgekit devices` lists them.")


def _parse_ssh(text: str) -> DeviceSpec:
    found = _SSH.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise ConfigError(f"{text!r} is no ssh address; accepted: ssh://[user@]host[:port].")
    return DeviceSpec(kind="ssh", address=found["host"].strip("[]"), user=found["user"], port=port)


def _parse_emulator(name: str) -> DeviceSpec:
    from edge.devices.boards import BOARDS
    from edge.devices.virt import MACHINES

    if name not in (*BOARDS, *MACHINES):
        known = ", ".join([*sorted(BOARDS), *MACHINES])
        raise ConfigError(f"Emulated board {name!r} is unknown; accepted: {known}.")
    return DeviceSpec(kind="emulator", address=name)


def _parse_named(name: str, table: Mapping[str, Any]) -> DeviceSpec:
    from dataclasses import replace

    options = {k: v for k, v in table.items() if k != "device"}
    problems = [f"{k}: no such key" for k in options if k not in KEYS]
    problems += [f"{k}: must be a text" for k, v in options.items() if k != "tags" and not isinstance(v, str)]
    tags = options.pop("tags", [])
    if not isinstance(tags, list) or not all(isinstance(t, str) and t for t in tags):
        problems.append("tags: must be a list of texts")
    address = table.get("device")
    if not isinstance(address, str) or address in ("", name):
        problems.append("device: an address is needed")
    if problems:
        raise ConfigError(f"devices.toml, [{name}]: {'; '.join(problems)}.", hint=f"Keys: device, {', '.join(KEYS)}.")
    return replace(parse(str(address)), name=name, options=options)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashed_name(path: Path) -> str:
    """Return the name that a file has on a device: its digest and its suffix, so that no foreign text is in a path."""
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", path.suffix) else ""
    return digest(path) + suffix


class Closing:
    """Context manager part of a device: `close` is called at the end, whatever happens."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the device."""
        raise NotImplementedError
