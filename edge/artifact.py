"""The artifact: a folder with a program, its manifest, golden vectors and report, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from edge import codec, scratch
from edge.errors import ArtifactError, DiskFullError, OutputError, blaming
from edge.findings import Finding
from edge.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# linux/fs.h, linux/fcntl.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_ATTEMPTS = 100
_KEPT = "artifact"
Verdict = Literal["pass", "fail", "unchecked"]
FileRole = Literal["program", "compiled", "carrier", "golden", "report", "placement", "log", "extra"]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of the artifact; `path` is relative with forward slashes."""

    path: str
    role: FileRole
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The samples that were used: digest of their content, how many, from what kind of data, which part."""

    name: str
    kind: str
    digest: str
    samples: int
    selection: str = "all"


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What was built: kind and name of the source and the digest of its content."""

    name: str
    kind: str
    digest: str


# The class below has a field of that name.
Number = float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The task metric on the same samples at three stages; `drop` = float - quantized, positive is a loss.

    `drop_low` and `drop_high` are the 95 % interval of the paired difference, None where there are too few samples.
    """

    metric: str
    float: Number
    carrier: Number
    quantized: Number
    drop: Number
    drop_low: Number | None
    drop_high: Number | None
    samples: int
    mode: Literal["measured", "emulated"]
    kernels: str
    higher_is_better: bool = True
    p_value: Number | None = None
    detectable_drop: Number | None = None
    interval_method: str = ""


# What runs in a program's place where this host cannot run it, by the kernel set of that name.
_STAND_INS = {"emulated": "exported graph in torch", "torch": "its weights in torch"}


def what_ran(kernels: str) -> str:
    """Return in words what gave a number, of the name in `kernels`: `xnnpack kernels`, `exported graph in torch`."""
    return "Core ML" if kernels == "coreml" else _STAND_INS.get(kernels, f"{kernels} kernels")


def accuracy_of(record: Mapping[str, Any], mode: str) -> Accuracy:
    """Return a check's accuracy with the mode of the machine it ran on; what stands in is emulated on any."""
    return codec.from_json(Accuracy, {**record, "mode": "emulated" if record["kernels"] in _STAND_INS else mode})


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output against the float source: signal-to-noise in dB (None: exact), cosine, largest difference."""

    output: str
    snr_db: float | None
    cosine: float | None
    max_abs: float
    carrier_snr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All numbers of an artifact; each carries its mode."""

    accuracy: Accuracy | None = None
    parity: tuple[OutputParity, ...] = ()
    latency: Mapping[str, Any] | None = None
    predicted_latency: Mapping[str, Any] | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known of an artifact; equal builds give equal manifests but for `created` and measured times."""

    schema_version: int = SCHEMA_VERSION
    edgekit: str
    created: str
    name: str
    target: str
    runtime: str
    recipe: Mapping[str, Any]
    recipe_name: str
    quantizer: str
    source: SourceRecord
    calibration: DataRecord | None
    evaluation: DataRecord | None
    tools: Mapping[str, str]
    source_signature: Signature
    signature: Signature
    metrics: Metrics
    budgets: Mapping[str, float | str]
    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()

    def file(self, role: FileRole) -> FileRecord | None:
        """Return the first file of that role."""
        return next((f for f in self.files if f.role == role), None)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact on disk whose files matched their digests when it was opened."""

    path: Path
    manifest: Manifest

    def file(self, role: FileRole) -> Path | None:
        """Return the path of the first file of that role."""
        record = self.manifest.file(role)
        return self.path / record.path if record else None

    @property
    def golden(self) -> Path | None:
        """The golden vectors as arrays; ExecuTorch's artifacts hold them as a BundledProgram too."""
        return next((self.path / f.path for f in self.manifest.files if f.path == "golden.npz"), None)

    @property
    def program(self) -> Path:
        """The program that the runtime loads."""
        found = self.manifest.file("program")
        if found is None:
            raise ArtifactError(f"{self.path} has no program file.", hint="Build it again.")
        # A Core ML program is a folder: its files are recorded one by one.
        return self.path / PurePosixPath(found.path).parts[0]

    @property
    def size_bytes(self) -> int:
        """Size of the program, all its files."""
        return sum(f.bytes for f in self.manifest.files if f.role == "program")


def sha256(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record(root: Path, path: Path, role: FileRole) -> FileRecord:
    """Return the record of a file below `root`."""
    relative = path.relative_to(root).as_posix()
    return FileRecord(path=relative, role=role, bytes=path.stat().st_size, sha256=sha256(path))


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `destination` that takes its place when the block ends well.

    An artifact that stood there before is replaced in one rename; any other folder that is not empty is left alone
    and refused. What earlier runs left that were killed is removed. Raises OutputError, DiskFullError.
    """
    destination = destination.absolute()
    check_destination(destination)
    missing = [p for p in destination.parents if not p.exists()]
    with translating_os_errors(destination):
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            recover(destination)
            with scratch.held(_prefix(destination), destination.parent) as temporary:
                temporary.chmod(0o755)
                yield temporary
                _replace(temporary, destination)
        except BaseException:
            _remove_empty(missing)
            raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made on the way, innermost first, unless others use them by now."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_destination(destination: Path) -> None:
    """Refuse, before any work, a place where an artifact cannot be written; raise OutputError."""
    if destination.exists() and not destination.is_dir():
        raise OutputError(f"{destination} is a file.", hint="Give another folder with -o.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / MANIFEST).is_file():
        raise OutputError(
            f"{destination} holds other files and no artifact of edgekit.",
            hint="Give a new or empty folder with -o, or remove it.",
        )
    parent = destination if destination.exists() else destination.parent
    while not parent.exists():
        parent = parent.parent
    # The artifact is renamed into place, so it is the parent folder that must take new names. Only trying tells: a file
    # system may be read-only although its permissions say otherwise.
    holder = destination.parent if destination.exists() else parent
    with translating_os_errors(holder), scratch.held(".edgekit-", holder):
        pass


@contextlib.contextmanager
def translating_os_errors(place: Path) -> Iterator[None]:
    """Turn a full disk or a folder that refuses writing into an error of edgekit."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"No space is left while writing {place}.", hint="Free space; nothing was left half-written."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(
                f"The folder {place} is read-only: {error.strerror}.", hint="Give another place with -o."
            ) from error
        raise


def _prefix(destination: Path) -> str:
    return f".{destination.name}."


def _old(destination: Path) -> str:
    return f".{destination.name}.old."


def recover(destination: Path) -> None:
    """Bring back the artifact of a run that was killed between taking it away and putting the new one there."""
    for left in scratch.abandoned(_old(destination), destination.parent):
        # Not on Linux, where the two change places in one step.
        if not destination.exists() and (left / _KEPT / MANIFEST).is_file():
            (left / _KEPT).rename(destination)
        shutil.rmtree(left, ignore_errors=True)


def _replace(temporary: Path, destination: Path) -> None:
    """Put a folder into place, whatever other runs put there at the same time: the last one stays."""
    for _ in range(_ATTEMPTS):
        try:
            if _exchanged(temporary, destination):
                shutil.rmtree(temporary, ignore_errors=True)  # the old artifact has that name now
                return
            if not destination.exists():
                temporary.rename(destination)
                return
        except OSError as error:
            # Another run was faster: what it wrote is replaced in turn.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            continue
        if _swapped(temporary, destination):
            return
    raise OutputError(f"{destination} is changed all the time by other runs.", hint="Give each run its own folder.")


def _exchanged(temporary: Path, destination: Path) -> bool:
    """Let two folders change places in one step; False where there is nothing yet, or no such step on this system."""
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = os.fsencode(temporary), os.fsencode(destination)
    return bool(function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _swapped(temporary: Path, destination: Path) -> bool:
    """Replace in two steps; False where another run took the old folder away first."""
    with scratch.held(_old(destination), destination.parent) as old:
        try:
            destination.rename(old / _KEPT)
        except FileNotFoundError:
            return False
        try:
            temporary.rename(destination)
        except OSError:
            with contextlib.suppress(OSError):
                (old / _KEPT).rename(destination)
            return False
    return True


def with_files(root: Path, manifest: Manifest, roles: Mapping[str, FileRole]) -> Manifest:
    """Return the manifest with a record of each file of `roles` (relative path -> role) below `root`."""
    return replace(manifest, files=tuple(record(root, root / path, role) for path, role in sorted(roles.items())))


def write_manifest(root: Path, manifest: Manifest, roles: Mapping[str, FileRole]) -> Manifest:
    """Write `manifest.json` with the records of all files of `roles`; return the manifest as written."""
    complete = with_files(root, manifest, roles)
    codec.write_atomically(root / MANIFEST, codec.dumps(codec.to_json(complete)))
    return complete


def read(path: Path) -> Artifact:
    """Open an artifact folder; raise ArtifactError where it is none or a file does not match its digest."""
    manifest_path = path / MANIFEST if path.is_dir() else path
    if manifest_path.name != MANIFEST or not manifest_path.is_file():
        raise ArtifactError(
            f"{path} is no artifact: it has no {MANIFEST}.", hint="Give the folder that `edgekit build` wrote."
        )
    manifest = _parse(manifest_path)
    root = manifest_path.parent
    for f in manifest.files:
        _check_file(root, f)
    return Artifact(path=root, manifest=manifest)


def interprets(function: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate what goes by the free parts of manifests (metrics, details, settings), which anyone may have changed.

    What it stumbles over there is an ArtifactError, so it goes on functions that read manifests and do little else. The
    first argument is an artifact, its path, or several of them.
    """

    @functools.wraps(function)
    def guarded(first: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with blaming(
            ArtifactError,
            f"The manifest of {_named(first)} could not be understood",
            hint="Build the artifact again. If nobody changed it, this is a bug: report what --debug shows.",
        ):
            return function(first, *args, **kwargs)

    return guarded


def _named(value: object) -> str:
    if isinstance(value, Artifact):
        return str(value.path)
    if isinstance(value, Iterable) and not isinstance(value, (str, Path)):
        return ", ".join(map(_named, value)) or "the artifact"
    return str(value)


def _parse(path: Path) -> Manifest:
    try:
        data = codec.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}.", hint="Build the artifact again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version!r}; this edgekit reads version {SCHEMA_VERSION}.",
            hint="Build the artifact again with this version.",
        )
    from pydantic import ValidationError

    try:
        return codec.from_json(Manifest, data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path}: {where}: {first['msg']}.", hint="Build the artifact again.") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _check_file(root: Path, f: FileRecord) -> None:
    relative = PurePosixPath(f.path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ArtifactError(f"The manifest names {f.path!r}, a file outside of the artifact.", hint="Do not trust it.")
    path = root / relative
    if not _is_file(path):
        raise ArtifactError(f"{path} is missing from the artifact.", hint="Build the artifact again.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ArtifactError(f"{path} is a link that leads out of the artifact.", hint="Do not trust it.")
    found = sha256(path)
    if found != f.sha256:
        raise ArtifactError(
            f"{path} does not match its digest: sha256 {found[:12]}… instead of {f.sha256[:12]}….",
            hint="The file was changed or damaged after the build; build the artifact again.",
        )
