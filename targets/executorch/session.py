"""Run a `.pte` with ExecuTorch's runtime, or, where this host has not its backends, the last form that runs here."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge.errors import MissingPackageError, SourceError, UsageError
from edge.findings import Finding
from edge.signature import Signature
from edge.targets.executorch import carrier, program
from edge.targets.executorch.carrier import ExportedSession
from edge.targets.executorch.lower import register_quantized_kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# What a program calls is decided when it is built: `xnnpack` runs it as it is, `portable` refuses one with subgraphs
# for a backend, `emulated` runs the exported graph that it was lowered from.
KERNEL_SETS = ("xnnpack", "portable", "emulated")
EMULATED_FILE = "emulated.pt2"


class ExecuTorchSession:
    """An opened method of a program. `run` takes and returns arrays in the program's own dtypes, by signature name."""

    mode: Literal["measured"] = "measured"
    not_run: tuple[str, ...] = ()

    def __init__(
        self,
        data: bytes,
        signature: Signature,
        *,
        method: str = "forward",
        threads: int = 1,
        kernels: str = KERNEL_SETS[0],
    ) -> None:
        self.signature, self.kernels = signature, kernels
        self._program = loaded(data, threads=threads)
        if method not in self._program.method_names:
            raise SourceError(
                f"The program has no method {method!r}.",
                hint=f"It has the methods {', '.join(sorted(self._program.method_names))}.",
            )
        with _stderr() as words:
            try:
                self._method = self._program.load_method(method)
            except (RuntimeError, KeyError) as error:
                raise not_loaded(method, _first(error), words()) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return copies. Raises DataError for a wrong name, shape or dtype, SourceError if it fails."""
        tensors = carrier.as_tensors(self.signature, inputs)
        try:
            results = self._method.execute(tensors)
        except RuntimeError as error:
            raise SourceError(
                f"ExecuTorch failed while running the program: {_first(error)}",
                hint="Sizes beyond the bounds of a dynamic dimension are refused; the log has the runtime's words.",
            ) from error
        return carrier.as_arrays(self.signature, results)


@contextlib.contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Yield a function that returns what this process, its C++ parts included, has written to stderr since; pass it on.

    The runtime gives its reasons there and nowhere else.
    """
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(held.fileno(), 2)

        def written() -> str:
            os.lseek(held.fileno(), 0, os.SEEK_SET)
            return b"".join(iter(lambda: os.read(held.fileno(), 1 << 16), b"")).decode(errors="replace")

        try:
            yield written
        finally:
            os.dup2(before, 2)
            os.close(before)
            sys.stderr.write(written())


def not_loaded(method: str, error: str, said: str) -> SourceError:
    """Return the error for a method that the runtime does not load: `error` is its own, `said` what it wrote before."""
    if found := re.search(r"Failed to create (.+?) node (\d+) with code: xnn_status_(\w+)", said):
        kind, number, status = found.groups()
        why = status.replace("_", " ")
        return SourceError(
            f"ExecuTorch cannot load the method {method!r}: XNNPACK refuses its {kind}, node {number} of the subgraph "
            f"({why}).",
            hint="Build with that kind of operator left float (--keep-float conv2d, --keep-float linear), or with the "
            "recipe dynamic. A program of float32 tells whether quantization is to blame.",
        )
    reason = next((w.strip() for w in reversed(re.findall(r"^\[\w+\.cpp:\d+\] (.*)$", said, re.MULTILINE))), error)
    return SourceError(
        f"ExecuTorch cannot load the method {method!r}: {error} ({reason})",
        hint="`edgekit inspect` lists the backends and operators that the program needs; the runtime has to have them, "
        "and the versions of ExecuTorch have to fit.",
    )


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]


def loaded(data: bytes, *, threads: int = 1, trace: bool = False) -> Any:
    """Return ExecuTorch's program of these bytes. Raises SourceError, MissingPackageError."""
    runtime = host()
    # The runtime has one pool of threads per process.
    runtime._legacy_module._unsafe_reset_threadpool(threads)
    try:
        return runtime.load_program(data, enable_etdump=trace)
    except RuntimeError as error:
        raise SourceError(f"ExecuTorch cannot load the program: {_first(error)}") from error


def host() -> Any:
    """Return ExecuTorch's runtime of this process, the quantized kernels included. Raises MissingPackageError."""
    try:
        from executorch.runtime import Runtime

        register_quantized_kernels()
    except ImportError as error:
        raise MissingPackageError(
            "Running a .pte file needs the package executorch, which cannot be imported.",
            hint="pip install 'edgekit[executorch]'",
        ) from error
    return Runtime.get()


def absent(backends: Sequence[str], operators: Sequence[str]) -> tuple[str, ...]:
    """Return the backends and operators of a program that this host's runtime has not."""
    runtime = host()
    known = set(runtime.operator_registry.operator_names)
    lacking = [b for b in backends if not runtime.backend_registry.is_available(b)]
    return (*lacking, *(o for o in operators if o not in known))


def open_program(path: Path, *, kernels: str, threads: int) -> ExecuTorchSession | ExportedSession:
    """Open a program, or `emulated.pt2` beside it where this host cannot run it.

    Raises SourceError for what is no valid program or has no form that runs here, UsageError for an unknown kernel set.
    """
    if kernels not in KERNEL_SETS:
        raise UsageError(f"The kernel set {kernels!r} is unknown; accepted: {', '.join(KERNEL_SETS)}.")
    view = program.read(path)
    if kernels == "portable" and view.backends:
        raise UsageError(
            f"The program has subgraphs for {', '.join(view.backends)}, which portable kernels cannot run.",
            hint='Build with delegates = ["portable"] in [options.executorch].',
        )
    lacking = absent(view.backends, view.operators)
    if lacking or kernels == "emulated":
        return _emulated(path, lacking or (*view.backends, *view.operators))
    if view.signature is None:
        raise SourceError(f"{path} has inputs or outputs that are no tensors.")
    ran = kernels if view.backends else "portable"
    return ExecuTorchSession(path.read_bytes(), view.signature, method=_method(view), threads=threads, kernels=ran)


def _method(view: program.View) -> str:
    return "forward" if "forward" in view.methods else view.methods[0]


def _emulated(path: Path, lacking: tuple[str, ...]) -> ExportedSession:
    beside = path.with_name(EMULATED_FILE)
    if not beside.is_file():
        raise SourceError(
            f"The program needs {', '.join(lacking)}, which ExecuTorch on this host does not have, and there is no "
            f"{EMULATED_FILE} beside it.",
            hint="Run it on its device, or build it with edgekit, which keeps the last form that runs anywhere.",
        )
    exported, signature = carrier.load(beside)
    return ExportedSession(exported, signature, not_run=lacking)


def not_run_finding(lacking: Sequence[str]) -> Finding:
    """Return the finding for a program that this host checks in an earlier form."""
    return Finding(
        rule="NOT_RUN_HERE",
        severity="warning",
        message=f"{', '.join(lacking)} cannot run here: accuracy is that of the exported graph before lowering.",
        fix="Check the artifact on the device itself; its rounding and its unsupported operators show only there.",
    )
