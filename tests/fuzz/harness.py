"""Runs one reader over broken inputs in a process of its own, and says what went wrong with which case.

A case is (reader, seed, number): the same three give the same bytes. Wrong are: an exception that is no EdgekitError, a
case that takes longer than its limit, memory beyond the limit, the end of the process, a file outside of the folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import math
import mmap
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from edge.errors import EdgekitError
from tests.fuzz.mutators import Mutator

_CASE_LIMIT_S = 20.0  # on a busy machine too
# Processes of their own import frameworks each time.
_IMPORT_LIMIT_S = 300.0
_MEMORY_BYTES = 6 * 2**30  # beyond what the process reserves at its start
_GROWTH_KIB = 2**20
_MOST_FINDINGS = 20
_DIED = "the process died"
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader: `corpus` makes whole inputs, `mutate` breaks one, `read` takes the file in an empty folder.

    `isolated`: it starts child processes by design, so few cases are run. `frameworks`: it imports
    some in this process.
    """

    name: str
    corpus: Callable[[], list[bytes]]
    mutate: Mutator
    read: Callable[[Path], object]
    file: str = "input"
    isolated: bool = False
    frameworks: bool = False
    accepts: bool = True  # its whole inputs


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Which cases to run: numbers from `first` to before `end` of a seed, as many as begin within `seconds`."""

    first: int
    end: int
    seed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a case did that it must not."""

    case: int
    what: str
    where: str


@dataclass(kw_only=True)
class Result:
    """What became of a reader's cases."""

    reader: str
    cases: int = 0
    seconds: float = 0.0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)


class _SlowError(BaseException):
    """A case took too long; no reader can take it for an error of its own."""


def _alarm(number: int, frame: Any) -> None:
    raise _SlowError


def case_bytes(reader: Reader, corpus: list[bytes], seed: int, case: int) -> bytes:
    """Return the input of a case; now and then a whole one, which a reader must take."""
    rng = Random(f"{reader.name}/{seed}/{case}")
    return reader.mutate(rng.choice(corpus), rng)


def run(reader: Reader, cases: int, seed: int, seconds: float = math.inf) -> Result:
    """Run the cases in a child process, as many as begin within `seconds`.

    A child that dies is a finding, and the rest is run in another.
    """
    total = Result(reader=reader.name)
    done = 0
    while done < cases and len(total.findings) < _MOST_FINDINGS:
        part, died = _in_child(reader, Cases(first=done, end=cases, seed=seed, seconds=seconds - total.seconds))
        total.cases += part.cases
        total.seconds += part.seconds
        total.refused += part.refused
        total.findings += part.findings
        if died is None:
            break
        what, at = died
        total.findings.append(Finding(case=at, what=what, where=""))
        done = at + 1 if what == _DIED else cases
    return total


class _Progress:
    """What a child tells its parent at each case, in memory of both: the case, and when it must have ended."""

    _FORM = struct.Struct("<qd")

    def __init__(self, first: int) -> None:
        self._held = mmap.mmap(-1, self._FORM.size)
        self.case = first
        self.tell(math.inf)

    def tell(self, deadline: float) -> None:
        """Write the case and the deadline, a time of the monotonic clock."""
        self._held[:] = self._FORM.pack(self.case, deadline)

    def told(self) -> tuple[int, float]:
        """Return the case and its deadline."""
        case, deadline = self._FORM.unpack(self._held[:])
        return int(case), float(deadline)


def _in_child(reader: Reader, cases: Cases) -> tuple[Result, tuple[str, int] | None]:
    with tempfile.TemporaryDirectory(prefix="edgekit-fuzz-", dir=_memory_folder()) as place:
        progress, started = _Progress(cases.first), time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads at fork: none is used in the child
            pid = os.fork()
        if pid == 0:
            _child(reader, cases, Path(place), progress)
        _wait(pid, progress)
        told, why = Path(place) / "result.json", Path(place) / "why"
        if told.is_file():
            data = json.loads(told.read_text())
            return Result(**{**data, "findings": [Finding(**f) for f in data["findings"]]}), None
        at, _ = progress.told()
        until = Result(reader=reader.name, cases=at - cases.first, seconds=time.monotonic() - started)
        return until, (why.read_text() if why.is_file() else _DIED, at)


def _memory_folder() -> str | None:
    """Return a folder in memory, where there is one: making and removing files on a disk takes longer than reading."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and os.access(shared, os.W_OK) else None


def _wait(pid: int, progress: _Progress) -> None:
    """Wait for the child; native code that hangs gets no Python signal: then the whole process goes."""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(_POLL_S)
        if time.monotonic() > progress.told()[1]:
            os.kill(pid, signal.SIGABRT)  # it writes where it stands
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return


def _child(reader: Reader, cases: Cases, place: Path, progress: _Progress) -> None:
    code = 1
    try:
        faulthandler.enable()
        signal.signal(signal.SIGALRM, _alarm)
        warnings.simplefilter("ignore")
        (place / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
        if not reader.isolated:
            _limit_memory()
        result = _cases(reader, cases, place, progress)
        (place / "result.json").write_text(json.dumps(asdict(result)))
        code = 0
    except BaseException as error:  # of the harness or of whole inputs: told with the first case
        (place / "why").write_text(f"{type(error).__name__}: {error}"[:400])
        traceback.print_exc(limit=-3)
    finally:
        os._exit(code)


def _limit_memory() -> None:
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + _MEMORY_BYTES, reserved + _MEMORY_BYTES))


def _cases(reader: Reader, cases: Cases, place: Path, progress: _Progress) -> Result:
    result = Result(reader=reader.name)
    corpus = reader.corpus()
    for number, whole in enumerate(corpus):
        # What imports and caches cost is neither growth nor time of a case.
        progress.tell(time.monotonic() + 3 * _IMPORT_LIMIT_S)
        _one(reader, whole, place, accepts=reader.accepts, limit_s=_limit(reader) if number else _IMPORT_LIMIT_S)
    started, before = time.monotonic(), _peak_kib()
    for case in range(cases.first, cases.end):
        if time.monotonic() - started > cases.seconds:
            break
        progress.case = case
        progress.tell(time.monotonic() + 3 * _limit(reader))
        data = case_bytes(reader, corpus, cases.seed, case)
        try:
            result.refused += _one(reader, data, place, limit_s=_limit(reader))
        except _SlowError:
            result.findings.append(Finding(case=case, what=f"longer than {_limit(reader):g} s", where=""))
        except BaseException as error:
            result.findings.append(
                Finding(case=case, what=f"{type(error).__name__}: {error}"[:300], where=_place(error))
            )
        if _peak_kib() - before > _GROWTH_KIB:
            result.findings.append(Finding(case=case, what="more than a GiB of memory", where=""))
            before = _peak_kib()
        result.cases += 1
        if len(result.findings) >= _MOST_FINDINGS:
            break
    result.seconds = time.monotonic() - started
    return result


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))


def _limit(reader: Reader) -> float:
    return _IMPORT_LIMIT_S if reader.isolated else _CASE_LIMIT_S


def _one(reader: Reader, data: bytes, place: Path, *, limit_s: float, accepts: bool = False) -> bool:
    """Run one case in a new folder; return whether it was refused. Raises whatever is no EdgekitError."""
    folder = place / "in"
    folder.mkdir()
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        with _limited(limit_s), _silent(), contextlib.chdir(folder):
            reader.read(path)
    except EdgekitError as error:
        assert str(error).strip(), "an error without words"
        if accepts:
            raise AssertionError(f"a whole input is refused: {error}") from error
        return True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if strange := {p.name for p in place.iterdir()} - {"in", "tmp"}:
            raise AssertionError(f"files outside of the folder: {strange}")
    return False


@contextlib.contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
