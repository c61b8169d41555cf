"""Drive Google's Edge TPU compiler where it is there: locally, in a container, or on another host, all as one command.

The command comes from EDGEKIT_EDGETPU_COMPILER (split as a shell would, never run by one), else from `edgetpu_compiler`
on PATH. It runs in a folder of its own that holds the model, with file names without folders, so a wrapper only has to
hand over the current folder: `docker run --rm -v .:/w -w /w IMAGE edgetpu_compiler` is one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import ConfigError, MissingPackageError, SourceError, StageTimeoutError, ToolError
from edge.targets.edgetpu import compiler_log
from edge.targets.edgetpu.compiler_log import CompilerLog
from edge.targets.litert import flatbuffer

VARIABLE = "EDGEKIT_EDGETPU_COMPILER"
PROGRAM = "edgetpu_compiler"
HOW_TO_GET = (
    "The compiler is Google's, for x86-64 Linux only: the Debian package edgetpu-compiler of Google's Coral package "
    "repository (see the page Edge TPU Compiler of the Coral documentation). It also runs in a container or over ssh "
    f"on an x86-64 host: set {VARIABLE} to that command line. Without it, edgekit predicts what it would do."
)
# The compiler's own limit counts its compilation only; loading and writing come on top.
_GRACE_S = 30.0
_STOP_S = 2.0
_MAX_OUTPUT_BYTES = 16 * 2**20
_INTERNAL = "EDGETPU_INTERNAL_ERROR"
_FIRST_WITH_SEARCH = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """The compiler's options. `timeout_s` limits one compilation; None leaves a choice to the compiler."""

    min_runtime_version: int | None = None
    num_segments: int = 1
    search_delegate: bool = False
    delegate_search_step: int = 1
    timeout_s: int = 180
    multiple_subgraphs: bool = False
    intermediate_tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.min_runtime_version is not None and not 10 <= self.min_runtime_version <= 14:
            problems.append(f"min_runtime_version is {self.min_runtime_version}; accepted: 10 to 14")
        if self.num_segments < 1 or self.delegate_search_step < 1 or self.timeout_s < 1:
            problems.append("num_segments, delegate_search_step and timeout_s must be 1 or more")
        if any("," in name or not name for name in self.intermediate_tensors):
            problems.append("a name of an intermediate tensor is empty or has a comma, which the compiler cannot take")
        if self.num_segments > 1 and self.intermediate_tensors:
            problems.append("num_segments and intermediate_tensors exclude each other")
        if problems:
            raise ConfigError("Edge TPU compiler options: " + "; ".join(problems) + ".")

    def arguments(self, major: int | None) -> list[str]:
        """Return the command line's options for a compiler of that major version (None: unknown, taken as the last)."""
        recent = major is None or major >= _FIRST_WITH_SEARCH
        if self.search_delegate and not recent:
            raise ConfigError(
                f"The Edge TPU compiler is version {major}; --search-delegate needs {_FIRST_WITH_SEARCH}.",
                hint="Update the compiler, or name the cut with intermediate tensors.",
            )
        found = ["--show_operations", "--out_dir", "."]
        if self.min_runtime_version is not None:
            found += ["--min_runtime_version", str(self.min_runtime_version)]
        if self.num_segments > 1:
            found += ["--num_segments", str(self.num_segments)]
        if self.intermediate_tensors:
            found += ["--intermediate_tensors", ",".join(self.intermediate_tensors)]
        if self.search_delegate:
            found += ["--search_delegate", "--delegate_search_step", str(self.delegate_search_step)]
        if recent:
            found += ["--timeout_sec", str(self.timeout_s)]
        if self.multiple_subgraphs:
            found.append("--enable_multiple_subgraphs")
        return found


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A compiler that answered: its command line and its version such as `16.0.384591198`."""

    command: tuple[str, ...]
    version: str

    @property
    def major(self) -> int:
        """The version's first number."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """One run of the compiler: what it printed and wrote. `outputs` are compiled models, in order of segments."""

    log: CompilerLog
    text: str
    exit_code: int
    outputs: tuple[Path, ...] = ()

    @property
    def internal_error(self) -> bool:
        """Whether the compiler gave up without a reason."""
        return not self.log.succeeded and any(e.rule == _INTERNAL for e in self.log.errors)


def find_command(environment: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """Return the compiler's command line, None where there is none; raise ConfigError for one that cannot be read."""
    environment = os.environ if environment is None else environment
    if text := environment.get(VARIABLE, "").strip():
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"{VARIABLE} is {text!r}, which is no command line: {error}.") from error
        program = shutil.which(words[0], path=environment.get("PATH")) if words else None
        if program is None:
            raise ConfigError(
                f"{VARIABLE} is {text!r}, and {words[0] if words else text!r} is no program on this machine.",
                hint="Give a command line whose first word is a program on PATH or a full path.",
            )
        return (program, *words[1:])
    found = shutil.which(PROGRAM, path=environment.get("PATH"))
    return (found,) if found else None


def find(environment: Mapping[str, str] | None = None) -> Compiler:
    """Return the compiler with its version.

    Raises MissingPackageError where there is none, ToolError where the command is not the Edge TPU compiler.
    """
    command = find_command(environment)
    if command is None:
        raise MissingPackageError("The Edge TPU compiler is not on this machine.", hint=HOW_TO_GET)
    with tempfile.TemporaryDirectory(prefix="edgekit-edgetpu-") as folder:
        code, text = _run([*command, "--version"], Path(folder), _GRACE_S)
    version = compiler_log.parse(text).version
    if version is None:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise ToolError(
            f"{shlex.join(command)} --version does not answer as the Edge TPU compiler: "
            f"exit code {code}, {last[:200]!r}.",
            hint=HOW_TO_GET,
        )
    return Compiler(command=command, version=version)


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path, output: int) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"{command[0]} cannot be started: {error.strerror}.", hint=HOW_TO_GET) from error
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the compiler and the children it works in: TERM to its group, then KILL."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
    # The leader may be gone while its compilation child goes on.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _run(command: Sequence[str], folder: Path, timeout_s: float) -> tuple[int, str]:
    """Run a command in `folder` and return its exit code and what it printed; raise StageTimeoutError."""
    log = folder / "edgekit-compiler-output.txt"
    with log.open("wb") as output, _process(command, folder, output.fileno()) as process:
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StageTimeoutError(
                f"The Edge TPU compiler took longer than {timeout_s:g} s and was stopped.",
                hint="Give it more time with --compiler-timeout; a model that it never finishes can be cut with "
                "intermediate tensors.",
            ) from None
    with log.open("rb") as text:
        printed = text.read(_MAX_OUTPUT_BYTES).decode(errors="replace")
    return code, printed


def check_names(model: Path, tensors: Sequence[str]) -> None:
    """Raise ConfigError where an intermediate tensor is not one that the model computes."""
    graph = flatbuffer.graph(flatbuffer.load(model))
    known = {graph.tensors[t].name for op in graph.ops for t in op.outputs}
    if unknown := [name for name in tensors if name not in known]:
        raise ConfigError(
            f"{model.name} computes no tensor {', '.join(map(repr, unknown))}.",
            hint="Names are those of `edgekit inspect MODEL.tflite`.",
        )


def run(compiler: Compiler, models: Sequence[Path], out_dir: Path, options: Options) -> Compilation:
    """Run the compiler once on models that share the chip's cache, first come first served, and collect what it wrote.

    A failure that the compiler reports is a Compilation that did not succeed. Raises StageTimeoutError, ToolError,
    SourceError for files of the same name.
    """
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise SourceError(f"The models to compile together have the same file name: {', '.join(names)}.")
    with tempfile.TemporaryDirectory(prefix="edgekit-edgetpu-") as temporary:
        folder = Path(temporary)
        for model in models:
            shutil.copy2(model, folder)
        # "./": a file name that begins with a dash is no option.
        command = [*compiler.command, *options.arguments(compiler.major), *(f"./{name}" for name in names)]
        code, text = _run(command, folder, options.timeout_s + _GRACE_S)
        log = compiler_log.parse(text)
        written = _outputs(folder, names, options.num_segments) if log.succeeded else []
        if log.succeeded and not written:
            raise ToolError(
                f"The Edge TPU compiler reported success and wrote no model beside {', '.join(names)}.",
                hint=f"A wrapper in {VARIABLE} must bring *_edgetpu.tflite back into the folder it was started in.",
            )
        return Compilation(
            log=_with_tables(log, folder), text=text, exit_code=code, outputs=tuple(_collect(written, out_dir))
        )


def _outputs(folder: Path, names: Sequence[str], segments: int) -> list[Path]:
    stems = [Path(name).stem for name in names]
    if segments > 1:
        files = [folder / f"{stem}_segment_{i}_of_{segments}_edgetpu.tflite" for stem in stems for i in range(segments)]
    else:
        files = [folder / f"{stem}_edgetpu.tflite" for stem in stems]
    return [file for file in files if file.is_file()]


def _collect(files: Sequence[Path], out_dir: Path) -> Iterator[Path]:
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in files:
        yield Path(shutil.copy2(file, out_dir))


def _with_tables(log: CompilerLog, folder: Path) -> CompilerLog:
    """Take a model's table from its `.log` file where standard output has none."""
    models = []
    for model in log.models:
        file = folder / Path(model.operation_log or "").name
        if not model.table and model.operation_log and file.is_file():
            said = compiler_log.parse(file.read_text(encoding="utf-8", errors="replace")).models
            models.append(replace(model, table=said[0].table if said else ()))
        else:
            models.append(model)
    return replace(log, models=tuple(models))


def failure(compilation: Compilation) -> ToolError:
    """Return the error that tells the user why a compilation did not succeed."""
    errors = compilation.log.errors
    if errors:
        return ToolError(f"The Edge TPU compiler failed: {errors[0].line} {errors[0].reason}", hint=errors[0].fix)
    last = next((line for line in reversed(compilation.text.splitlines()) if line.strip()), "it printed nothing")
    return ToolError(f"The Edge TPU compiler ended with exit code {compilation.exit_code}: {last.strip()[:300]}")
