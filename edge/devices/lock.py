"""One run at a time on a device: a lock of this host that dies with its holder and says who that is."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edge import codec
from edge.devices.base import DeviceSpec
from edge.devices.places import cache_folder
from edge.errors import ConfigError, DeviceError
from edge.isolate import Progress, no_progress

# Seconds that a run waits for its turn; EDGEKIT_LOCK_WAIT sets another number, 0 refuses at once.
DEFAULT_WAIT_S = 3600.0
_POLL_S = 0.2


def wait_limit() -> float:
    """Return how long runs wait for a device; raise ConfigError for a wrong EDGEKIT_LOCK_WAIT."""
    text = os.environ.get("EDGEKIT_LOCK_WAIT")
    if text is None:
        return DEFAULT_WAIT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"EDGEKIT_LOCK_WAIT is {text!r}; accepted: seconds, such as 600, or 0 for no waiting.")
    return seconds


def identity(spec: DeviceSpec) -> str:
    """Return what two names of one device have in common: its address, whoever logs in."""
    if spec.kind == "ssh":
        return f"ssh:{spec.address.lower()}:{spec.port or 22}"
    return f"{spec.kind}:{spec.address}"


@contextlib.contextmanager
def locked(spec: DeviceSpec, *, wait_s: float | None = None, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the device's lock on this host; wait for the run that has it, and say which one that is.

    The lock ends with its process in any case, so the lock of a dead run is no hindrance. `wait_s` None: `wait_limit`.
    Raises DeviceError where it is still taken after `wait_s` seconds.
    """
    limit = wait_limit() if wait_s is None else wait_s
    path = _file(spec)
    with path.open("a+", encoding="utf-8") as stream:
        _acquire(stream, spec, limit, progress)
        _sign(stream)
        try:
            yield
        finally:
            stream.truncate(0)


def holder(spec: DeviceSpec) -> str | None:
    """Return who uses the device now, None where nobody of this host does."""
    path = _file(spec)
    if not path.is_file():
        return None
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _told(stream)
    return None


def _file(spec: DeviceSpec) -> Path:
    """Return the device's lock file, in the cache, or among temporary files where the cache cannot be written."""
    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = Path(tempfile.gettempdir()) / f"edgekit-locks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder / (hashlib.sha256(identity(spec).encode()).hexdigest()[:16] + ".lock")


def _acquire(stream: IO[str], spec: DeviceSpec, limit: float, progress: Progress) -> None:
    deadline, said = time.monotonic() + limit, ""
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = _told(stream)
        else:
            return
        if time.monotonic() >= deadline:
            waited = f" after {limit:g} s of waiting" if limit else ""
            raise DeviceError(
                f"Device {spec} is in use by another run of edgekit{waited} ({who}).",
                hint="Wait for it to end, or use another device; EDGEKIT_LOCK_WAIT sets how long a run waits.",
            )
        if who != said:
            progress(f"waiting for {spec}, which is in use by {who}", None)
            said = who
        time.sleep(_POLL_S)


def _sign(stream: IO[str]) -> None:
    command = " ".join(word for word in sys.argv[1:4] if word.isprintable())[:100]
    stream.truncate(0)
    stream.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%H:%M:%S"), "command": command}))
    stream.flush()


def _told(stream: IO[str]) -> str:
    """Return the holder in words; it may be signing at this moment."""
    stream.seek(0)
    try:
        known: dict[str, Any] = codec.loads(stream.read())
        command = f": edgekit {known['command']}" if known["command"] else ""
        return f"process {int(known['pid'])} since {known['since']}{command}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
