"""Emulated boards: aarch64 programs under qemu-user, with the CPU of the board and its /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.devices import sysroot
from edge.devices.base import Device, DeviceSpec
from edge.devices.boards import BOARDS
from edge.devices.local import HostDevice


def open_emulated(spec: DeviceSpec) -> Device:
    """Return the board of a name under qemu-user, or the whole machine under qemu-system."""
    from edge.devices.virt import MACHINES, VirtDevice

    return VirtDevice(spec) if spec.address in MACHINES else EmulatorDevice(spec)


class EmulatorDevice(HostDevice):
    """One emulated board; programs of its root run under qemu, nothing else of it is visible to this host.

    `qemu` is the command in front of qemu's own options, for an emulator with a plug-in.
    """

    def __init__(self, spec: DeviceSpec, qemu: Sequence[str] | None = None) -> None:
        board = BOARDS[spec.address]
        emulator = list(qemu or [sysroot.qemu()])
        self.root = sysroot.board_root(board.name)
        self._emulator = [*emulator, "-L", str(self.root), "-cpu", board.cpu]
        super().__init__(spec, "emulated", sysroot.python(self.root).name)

    def _argv(self, command: Sequence[str]) -> list[str]:
        program = command[0] if "/" in command[0] else f"/usr/bin/{command[0]}"
        inside = Path(f"{self.root}{program}")
        return [*self._emulator, str(inside if inside.exists() else program), *command[1:]]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": "/home/pi",
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
