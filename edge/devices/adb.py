"""Phones over adb: the real `adb` client, with the states and refusals of Android 8 to 16 told apart."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.devices.base import DEFAULT_TIMEOUT_S, Closing, Completed, DeviceFacts, DeviceMode, DeviceSpec, hashed_name
from edge.devices.local import run_bounded
from edge.errors import DeviceError, MissingPackageError

PLACE = "/data/local/tmp"
_COPY_TIMEOUT_S = 1800.0
_SHORT_S = 60.0
_GRACE_S = 15.0
_LATE = 124
# A run whose cable was pulled could not tidy up: what is older than a day belongs to no run.
_OPEN = (
    "find {place} -maxdepth 1 -name 'edgekit.*' -mtime +0 -exec rm -rf {{}} \\; 2>/dev/null; "
    "mktemp -d {place}/edgekit.XXXXXX"
)
# Shells of Android 6 and older send stderr along with stdout, which may then follow it.
_EXIT = re.compile(rb"edgekit-exit (\d+)\s*")
_STATES = {
    "unauthorized": ("does not trust this host", "Unlock the phone and accept the key that it shows."),
    "authorizing": ("is still asking whether to trust this host", "Unlock the phone and accept the key that it shows."),
    "offline": ("is offline", "Plug it in again, or run `adb reconnect`."),
    "no permissions": ("cannot be opened by this user", "Add a udev rule for it and join the group plugdev."),
    "recovery": ("is in recovery", "Start Android."),
    "sideload": ("is in sideload mode", "Start Android."),
    "bootloader": ("is in its boot loader", "Start Android: `fastboot reboot`."),
}


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str | None = None


def parse_devices(text: str) -> tuple[Attached, ...]:
    """Return what `adb devices -l` lists; the words of its daemon's start are skipped."""
    found = []
    for line in text.splitlines():
        match = re.match(r"(\S+)\s+(device|no permissions|[a-z]+)\b(.*)$", line)
        if match is None or line.startswith(("List of devices", "*", "adb")):
            continue
        model = re.search(r"\bmodel:(\S+)", match[3])
        found.append(Attached(serial=match[1], state=match[2], model=model[1] if model else None))
    return tuple(found)


def _adb() -> str:
    found = shutil.which("adb")
    if found is None:
        raise MissingPackageError(
            "adb is not installed.", hint="`apt-get install adb`, or Android's platform tools on the PATH."
        )
    return found


def attached() -> tuple[Attached, ...]:
    """Return all devices that adb sees, in any state; raise MissingPackageError, DeviceError."""
    done = run_bounded([_adb(), "devices", "-l"], timeout_s=_SHORT_S, stdin=b"", what="`adb devices`")
    if done.code != 0:
        raise DeviceError(f"`adb devices` failed: {done.error_text}", hint="`adb kill-server` starts it afresh.")
    return parse_devices(done.stdout.decode(errors="replace"))


def choose(serial: str, found: Sequence[Attached]) -> Attached:
    """Return the device of that serial, or the only one; raise DeviceError with the state of one that is not ready."""
    names = ", ".join(f"{d.serial} ({d.state})" for d in found) or "none"
    if serial:
        one = next((d for d in found if d.serial == serial), None)
        if one is None:
            raise DeviceError(f"No device {serial!r} is attached; attached: {names}.", hint="`adb devices` lists them.")
    elif len(found) == 1:
        one = found[0]
    elif not found:
        raise DeviceError(
            "No Android device is attached.",
            hint="Switch on USB debugging (developer options), plug the phone in, and accept this host's key.",
        )
    else:
        raise DeviceError(f"{len(found)} Android devices are attached: {names}.", hint="Name one: --device adb:SERIAL.")
    if one.state != "device":
        message, hint = _STATES.get(one.state, (f"is in the state {one.state!r}", "Plug it in again."))
        raise DeviceError(f"The Android device {one.serial} {message}.", hint=hint)
    return one


class AdbDevice(Closing):
    """A phone. Programs run as the user `shell` below /data/local/tmp.

    Exit codes are sent as text too, as Android 6 and older, and some makers' shells, do not hand them on.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self._client = _adb()
        self.spec = replace(spec, address=choose(spec.address, attached()).serial)
        self.mode: DeviceMode = "measured"
        self.python = spec.options.get("python", "python3")
        self._present: set[str] = set()
        self.workdir = ""
        made = self._shell(_OPEN.format(place=shlex.quote(spec.options.get("workdir", PLACE))), _SHORT_S)
        folder = made.stdout.decode(errors="replace").strip()
        if made.code != 0 or not folder.startswith("/"):
            raise DeviceError(f"{self.spec} gives no working folder: {made.error_text or folder}")
        self.workdir = folder

    def _adb(self, *arguments: str, timeout_s: float, stdin: bytes = b"") -> Completed:
        command = [self._client, "-s", self.spec.address, *arguments]
        done = run_bounded(command, timeout_s=timeout_s, stdin=stdin, what=f"adb on {self.spec}")
        if done.code != 0 and (lost := self._lost(done.error_text)):
            raise lost
        return done

    def _lost(self, words: str) -> DeviceError | None:
        for state, (message, hint) in _STATES.items():
            if re.search(rf"device (?:is )?{state}|device {state}", words):
                return DeviceError(f"The Android device {self.spec.address} {message}.", hint=hint)
        if re.search(r"device '.*' not found|no devices/emulators found|error: closed|device still", words):
            return DeviceError(
                f"The connection to {self.spec} was lost: {words.splitlines()[-1]}",
                hint=f"Plug it in again. What was left in {PLACE}/edgekit.* is removed by a run on another day.",
            )
        return None

    def _shell(self, script: str, timeout_s: float, stdin: bytes = b"") -> Completed:
        """Run a script whose words are edgekit's own or quoted."""
        done = self._adb("shell", _with_exit(script), timeout_s=timeout_s, stdin=stdin)
        found = next(reversed(list(_EXIT.finditer(done.stdout))), None)
        if found is None:
            raise DeviceError(
                f"The connection to {self.spec} was lost while a command was running: {done.error_text or 'no answer'}",
                hint="Is the cable loose, or did the phone restart?",
            )
        return Completed(
            code=int(found[1]), stdout=done.stdout[: found.start()], stderr=done.stderr + done.stdout[found.end() :]
        )

    def push(self, path: Path) -> str:
        """Send a file, once per content."""
        name = hashed_name(path)
        target = f"{self.workdir}/{name}"
        if name not in self._present:
            done = self._adb("push", str(path), target, timeout_s=_COPY_TIMEOUT_S)
            if done.code != 0:
                raise self._copy_failed("receive", done)
            self._present.add(name)
        return target

    def _copy_failed(self, verb: str, done: Completed) -> DeviceError:
        words = f"{done.stdout.decode(errors='replace')} {done.error_text}".strip()[-300:]
        hint = "Free space on the phone." if "No space" in words else None
        return DeviceError(f"{self.spec} did not {verb} a file: {words}", hint=hint)

    def forget(self, remote: str) -> None:
        """Remove a file."""
        self._present.discard(Path(remote).name)
        self._shell(f"rm -f {shlex.quote(remote)}", _SHORT_S)

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Run a command in the working folder under the phone's own `timeout`; its input travels as a file."""
        seconds = str(max(1, round(timeout_s)))
        script = f"cd {shlex.quote(self.workdir)} && timeout -k 5 {seconds} {shlex.join(command)}"
        if stdin:
            script += f" <{shlex.quote(self._push_text(stdin))}"
        done = self._shell(script, timeout_s + _GRACE_S)
        if done.code == _LATE:
            raise DeviceError(f"A command on {self.spec} was still running after {seconds} s and was stopped.")
        return done

    def _push_text(self, content: bytes) -> str:
        # Older shells of Android do not hand on the input of `adb shell`.
        with tempfile.TemporaryDirectory(prefix="edgekit-adb-") as place:
            path = Path(place) / "input.jsonl"
            path.write_bytes(content)
            return self.push(path)

    def pull(self, remote: str, local: Path) -> None:
        """Fetch a file."""
        done = self._adb("pull", remote, str(local), timeout_s=_COPY_TIMEOUT_S)
        if done.code != 0:
            raise self._copy_failed("send", done)

    def facts(self) -> DeviceFacts:
        """Ask the agent where there is a Python, else Android's own properties."""
        from edge.devices.client import Agent

        if self._shell(f"command -v {shlex.quote(self.python)}", _SHORT_S).code == 0:
            return Agent(self).facts()
        properties = self._shell("getprop", _SHORT_S).stdout.decode(errors="replace")
        told = dict(re.findall(r"^\[([\w.]+)\]: \[(.*)\]\s*$", properties, re.MULTILINE))
        cpuinfo = self._shell("cat /proc/cpuinfo", _SHORT_S).stdout.decode(errors="replace")
        parts = re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
        return DeviceFacts(
            model=told.get("ro.product.model"),
            machine=told.get("ro.product.cpu.abi", ""),
            system=f"Android {told.get('ro.build.version.release', '?')} (API {told.get('ro.build.version.sdk', '?')})",
            cpu_part=parts[0] if parts else None,
            cpus=max(1, len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))),
        )

    def close(self) -> None:
        """Remove the working folder."""
        folder, self.workdir = self.workdir, ""
        if folder:
            with contextlib.suppress(DeviceError):
                self._shell(f"rm -rf {shlex.quote(folder)}", _SHORT_S)


def _with_exit(script: str) -> str:
    return f"( {script} ); echo edgekit-exit $?"
