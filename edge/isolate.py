"""Run one stage in a child process, so that a crash, a hang or a memory blow-up there is an error message here.

A stage is a module-level function `stage(request: dict, progress: Progress) -> dict`, named as `"edge.stages:name"`.
Requests and results are JSON, arrays travel as files: a child that ran a foreign model is never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge import codec, errors

# Called with the text of a step, and the share that is done (0 to 1) where it is known.
Progress = Callable[[str, float | None], None]

DEFAULT_TIMEOUT_S = 3600.0
MEMORY_VARIABLE = "EDGEKIT_MEMORY_LIMIT_GB"
FILE_VARIABLE = "EDGEKIT_FILE_LIMIT_GB"
DEFAULT_FILE_LIMIT_GB = 32.0
_PROGRESS_FD_VARIABLE = "EDGEKIT_PROGRESS_FD"
_GRACE_S = 2.0
# A child that has no room for its answer has none for words either.
EXIT_DISK_FULL = 75
_LONGEST_TEMPORARY = 60


# Children of this process that run now.
_running: set[subprocess.Popen[bytes]] = set()


def no_progress(text: str, share: float | None = None) -> None:
    """Ignore progress."""


def default_memory_limit() -> int:
    """Return the address-space limit of a child in bytes: EDGEKIT_MEMORY_LIMIT_GB, else 32 GiB or twice the RAM.

    It is a limit on reservations, not on use: TensorFlow and XNNPACK reserve several times what they touch.
    """
    if os.environ.get(MEMORY_VARIABLE):
        return _gibibytes(MEMORY_VARIABLE, 0.0)
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        ram = 0
    return max(32 * 2**30, 2 * ram)


def default_file_limit() -> int:
    """Return how large a file a child may write, in bytes: EDGEKIT_FILE_LIMIT_GB, else 32 GiB."""
    return _gibibytes(FILE_VARIABLE, DEFAULT_FILE_LIMIT_GB)


def _gibibytes(variable: str, default: float) -> int:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Beyond an exbibyte the system's own type ends.
    if not 0 < value <= 2**30:
        raise errors.ConfigError(f"{variable} is {text!r}; accepted: a number of GiB, such as 16")
    return int(value * 2**30)


def _environment(progress_fd: int, workdir: Path) -> dict[str, str]:
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",  # reproducible float results of the source on every x86 host
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # What a child leaves behind when it is killed goes with the working folder. Names of sockets have about 100
    # characters at most, and some are made below.
    temporary = {"TMPDIR": str(workdir)} if len(str(workdir)) <= _LONGEST_TEMPORARY else {}
    return {**quiet, **os.environ, **temporary, "PYTHONHASHSEED": "0", _PROGRESS_FD_VARIABLE: str(progress_fd)}


def _forward_progress(read_fd: int, progress: Progress) -> None:
    with os.fdopen(read_fd, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                event = codec.loads(line)
                progress(str(event["text"]), event.get("share"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the child and all it started: TERM to its group, then KILL."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _started(command: list[str], log: Path, progress: Progress) -> Iterator[subprocess.Popen[bytes]]:
    read_fd, write_fd = os.pipe()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(write_fd, log.parent.absolute()),
                pass_fds=(write_fd,),
                start_new_session=True,
            )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    reader = threading.Thread(target=_forward_progress, args=(read_fd, progress), daemon=True)
    reader.start()
    _running.add(process)
    try:
        yield process
    finally:
        _running.discard(process)
        _stop(process)
        reader.join(_GRACE_S)


@contextlib.contextmanager
def together(count: int) -> Iterator[Callable[..., Future[Any]]]:
    """Yield `submit(function, *arguments)`, which runs up to `count` functions that call stages, one per core.

    Where the block ends with an exception, Ctrl-C among them, all stages that run are stopped before it goes on.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(max(1, min(count, cores)))
    submitted: list[Future[Any]] = []

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        submitted.append(pool.submit(function, *arguments))
        return submitted[-1]

    try:
        yield submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        # A thread may be about to start its child: look again until all have ended.
        while not all(future.done() for future in submitted):
            for process in list(_running):
                _stop(process)
            time.sleep(0.02)
        raise
    finally:
        pool.shutdown()


def call(
    stage: str,
    request: dict[str, Any],
    *,
    workdir: Path,
    name: str | None = None,
    progress: Progress = no_progress,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Run `stage` (`"module:function"`) with `request` in a child process and return its result.

    `workdir` receives `NAME.log` with all that the child printed. Errors of edgekit raised in the child are raised
    here again. Raises StageCrashError, StageTimeoutError, StageMemoryError, StageFileError, ToolError.
    """
    name = name or stage.rpartition(":")[2]
    log, asked, answered = (workdir / f"{name}{end}" for end in (".log", ".request.json", ".result.json"))
    answered.unlink(missing_ok=True)
    asked.write_text(json.dumps(request), encoding="utf-8")
    # -P: a module in the user's folder must not shadow one of a framework.
    limits = f"{memory_bytes or default_memory_limit()},{default_file_limit()}"
    command = [sys.executable, "-P", "-m", "edge.isolate_worker", stage, str(asked), str(answered), limits]
    deadline = time.monotonic() + timeout_s
    with _started(command, log, progress) as process:
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise errors.StageTimeoutError(
                f"{name} took longer than {timeout_s:g} s and was stopped.",
                hint="Give it more time with --timeout, or a smaller model or data set.",
                log=str(log),
            ) from None
    return _result(name, code, answered, log)


def _result(name: str, code: int, answered: Path, log: Path) -> dict[str, Any]:
    try:
        answer = json.loads(answered.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise _death(name, code, log) from None
    # A child that ran a foreign model may have been taken over by it: its answer is content from outside.
    if not isinstance(answer, dict) or not all(isinstance(v, dict) for v in answer.values()) or len(answer) != 1:
        raise errors.ToolError(f"{name} gave no answer that edgekit understands.", log=str(log))
    if "error" in answer:
        error = errors.from_json(answer["error"])
        # What the user gave wrongly needs no log of a library.
        if not isinstance(error, errors.UsageError):
            error.log = error.log or str(log)
        raise error
    result: dict[str, Any] = answer.get("result", {})
    return result


def file_too_large(name: str, log: str | None = None) -> errors.StageFileError:
    """Return the error for a child that met the limit on the size of files."""
    return errors.StageFileError(
        f"{name} wrote a file larger than {default_file_limit() / 2**30:.3g} GiB and was stopped.",
        hint=f"Use fewer samples or a smaller model, or raise {FILE_VARIABLE}.",
        log=log,
    )


def _death(name: str, code: int, log: Path) -> errors.EdgekitError:
    tail = log.read_bytes()[-4000:].decode(errors="replace") if log.exists() else ""
    if code == -signal.SIGKILL or "bad_alloc" in tail or "MemoryError" in tail:
        return errors.StageMemoryError(
            f"{name} ran out of memory and was stopped.",
            hint="Free memory, use fewer samples, or raise EDGEKIT_MEMORY_LIMIT_GB.",
            log=str(log),
        )
    if code == EXIT_DISK_FULL:
        return errors.DiskFullError(
            f"No space is left while {name} ran, in {log.parent}.", hint="Free space, or set TMPDIR to another place."
        )
    if code == -signal.SIGXFSZ:
        return file_too_large(name, log=str(log))
    if code < 0:
        return errors.StageCrashError(
            f"{name} crashed with {signal.Signals(-code).name} inside a library that edgekit calls.",
            hint="The model or the library is at fault; the log has its last words.",
            log=str(log),
        )
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "it printed nothing")
    return errors.ToolError(f"{name} ended with exit code {code}: {last.strip()[:300]}", log=str(log))
