"""The devices of one's own: which are there, whether they answer, what they lack and how to get it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from edge.devices import attach
from edge.devices.base import DeviceFacts, DeviceSpec, parse
from edge.devices.lock import holder
from edge.errors import EdgekitError

State = Literal["ready", "incomplete", "in use", "unreachable", "not probed"]
_AT_ONCE = 8
_RUNTIMES = ("ai_edge_litert", "tflite_runtime", "tensorflow", "executorch")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One device with its state; `text` says what it is or what is wrong, `fix` what to do about it.

    `name` is what --device takes. `runtimes` maps each runtime there to its version.
    """

    name: str
    address: str
    state: State
    text: str
    fix: str | None = None
    tags: tuple[str, ...] = ()
    runtimes: dict[str, str] | None = None
    emulated: bool = False


def listed(*, probe: bool = True) -> list[Listed]:
    """Return this machine, emulated boards, the entries of devices.toml and attached phones, each with its state.

    `probe`: connect to what is not this machine and ask what it is, several at once. Raises ConfigError for a wrong
    devices.toml.
    """
    tables = attach.named()
    entries = [(parse(name, tables), tuple(tables[name].get("tags") or ())) for name in sorted(tables)]
    known = {str(spec) for spec, _ in entries}
    others = [(spec, ()) for spec in _phones() if str(spec) not in known]
    wanted = [*entries, *others]
    # Before any is probed, as a probe holds the lock too and two entries may be one device.
    holders = [holder(spec) for spec, _ in wanted]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        states = [pool.submit(_state, *entry, who, probe=probe) for entry, who in zip(wanted, holders, strict=True)]
        found = [state.result() for state in states]
    return [Listed(name="local", address="local", state="ready", text="this machine"), *_boards(), *found]


def _phones() -> Iterable[DeviceSpec]:
    from edge.devices import adb

    try:
        attached = adb.attached()
    except EdgekitError:  # without the adb client there is nothing to list; an entry of devices.toml says so itself
        return
    for phone in attached:
        if phone.serial[:1].isalnum():
            yield DeviceSpec(kind="adb", address=phone.serial)


def _boards() -> list[Listed]:
    """Return the emulated boards, which need their system and qemu."""
    from edge.devices import sysroot
    from edge.devices.boards import BOARDS

    lacking: tuple[str, str | None] | None = None
    try:
        if sysroot.installed() is None:
            lacking = ("its arm64 system is not set up", "edgekit emulator setup rpi4 (once for all boards)")
        else:
            sysroot.qemu()
    except EdgekitError as error:
        lacking = (error.message, error.hint)
    return [
        Listed(
            name=f"emulator:{board.name}",
            address=f"emulator:{board.name}",
            state="incomplete" if lacking else "ready",
            text=f"{board.title}, {board.cpu}" + (f": {lacking[0]}" if lacking else ""),
            fix=lacking[1] if lacking else None,
            emulated=True,
        )
        for board in BOARDS.values()
    ]


def _state(spec: DeviceSpec, tags: tuple[str, ...], who: str | None, *, probe: bool) -> Listed:
    name, address = spec.name or str(spec), str(spec)
    if who:
        return Listed(name=name, address=address, state="in use", text=f"by {who}", tags=tags)
    if not probe:
        return Listed(name=name, address=address, state="not probed", text="not asked", tags=tags)
    try:
        with attach.opened(spec) as device:
            facts = device.facts()
    except EdgekitError as error:
        return Listed(name=name, address=address, state="unreachable", text=error.message, fix=error.hint, tags=tags)
    lacking = _lacking(facts)
    text = ", ".join(filter(None, (facts.model or facts.machine, facts.system, _versions(facts), lacking)))
    return Listed(
        name=name,
        address=address,
        state="incomplete" if lacking else "ready",
        text=text,
        fix=_how_to_get(facts) if lacking else None,
        tags=tags,
        runtimes=dict(facts.runtimes),
        emulated=facts.emulated,
    )


def _versions(facts: DeviceFacts) -> str:
    return ", ".join(f"{name} {facts.runtimes[name]}" for name in _RUNTIMES if name in facts.runtimes)


def _lacking(facts: DeviceFacts) -> str:
    absent = [] if facts.numpy else ["numpy"]
    absent += [] if any(name in facts.runtimes for name in _RUNTIMES) else ["a runtime"]
    return f"lacks {' and '.join(absent)}" if absent else ""


def _how_to_get(facts: DeviceFacts) -> str:
    if not facts.python:
        return "Programs run there with the native runner, without Python (--runner native)."
    return (
        "python3 -m venv ~/venv && ~/venv/bin/pip install ai-edge-litert numpy, on the device; then "
        'python = "/home/USER/venv/bin/python" in its entry of devices.toml. Or use --runner native.'
    )
