"""Content-addressed results of stages: what was computed from the same content by the same tools is not computed again.

The key of a result is the digest of the stage's request, in which each file is replaced by its content, together with
the content of what the user named and the versions of all tools. A stage that reads more (a Python factory that imports
its neighbours) reports which files it opened; a result counts in the same folder only, while these are as they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge import isolate, scratch
from edge.content import Digests
from edge.errors import ConfigError
from edge.isolate import Progress

LIMIT_VARIABLE = "EDGEKIT_CACHE_LIMIT_GB"
DEFAULT_LIMIT_GB = 10.0
_ENTRY = "entry.json"
_ROOT = "@root@"
_NEW = ".new-"


def cache_folder() -> Path:
    """Return the cache: EDGEKIT_CACHE, else $XDG_CACHE_HOME/edgekit, else ~/.cache/edgekit. It need not exist."""
    if given := os.environ.get("EDGEKIT_CACHE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"


def limit_bytes() -> int:
    """Return how large the results may grow together: EDGEKIT_CACHE_LIMIT_GB, else 10 GB; with 0 there is no cache.

    Raises ConfigError.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{LIMIT_VARIABLE} is {text!r}; accepted: a number of GB from 0, such as 10")
    return int(value * 10**9)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored result, `folder` with its files; `used` is the time of its last use in seconds since 1970."""

    key: str
    stage: str
    bytes: int
    used: float
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage answered, its files (relative to the working folder), and the user's files it read with digests."""

    answer: Mapping[str, Any]
    files: Sequence[str]
    opened: Mapping[str, str]


class Store:
    """Results below a folder, safe for several processes: an entry appears by one rename and is verified when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str, root: Path, digests: Digests) -> dict[str, Any] | None:
        """Copy the files of a result below `root` and return it; None where there is none that is whole and current."""
        place = self._place(key)
        try:
            entry = _unsealed((place / _ENTRY).read_text(encoding="utf-8"), key)
            if any(digests.file(Path(path)) != sha256 for path, sha256 in entry["opened"].items()):
                return None
            for name, sha256 in entry["files"].items():
                _copy_verified(place / "files" / sha256, _below(root, name), sha256)
            os.utime(place)
            return _relocated(entry["result"], _ROOT, str(root))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Damaged on disk: what is computed anew takes its place.
            shutil.rmtree(place, ignore_errors=True)
            return None

    def save(self, key: str, stage: str, result: Result, root: Path) -> None:
        """Store a result, its files being below `root`; a disk that does not take it changes nothing."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch.held(_NEW, self.folder) as temporary:
                entry = {"key": key, "stage": stage, **self._fill(temporary, result, root)}
                (temporary / _ENTRY).write_text(_sealed(entry), encoding="utf-8")
                self._replace(temporary, self._place(key))
            self.evict(limit_bytes())

    def _fill(self, folder: Path, result: Result, root: Path) -> dict[str, Any]:
        (folder / "files").mkdir()
        files = {name: _copy_named_by_content(root / name, folder / "files") for name in result.files}
        return {
            "bytes": sum((root / name).stat().st_size for name in files),
            "result": _relocated(result.answer, str(root), _ROOT),
            "files": files,
            "opened": dict(result.opened),
        }

    def _replace(self, temporary: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(temporary / "replaced")
        made = temporary / "entry"
        made.mkdir()
        for part in (_ENTRY, "files"):
            (temporary / part).rename(made / part)
        made.rename(place)

    def entries(self) -> list[Entry]:
        """Return all whole entries, the longest unused first."""
        found = []
        for path in self.folder.glob(f"??/*/{_ENTRY}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                data = _unsealed(path.read_text(encoding="utf-8"), path.parent.name)
                used = path.parent.stat().st_mtime
                size = int(data["bytes"]) + path.stat().st_size
                found.append(Entry(key=data["key"], stage=data["stage"], bytes=size, used=used, folder=path.parent))
        return sorted(found, key=lambda e: e.used)

    def evict(self, limit: int, *, wait: bool = False) -> int:
        """Remove the longest unused entries until `limit` bytes are kept; return how many went.

        Another process that evicts at the same time is left to it, unless told to `wait`. Leftovers of killed processes
        go as well.
        """
        with self._alone(wait) as alone:
            if not alone:
                return 0
            entries = self.entries()
            whole = {e.folder for e in entries}
            for damaged in (p for p in self.folder.glob("??/*") if p not in whole):
                shutil.rmtree(damaged, ignore_errors=True)
            total, removed = sum(e.bytes for e in entries), 0
            for entry in entries:
                if total <= limit:
                    break
                shutil.rmtree(entry.folder, ignore_errors=True)
                total, removed = total - entry.bytes, removed + 1
            scratch.remove_abandoned(_NEW, self.folder)
            return removed

    @contextlib.contextmanager
    def _alone(self, wait: bool) -> Iterator[bool]:
        if not self.folder.is_dir():
            yield False
            return
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            yield True

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key


def store() -> Store:
    """Return the store of this user."""
    return Store(cache_folder() / "stages")


@contextlib.contextmanager
def remembered_digests() -> Iterator[Digests]:
    """Yield digests that are remembered in the cache."""
    digests = Digests(cache_folder() / "digests.sqlite")
    try:
        yield digests
    finally:
        digests.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage to run, and what its result depends on.

    Files below `root` (the working folder of a build) count by their content wherever `request` names them. `content`
    are paths of the user that count by theirs, `parts` is what else the result depends on. Files below `root` that the
    result names, and those of `keep`, are stored with it.
    """

    stage: str
    request: dict[str, Any]
    root: Path
    workdir: Path
    name: str
    timeout_s: float
    content: Sequence[str] = ()
    parts: object = None
    keep: Sequence[Path] = ()


def call(job: Job, progress: Progress, *, use: bool = True) -> dict[str, Any]:
    """Return what `isolate.call` would, from the store where the same was computed before.

    With `use` False, or a limit of 0, the store is neither read nor written. Raises ConfigError for a wrong limit and
    what the stage raises; failures are not stored.
    """
    if not use or limit_bytes() == 0:
        return _computed(job, progress)[0]
    with remembered_digests() as digests:
        named = {text: digests.named(text) for text in job.content}
        # What a stage opens it finds from here: the same script in another folder may read other neighbours.
        here = str(Path.cwd()) if job.content else ""
        asked = _by_content(job.request, job.root, digests)
        key = _key([job.stage, asked, named, here, job.parts, fingerprint(digests)])
        if (found := store().load(key, job.root, digests)) is not None:
            progress(f"{job.name}: nothing changed, taken from the cache", None)
            return found
        result, opened = _computed(job, progress)
        # What changed while the stage ran may have been read before or after: such a result is not kept.
        if named == {text: digests.named(text) for text in job.content}:
            kept = (_relative(k, job.root) for k in job.keep if k.is_file())
            files = sorted({*_named_files(result, job.root), *kept})
            stored = Result(answer=result, files=files, opened={p: digests.file(Path(p)) for p in opened})
            store().save(key, job.stage, stored, job.root)
        return result


def _computed(job: Job, progress: Progress) -> tuple[dict[str, Any], Sequence[str]]:
    result = isolate.call(
        job.stage, job.request, workdir=job.workdir, name=job.name, progress=progress, timeout_s=job.timeout_s
    )
    return result, result.pop("opened", ())


def _sealed(entry: Mapping[str, Any]) -> str:
    """Return an entry as text whose first line is the digest of the rest."""
    text = json.dumps(entry)
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _unsealed(text: str, key: str) -> dict[str, Any]:
    """Return the entry of a sealed text; raise ValueError where it is not as it was written, or of another key."""
    digest, _, rest = text.partition("\n")
    if hashlib.sha256(rest.encode()).hexdigest() != digest:
        raise ValueError("the entry does not match its digest")
    entry: dict[str, Any] = json.loads(rest)
    if entry["key"] != key:
        raise ValueError("the entry belongs to another key")
    return entry


def _key(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _by_content(value: Any, root: Path, digests: Digests) -> Any:
    """Return a request with each path below `root` replaced by its content, or by its relative name where it is new."""
    if isinstance(value, Mapping):
        return {k: _by_content(v, root, digests) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(v, root, digests) for v in value]
    if not isinstance(value, str) or not value.startswith(str(root)):
        return value
    path = Path(value)
    # Its relative name tells where results go, and a suffix decides how a file is read.
    return [_relative(path, root), digests.tree(path) if path.is_file() or _holds_result(path, root) else None]


def _holds_result(path: Path, root: Path) -> bool:
    """Tell a folder that a stage made from one to work in, which holds logs and whatever came before."""
    return path != root and path.is_dir() and not any(path.glob("*.request.json"))


def _named_files(result: Any, root: Path) -> Iterator[str]:
    if isinstance(result, Mapping):
        for value in result.values():
            yield from _named_files(value, root)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from _named_files(value, root)
    elif isinstance(result, str) and result.startswith(f"{root}{os.sep}"):
        path = Path(result)
        if path.is_file():
            yield _relative(path, root)
        elif path.is_dir():
            yield from (_relative(p, root) for p in path.rglob("*") if p.is_file())


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else "."


def _relocated(answer: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    text = json.dumps(answer).replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    moved: dict[str, Any] = json.loads(text)
    return moved


def _below(root: Path, name: str) -> Path:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{name!r} lies outside of the working folder")
    return root / parts


def _copy_named_by_content(source: Path, folder: Path) -> str:
    temporary = folder / ".copy"
    shutil.copyfile(source, temporary)
    with temporary.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    temporary.replace(folder / sha256)
    return sha256


def _copy_verified(source: Path, destination: Path, sha256: str) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    with destination.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise ValueError(f"{source} does not match its digest")


def fingerprint(digests: Digests) -> list[str]:
    """Return what decides how tools compute: this code, Python, all installed packages, the processor, the compiler."""
    own = Path(__file__).resolve().parent
    code = [digests.tree(folder) for folder in (own, own.parent / "targets", own.parent / "calibration")]
    return [*code, sys.version, _processor(), *_packages(tuple(sys.path)), *_tools(digests)]


@functools.cache
def _packages(path: tuple[str, ...]) -> list[str]:
    names: set[str] = set()
    for entry in path:
        with contextlib.suppress(OSError):
            names |= {n for n in os.listdir(entry or ".") if n.endswith((".dist-info", ".egg-info"))}  # noqa: PTH208
    return sorted(names)


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    return platform.processor() or platform.machine()


def _tools(digests: Digests) -> list[str]:
    """Return the settings of edgekit and the state of the compiler that it calls, which is no Python package."""
    settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(("EDGEKIT_", "QNN_", "NEURO"))]
    ignored = (LIMIT_VARIABLE, "EDGEKIT_CACHE=", "EDGEKIT_DEVICES")
    compiler = shutil.which("edgetpu_compiler")
    return [*(s for s in settings if not s.startswith(ignored)), digests.file(Path(compiler)) if compiler else ""]
