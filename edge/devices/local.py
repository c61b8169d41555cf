"""This host as a device, and what is common to devices whose programs are processes of this host."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge.artifact import translating_os_errors
from edge.devices.base import (
    DEFAULT_TIMEOUT_S,
    Closing,
    Completed,
    DeviceFacts,
    DeviceMode,
    DeviceSpec,
    hashed_name,
)
from edge.errors import DeviceError


def finish(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own session, with all that it started, and close its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def run_bounded(command: Sequence[str], *, timeout_s: float, stdin: bytes, what: str, **options: object) -> Completed:
    """Run a command in a session of its own and end all of it when it is over, late, or interrupted."""
    try:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )
    except OSError as error:
        return Completed(code=127, stdout=b"", stderr=f"{command[0]}: {error.strerror}".encode())
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{what} was still running after {timeout_s:g} s and was stopped.", hint="The device or the program hangs."
        ) from None
    finally:
        finish(process)
    code = process.returncode
    return Completed(code=128 - code if code < 0 else code, stdout=out, stderr=err)


class HostDevice(Closing):
    """A device whose programs are processes of this host."""

    def __init__(self, spec: DeviceSpec, mode: DeviceMode, python: str) -> None:
        self.spec = spec
        self.mode = mode
        self.python = python
        self.workdir = tempfile.mkdtemp(prefix="edgekit-device-", dir=spec.options.get("workdir"))

    def _argv(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

    def push(self, path: Path) -> str:
        """Copy a file under its hash."""
        target = Path(self.workdir) / hashed_name(path)
        if not target.exists():
            with translating_os_errors(target):
                shutil.copyfile(path, target.with_suffix(".part"))
                target.with_suffix(".part").rename(target)
        return str(target)

    def forget(self, remote: str) -> None:
        """Remove a file."""
        Path(remote).unlink(missing_ok=True)

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a command in the working folder."""
        return run_bounded(
            self._argv(command),
            timeout_s=timeout_s,
            stdin=stdin,
            what=f"A command on {self.spec}",
            cwd=self.workdir,
            env=self._environment(),
        )

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file back."""
        try:
            shutil.copyfile(Path(self.workdir) / remote, local)
        except FileNotFoundError:
            raise DeviceError(f"{self.spec} has no file {remote}.") from None

    def facts(self) -> DeviceFacts:
        """Ask the agent."""
        from edge.devices.client import Agent

        return Agent(self).facts()

    def close(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.workdir, ignore_errors=True)


class LocalDevice(HostDevice):
    """This host, with the Python that runs edgekit unless devices.toml names another."""

    def __init__(self, spec: DeviceSpec) -> None:
        super().__init__(spec, "measured", spec.options.get("python") or sys.executable)
