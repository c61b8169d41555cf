"""An emulated board that is up: one process tree in namespaces of the user's own, without root rights.

It lives in user, mount, PID, IPC and UTS namespaces, with the arm64 root read-only, /tmp and /home in memory, and the
board's /proc and /sys files and `vcgencmd`. Whoever enters finds the processes and files of those before, as on a real
board. Needs Linux 6.7 (binfmt_misc per user namespace).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from edge.devices import sysroot
from edge.devices.boards import BOARDS, overlay
from edge.errors import DeviceError, MissingPackageError

_MAGIC = (
    r":edgekit:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)
_BOOT_TIMEOUT_S = 20.0
_ENVIRONMENT = {
    "HOME": "/home/pi",
    "USER": "pi",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
}
# $1 root, $2 files of the board, $3 qemu, $4 size of the board's disk, $5 magic. The last line is the board's init.
_BOOT = r"""
set -e
hostname raspberrypi
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t tmpfs -o mode=755 edgekit dev
for name in null zero full random urandom; do : >dev/$name; mount --bind /dev/$name dev/$name; done
ln -s /proc/self/fd dev/fd
mkdir dev/shm dev/binfmt
mount -t binfmt_misc none dev/binfmt
printf '%s%s:F' "$5" "$3" >dev/binfmt/register
mount -t proc proc proc
mount --bind "$2/proc/cpuinfo" proc/cpuinfo
mount --bind "$2/sys" sys
mount -t tmpfs -o mode=1777,size="$4" edgekit tmp
mount -t tmpfs -o mode=755,size=16m edgekit home
mkdir home/pi
mount -t tmpfs -o mode=755 edgekit run
if [ -d data ]; then mount -t tmpfs -o mode=771,size="$4" edgekit data; mkdir -p data/local/tmp; fi
mount --bind "$2/bin" usr/local/bin
mount -o remount,bind,ro .
exec chroot . /bin/bash -c ': >/sys/edgekit/up; while :; do sleep 1000; done'
"""
_VCGENCMD = """#!/bin/sh
# Answers as the firmware tool of the Raspberry Pi does; the values are files that a test or a user may change.
place=/sys/edgekit
case "$1" in
  get_throttled) echo "throttled=$(cat $place/throttled)" ;;
  measure_temp) echo "temp=$(cat $place/temperature)'C" ;;
  measure_clock) echo "frequency(48)=$(cat $place/clock_hz)" ;;
  measure_volts) echo "volt=0.8563V" ;;
  *) echo "error=1 error_msg=\\"Command not registered\\"" ; exit 255 ;;
esac
"""


class Board:
    """A board that runs until `close`; `disk` is the size of its /tmp, which is where edgekit works.

    Raises MissingPackageError, DeviceError where this host does not let users make namespaces.
    """

    def __init__(self, name: str, *, disk: str = "512m", extra_bin: dict[str, str] | None = None) -> None:
        if name not in BOARDS:
            raise DeviceError(
                f"emulator:{name} is a whole machine without an ssh server; it cannot be served.",
                hint=f"Serve one of {', '.join(sorted(BOARDS))}.",
            )
        self.board = BOARDS[name]
        self._root = sysroot.require()
        need("setpriv", "unshare", "nsenter", "mount")
        self.place = Path(tempfile.mkdtemp(prefix="edgekit-board-"))
        self._write_files({"vcgencmd": _VCGENCMD, **(extra_bin or {})})
        self._init: subprocess.Popen[bytes] | None = None
        try:
            self._boot(disk)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_files(self, programs: dict[str, str]) -> None:
        files = overlay(self.board) | {
            "sys/edgekit/throttled": "0x0\n",
            "sys/edgekit/temperature": "48.2\n",
            "sys/edgekit/clock_hz": f"{self.board.max_khz * 1000}\n",
        }
        for path, text in files.items():
            target = self.place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        (self.place / "bin").mkdir()
        for name, text in programs.items():
            write_executable(self.place / "bin" / name, text)

    def set(self, name: str, value: str) -> None:
        """Change what the board tells: `throttled` (0x50005), `temperature` (81.0), or a path below sys/."""
        path = self.place / (name if name.startswith("sys/") else f"sys/edgekit/{name}")
        path.write_text(value + "\n", encoding="utf-8")

    def _boot(self, disk: str) -> None:
        log = self.place / "boot.log"
        with log.open("wb") as output:
            self._init = subprocess.Popen(
                [
                    *(
                        "setpriv",
                        "--pdeathsig",
                        "KILL",
                        "unshare",
                        "--user",
                        "--map-root-user",
                        "--mount",
                        "--pid",
                        "--fork",
                        "--uts",
                        "--ipc",
                    ),
                    *("--kill-child", "sh", "-c", _BOOT, "board"),
                    *(str(self._root), str(self.place), sysroot.qemu(), disk, _MAGIC),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "QEMU_CPU": self.board.cpu},
            )
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while not (self.place / "sys/edgekit/up").exists():
            if self._init.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace").strip()[-300:]
                raise DeviceError(
                    f"The emulated board did not start: {said or 'it said nothing'}",
                    hint="It needs Linux 6.7 or newer and user namespaces; emulator:NAME works without them.",
                )
            time.sleep(0.02)

    @property
    def enter(self) -> list[str]:
        """The command in front of one that is to run on the board."""
        assert self._init is not None
        inside = _child_of(self._init.pid)
        variables = [f"{k}={v}" for k, v in _ENVIRONMENT.items()] + [f"QEMU_CPU={self.board.cpu}"]
        spaces = ("--user", "--preserve-credentials", "--mount", "--pid", "--uts", "--ipc", "--root")
        return ["nsenter", f"--target={inside}", *spaces, "/usr/bin/env", "-i", "--chdir=/home/pi", *variables]

    def run(self, command: Sequence[str], *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command on the board."""
        return subprocess.run([*self.enter, *command], input=stdin, capture_output=True, check=False, timeout=300)

    def close(self) -> None:
        """Switch the board off: all its processes end, and what was in its memory is gone."""
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._init.pid, signal.SIGKILL)
            self._init.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def need(*tools: str) -> None:
    """Raise MissingPackageError for a tool that is not installed."""
    for tool in tools:
        if not shutil.which(tool):
            raise MissingPackageError(f"{tool} is not installed.", hint="It is part of util-linux or openssh-client.")


def write_executable(path: Path, text: str) -> None:
    """Write a program text."""
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _child_of(pid: int) -> int:
    """Return the board's init: the child that `unshare --fork` made."""
    found = children(pid)
    if not found:
        raise DeviceError("The emulated board has stopped.")
    return found[0]
