"""The child's side of `edge.isolate`: run one stage, write its result or its error as JSON."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from edge import errors
from edge.isolate import _PROGRESS_FD_VARIABLE, EXIT_DISK_FULL, Progress, file_too_large, no_progress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _progress() -> Progress:
    number = os.environ.pop(_PROGRESS_FD_VARIABLE, "")
    if not number:
        return no_progress
    stream = os.fdopen(int(number), "w", encoding="utf-8", buffering=1)
    # Grandchildren must not keep the pipe open.
    os.set_inheritable(int(number), False)

    def report(text: str, share: float | None = None) -> None:
        stream.write(json.dumps({"text": text, "share": share}) + "\n")

    return report


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, errors.EdgekitError):
        return error.to_json()
    if isinstance(error, MemoryError):
        return errors.StageMemoryError(
            "A stage ran out of memory.", hint="Use fewer samples or raise EDGEKIT_MEMORY_LIMIT_GB."
        ).to_json()
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return file_too_large("A stage").to_json()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" while writing {error.filename}" if error.filename else ""
        return errors.DiskFullError(f"No space is left{place}.", hint="Free space, or set TMPDIR.").to_json()
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("edge."):
        return errors.MissingPackageError(
            f"The Python package {error.name!r} is needed and not installed.",
            hint="Install the extra that brings it: pip install 'edgekit[all]'; see `edgekit doctor`.",
        ).to_json()
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return errors.ToolError(f"{type(error).__name__}: {first.strip()[:500]}").to_json()


def _limit_resources(memory_bytes: int, file_bytes: int) -> None:
    import resource

    # A hard limit below ours may be in force already (containers): then that one stays.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent is gone, however it went: a stage may have started it in turn."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(stage: str, asked: str, answered: str, limits: str) -> int:
    """Run `stage` on the request file and write the answer file, whole or not at all."""
    _die_with_parent()
    _limit_resources(*map(int, limits.split(",")))
    progress = _progress()
    module, _, function = stage.partition(":")
    answer: dict[str, Any]
    try:
        request = json.loads(Path(asked).read_text(encoding="utf-8"))
        answer = {"result": getattr(importlib.import_module(module), function)(request, progress)}
        text = json.dumps(answer)
        code = 0
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may be what the disk has no room for
            traceback.print_exc()
        text, code = json.dumps({"error": _describe(error)}), 1
    temporary = Path(f"{answered}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(answered)
        sys.stdout.flush()
    except OSError as error:
        return EXIT_DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return code


if __name__ == "__main__":
    exit_code = main(*sys.argv[1:5])
    # Some frameworks crash while the interpreter shuts down; the answer is already on disk.
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(exit_code)
