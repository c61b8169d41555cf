"""Runners for devices without Python: C++ programs that are compiled on demand, with all the libraries that they need.

The sources are edgekit's; the runtimes are the shared libraries and headers that the wheels of ai-edge-litert and
executorch ship. A bundle brings its own C library and loader, so that it does not depend on what the device has: it
runs on any 64-bit ARM Linux (4 KiB to 64 KiB pages), and it is made to run below /data/local/tmp of an Android phone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge.devices import sysroot
from edge.devices.places import cache_folder
from edge.errors import DeviceError, MissingPackageError, ToolError
from edge.isolate import Progress, no_progress

_HERE = Path(__file__).parent
_HEADERS = (_HERE / "native_machine.hpp", _HERE / "native_runner.hpp")
_C_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
)
_COMPILE_TIMEOUT_S = 300.0
_FETCH_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A processor architecture: its compiler, its loader, the package that brings both, its wheels' platforms."""

    name: str
    compiler: str
    loader: str
    package: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime's wheel, and what of it is compiled against and sent; libraries in the order of their dependencies."""

    distribution: str
    package: str
    source: Path
    libraries: tuple[str, ...]
    includes: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Files of one runner: run as `loader --preload LIBRARIES program`. `version` is that of the runtime's wheel."""

    loader: Path
    libraries: tuple[Path, ...]
    program: Path
    distribution: str
    version: str

    @property
    def size_bytes(self) -> int:
        """Bytes that travel to a device."""
        return sum(p.stat().st_size for p in (self.loader, *self.libraries, self.program))


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            name="aarch64",
            compiler="aarch64-linux-gnu-g++",
            loader="ld-linux-aarch64.so.1",
            package="g++-aarch64-linux-gnu",
        ),
        Machine(name="x86_64", compiler="x86_64-linux-gnu-g++", loader="ld-linux-x86-64.so.2", package="g++"),
    )
}
RUNTIMES = {
    "litert": Runtime(
        distribution="ai-edge-litert",
        package="ai_edge_litert",
        source=_HERE / "native_litert.cpp",
        libraries=("libLiteRt.so",),
    ),
    "executorch": Runtime(
        distribution="executorch",
        package="executorch",
        source=_HERE / "native_executorch.cpp",
        libraries=tuple(
            f"lib/libexecutorch{part}.so"
            for part in ("", "_threadpool", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack")
        ),
        includes=("include", "include/executorch/runtime/core/portable_type/c10"),
        defines=("C10_USING_CUSTOM_GENERATED_MACROS",),
    ),
}


def machine_of(name: str) -> Machine:
    """Return the architecture that `uname -m` names; raise DeviceError for one without runtimes."""
    known = {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)
    if known not in MACHINES:
        raise DeviceError(
            f"There is no native runner for {name}: the runtimes ship libraries for {' and '.join(MACHINES)} only.",
            hint="On a 32-bit system install Python, numpy and tflite-runtime, or a 64-bit system.",
        )
    return MACHINES[known]


def bundle(runtime: str, machine: str, progress: Progress = no_progress) -> Bundle:
    """Return the runner of a runtime (`litert`, `executorch`) for `uname -m` of a device, compiled once per content.

    Raises DeviceError, MissingPackageError without a compiler, ToolError.
    """
    wanted, target = RUNTIMES[runtime], machine_of(machine)
    compiler = _compiler(target)
    release = _version(wanted, target)
    place = cache_folder() / "native" / _key(wanted, target, compiler, release)
    if not place.is_dir():
        wheel = _package(wanted, target, release, progress)
        progress(f"compiling the {runtime} runner for {target.name}", None)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".made-") as temporary:
            made = Path(temporary) / "bundle"
            made.mkdir()
            _compile(wanted, compiler, wheel, made / "runner")
            _gather(wanted, target, compiler, wheel, made)
            # Another process may have made the same one meanwhile: then that one serves.
            with contextlib.suppress(OSError):
                made.rename(place)
    return Bundle(
        loader=place / target.loader,
        libraries=tuple(place / name for name in (*_C_LIBRARIES, *(Path(p).name for p in wanted.libraries))),
        program=place / "runner",
        distribution=wanted.distribution,
        version=release,
    )


def _compiler(target: Machine) -> str:
    names = (target.compiler, "g++") if target.name == platform.machine() else (target.compiler,)
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise MissingPackageError(
            f"{target.compiler} is not installed; it makes the runner for devices without Python.",
            hint=f"`apt-get install {target.package}` (Debian, Ubuntu).",
        )
    return found


def _version(wanted: Runtime, target: Machine) -> str:
    """Return the version of this host's package, which built the programs."""
    try:
        return version(wanted.distribution).split("+")[0]
    except PackageNotFoundError:
        raise MissingPackageError(
            f"{wanted.distribution} is not installed here; the runner for {target.name} is made for the same version.",
            hint=f"pip install {wanted.distribution}",
        ) from None


def _key(wanted: Runtime, target: Machine, compiler: str, release: str) -> str:
    told = _told_by(compiler, "-dumpfullversion", "-dumpmachine")
    parts = [*(h.read_bytes() for h in _HEADERS), wanted.source.read_bytes(), repr(wanted).encode(), told.encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"{wanted.package}-{release}-{target.name}-{digest}"


@functools.cache
def _told_by(compiler: str, *options: str) -> str:
    """Return what a compiler says of itself, one option after another."""
    said = []
    for option in options:
        done = subprocess.run([compiler, option], capture_output=True, text=True, check=False, timeout=60)
        said.append(done.stdout.strip())
    return "\n".join(said)


def _package(wanted: Runtime, target: Machine, release: str, progress: Progress) -> Path:
    """Return the runtime's package for an architecture: the one installed here, the emulated root's, or fetched."""
    spec = importlib.util.find_spec(wanted.package)
    if target.name == platform.machine() and spec and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    for place in sysroot.folder().glob(f"usr/local/lib/python3*/dist-packages/{wanted.package}"):
        beside = place.parent / f"{wanted.package}-{release}.dist-info"
        if target.name == "aarch64" and beside.is_dir():
            return place
    return _fetched(wanted, target, release, progress)


def _fetched(wanted: Runtime, target: Machine, release: str, progress: Progress) -> Path:
    place = cache_folder() / "native" / "packages" / f"{wanted.package}-{release}-{target.name}"
    if not place.is_dir():
        progress(f"fetching the {target.name} wheel of {wanted.distribution} {release} from pip's index", None)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetched-") as temporary:
            wheel = _download(wanted, target, release, Path(temporary))
            made = Path(temporary) / "package"
            _unpack(wanted, wheel, made)
            with contextlib.suppress(OSError):
                made.rename(place)
    return place / wanted.package


def _download(wanted: Runtime, target: Machine, release: str, place: Path) -> Path:
    levels = [f"manylinux_2_{minor}_{target.name}" for minor in range(36, 16, -1)] + [f"manylinux2014_{target.name}"]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(place)]
    command += [*(f"--platform={level}" for level in levels), "--python-version", python, "--no-input"]
    command += ["--disable-pip-version-check", "-q", f"{wanted.distribution}=={release}"]
    _run(command, f"Fetching {wanted.distribution} {release} for {target.name}", _FETCH_TIMEOUT_S)
    return next(place.glob("*.whl"))


def _unpack(wanted: Runtime, wheel: Path, place: Path) -> None:
    """Unpack libraries and headers; names that point outside are left to zipfile, which strips them."""
    headers = tuple(f"{wanted.package}/{folder}/" for folder in wanted.includes)
    libraries = {f"{wanted.package}/{name}" for name in wanted.libraries}
    with zipfile.ZipFile(wheel) as packed:
        names = [n for n in packed.namelist() if n in libraries or (headers and n.startswith(headers))]
        if missing := libraries - set(names):
            raise ToolError(f"{wheel.name} does not have {', '.join(sorted(missing))}.")
        packed.extractall(place, names)


def _compile(wanted: Runtime, compiler: str, package: Path, output: Path) -> None:
    command = [compiler, "-O2", "-std=c++20", *(f"-D{name}" for name in wanted.defines)]
    command += [f"-isystem{package / folder}" for folder in wanted.includes]
    command += ["-o", str(output), str(wanted.source), "-Wl,--no-as-needed"]
    # Kernels and backends register themselves when their library is loaded: nothing refers to them.
    command += [*(str(package / name) for name in wanted.libraries), "-Wl,--allow-shlib-undefined"]
    _run(command, f"Compiling the runner against {wanted.distribution}", _COMPILE_TIMEOUT_S)


def _gather(wanted: Runtime, target: Machine, compiler: str, package: Path, place: Path) -> None:
    """Copy the loader, the C library and the runtime beside the runner."""
    for name in (target.loader, *_C_LIBRARIES):
        found = Path(_told_by(compiler, f"-print-file-name={name}"))
        if not found.is_absolute() or not found.exists():
            raise ToolError(f"{compiler} has no {name}.", hint=f"`apt-get install {target.package} libc6-dev`.")
        shutil.copyfile(found, place / name)
    for library in wanted.libraries:
        shutil.copyfile(package / library, place / Path(library).name)
    for name in (target.loader, "runner"):
        (place / name).chmod(0o755)


def _run(command: Sequence[str], what: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, errors="replace")
    except subprocess.TimeoutExpired:
        raise ToolError(f"{what} took longer than {timeout_s:g} s.") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)] or lines[-3:]
        raise ToolError(f"{what} failed: {' '.join(said)[:600]}", hint="Is the index reachable, the compiler whole?")
