"""Stages that misbehave, for tests of edge.isolate."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from edge.errors import SourceError
from edge.isolate import Progress


def double(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    progress("doubling", 0.5)
    return {"value": 2 * request["value"]}


def segfault(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    print("about to read address 0", flush=True)
    ctypes.string_at(0)
    return {}


def refuse(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise SourceError("the model is odd", hint="make it even")


def foreign_error(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise ValueError("first line\nsecond line")


def missing_package(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    import a_package_that_nobody_has  # type: ignore[import-not-found]

    return {"value": a_package_that_nobody_has}


def hang(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    Path(request["pid_file"]).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def allocate(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    block = bytearray(request["bytes"])
    return {"length": len(block)}


def silent_exit(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    print("converter says no", flush=True)
    os._exit(3)


def odd_exit_after_answer(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    import atexit

    atexit.register(ctypes.string_at, 0)
    return {"value": 1}


def counted(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write the doubled content of a file into a new one; each run adds a line to `counter`."""
    with Path(request["counter"]).open("a") as counter:
        counter.write("run\n")
    result = Path(request["workdir"]) / "made" / "doubled.txt"
    result.parent.mkdir(exist_ok=True)
    result.write_text(2 * Path(request["input"]).read_text() + Path(request["beside"]).read_text())
    return {"file": str(result), "text": f"see {result}", "opened": [request["beside"]]}


def neighbour(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Read the file beside the one that was named, from the folder where edgekit was started."""
    found = Path(request["source"]).resolve().with_suffix(".pt")
    return {"text": found.read_text(), "opened": [str(found)]}


def write_much(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    with Path(request["path"]).open("wb") as stream:
        for _ in range(64):
            stream.write(bytes(1 << 20))
    return {}


def native_write_much(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write as native code does, which dies of the signal that Python ignores."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return write_much(request, progress)


def temporary_folder(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    import tempfile

    return {"folder": tempfile.mkdtemp()}
