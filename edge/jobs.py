"""Several commands of edgekit at once, each a process of its own: one that fails does not touch the others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from edge import codec, errors
from edge.isolate import Progress, no_progress

_ORDERLY_S = 30.0
# The more is wrong, the later; codes that are not listed are worse than all.
_SEVERITY = (errors.EXIT_OK, errors.EXIT_BUDGET, 4, 3, 2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command of edgekit that prints JSON, with a name for its progress; `environment` is added to this one's."""

    name: str
    arguments: tuple[str, ...]
    folder: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job: its exit code, the JSON that it printed, or its error as `message` and `hint`."""

    name: str
    code: int
    record: Any = None
    error: Mapping[str, Any] | None = None


def worst(codes: Sequence[int]) -> int:
    """Return the code that says most: a bug, then usage, tool, model, budget; 0 for none."""
    return max(codes, key=lambda c: _SEVERITY.index(c) if c in _SEVERITY else len(_SEVERITY), default=errors.EXIT_OK)


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Running:
    """The processes that run now. After `stop` no new one starts until `resume`."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @contextlib.contextmanager
    def started(self, job: Job) -> Iterator[subprocess.Popen[str] | None]:
        command = [sys.executable, "-m", "edge", *job.arguments]
        with self._lock:
            if self._stopped:
                yield None
                return
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                cwd=job.folder,
                env={**os.environ, **job.environment},
                start_new_session=True,  # Ctrl-C reaches it once, by `stop`
            )
            self._processes.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._processes.discard(process)
            _end(process)

    def stop(self) -> None:
        """Ask all to end in order, as Ctrl-C does, so that devices are left clean; kill what lives on after 30 s."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
                # A request that comes while a process starts can be lost.
                late = threading.Timer(_ORDERLY_S, _kill, (process,))
                late.daemon = True
                late.start()

    def resume(self) -> None:
        """Let processes start again."""
        with self._lock:
            self._stopped = False


_running = _Running()


@contextlib.contextmanager
def stopping(pool: ThreadPoolExecutor) -> Iterator[None]:
    """When the block is interrupted, ask all jobs to end in order and wait for the pool before it goes on."""
    try:
        yield
    except BaseException:
        _running.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        _running.resume()
        raise


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        _killed_group(process)


def _killed_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ORDERLY_S)
    _killed_group(process)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def run(jobs: Sequence[Job], *, at_once: int, progress: Progress = no_progress) -> list[Done]:
    """Run the jobs, at most `at_once` together, and return their ends in the order given.

    When this is interrupted, all are asked to end in order before the interruption goes on.
    """
    with ThreadPoolExecutor(max(1, min(at_once, len(jobs) or 1))) as pool, stopping(pool):
        futures = {pool.submit(run_one, job, progress): index for index, job in enumerate(jobs)}
        found = {futures[future]: future.result() for future in as_completed(futures)}
    return [found[index] for index in range(len(jobs))]


def run_one(job: Job, progress: Progress = no_progress) -> Done:
    """Run one job in this thread."""
    with _running.started(job) as process:
        if process is None:
            return Done(name=job.name, code=errors.EXIT_INTERRUPTED, error={"message": "it was not started"})
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=_listen, args=(process.stderr, job.name, said, progress), daemon=True)
        reader.start()
        printed = process.stdout.read()
        code = process.wait()
        reader.join(5)
    return _done(job, code, printed, said)


def _listen(stream: Any, name: str, said: list[str], progress: Progress) -> None:
    with contextlib.suppress(ValueError):  # the stream is closed under it when the job is stopped
        for line in stream:
            text = line.rstrip()
            said.append(text)
            del said[:-50]
            if text.startswith("* "):
                progress(f"{name}: {text[2:]}", None)


def _done(job: Job, code: int, printed: str, said: list[str]) -> Done:
    record: Any = None
    with contextlib.suppress(ValueError):
        record = codec.loads(printed.strip().splitlines()[-1]) if printed.strip() else None
    if isinstance(record, dict) and "error" in record:
        return Done(name=job.name, code=code, error=record["error"] if isinstance(record["error"], dict) else record)
    if record is not None:
        return Done(name=job.name, code=code, record=record)
    signal_name = f"it was ended by signal {-code}" if code < 0 else ""
    message = next((line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")), "")
    return Done(
        name=job.name,
        code=code if code > 0 else errors.EXIT_BUG,
        error={"message": message or signal_name or (said[-1] if said else "it printed nothing")},
    )
