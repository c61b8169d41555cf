"""Runs that a program must repeat beyond its golden vectors: at several sizes of open dimensions, and of each method.

They stand beside the program as `vectors.npz`, with keys `METHOD/NUMBER/in/NAME` and `METHOD/NUMBER/out/NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ArtifactError, EdgekitError
from edge.findings import Finding
from edge.signature import Signature
from edge.targets.executorch import carrier, program
from edge.targets.executorch.session import ExecuTorchSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

FILE = "vectors.npz"
_SEED = 20260103
# A program repeats the graph that it was lowered from: in float32 to rounding, quantized to a step here and there.
MIN_SNR_DB = {"float32": 80.0, "float16": 40.0}
_QUANTIZED_SNR_DB = 20.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its method, the inputs that it was given, what the program made of them, and how near that comes.

    `snr_db` is that of the worst output, against the graph that the program was lowered from.
    """

    method: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    snr_db: float

    def record(self) -> dict[str, Any]:
        """Return the run without its values as JSON-compatible data."""
        return {
            "method": self.method,
            "inputs": {n: list(v.shape) for n, v in self.inputs.items()},
            "outputs": {n: list(v.shape) for n, v in self.outputs.items()},
            "snr_db": self.snr_db,
        }


def sizes(exported: Any, signature: Signature) -> list[dict[str, tuple[int, ...]]]:
    """Return shapes by input name with all open dimensions at their smallest, in the middle and at their largest."""
    values = carrier.user_inputs(exported)
    limits = carrier.limits(exported)
    if not limits:
        return []
    picks = [{s: pick(low, high) for s, (low, high) in limits.items()} for pick in (_low, _middle, _high)]
    found = [
        {
            t.name: tuple(carrier.size_at(d, pick) for d in v.shape)
            for t, v in zip(signature.inputs, values, strict=True)
        }
        for pick in picks
    ]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def example_sizes(exported: Any, signature: Signature) -> dict[str, tuple[int, ...]]:
    """Return one shape by input name: the fixed one, or the middle of the open dimensions."""
    found = sizes(exported, signature)
    return found[len(found) // 2] if found else {t.name: t.shape for t in signature.inputs}


def _low(low: int, _: int) -> int:
    return low


def _middle(low: int, high: int) -> int:
    return (low + high) // 2


def _high(_: int, high: int) -> int:
    return high


def drawn(signature: Signature, shapes: Mapping[str, Sequence[int]], number: int) -> dict[str, Array]:
    """Return inputs of these shapes, the same at each call: standard normal floats, small integers."""
    random = np.random.default_rng((_SEED, number))
    made: dict[str, Array] = {}
    for t in signature.inputs:
        if t.dtype.startswith("float"):
            made[t.name] = random.standard_normal(shapes[t.name]).astype(t.dtype)
        elif t.quantization is not None:
            made[t.name] = random.integers(-64, 64, shapes[t.name]).astype(t.dtype)
        else:
            made[t.name] = random.integers(0, 2, shapes[t.name]).astype(t.dtype)
    return made


def observe(path: Path, graphs: Mapping[str, tuple[Any, Signature]]) -> tuple[list[Run], list[Finding]]:
    """Run each method of a program, and the graph that it was lowered from, at each of its sizes.

    `graphs` has the ExportedProgram and the signature of each method. `forward` of fixed sizes is left to the golden
    vectors. A size that the program refuses, or at which it computes something else, is a finding.
    """
    runs: list[Run] = []
    findings: list[Finding] = []
    for method, (exported, signature) in graphs.items():
        opened = None
        for inputs in _inputs(method, exported, signature):
            try:
                reference = carrier.ExportedSession(exported, signature).run(inputs)
            except EdgekitError:
                continue  # the module itself has no such size: a window that is larger, a level too many
            try:
                opened = opened or ExecuTorchSession(path.read_bytes(), signature, method=method)
                found = opened.run(inputs)
            except EdgekitError as error:
                findings.append(_refused(method, inputs, error))
                continue
            runs.append(Run(method=method, inputs=inputs, outputs=found, snr_db=_snr(signature, reference, found)))
    return runs, findings


def _inputs(method: str, exported: Any, signature: Signature) -> Iterator[dict[str, Array]]:
    shapes = sizes(exported, signature)
    if not shapes and method != "forward":
        shapes = [{t.name: t.shape for t in signature.inputs}]
    for number, one in enumerate(shapes):
        yield drawn(signature, one, number)


def _snr(signature: Signature, reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    worst = 200.0
    for t in signature.outputs:
        if reference[t.name].shape != found[t.name].shape:
            return -200.0
        wanted, got = (np.asarray(v[t.name], np.float64) for v in (reference, found))
        if t.quantization is not None:
            wanted, got = wanted - t.quantization.zero_point[0], got - t.quantization.zero_point[0]
        noise, signal = float(np.square(wanted - got).sum()), float(np.square(wanted).sum())
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-30) / noise)))
    return round(worst, 1)


def _shapes(inputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{n}{list(v.shape)}" for n, v in inputs.items())


def _refused(method: str, inputs: Mapping[str, Array], error: EdgekitError) -> Finding:
    return Finding(
        rule="SIZE_REFUSED",
        severity="error",
        op=method,
        message=f"The program does not run with {_shapes(inputs)}, which its source takes: {error.message}",
        fix="Declare narrower bounds of the open dimension (--shape NAME=...).",
    )


def differing(runs: Sequence[Run], scheme: str) -> list[Finding]:
    """Return a finding per run that is not near enough to the graph that the program was lowered from."""
    least = MIN_SNR_DB.get(scheme, _QUANTIZED_SNR_DB)
    return [
        Finding(
            rule="RUN_DIFFERS",
            severity="error",
            op=run.method,
            message=f"With {_shapes(run.inputs)} the program's {run.method} is {run.snr_db:.1f} dB from the graph that "
            f"it was lowered from; at least {least:g} dB are expected.",
            fix="Declare fixed sizes, or report the model.",
        )
        for run in runs
        if run.snr_db < (MIN_SNR_DB["float32"] if run.method != "forward" else least)
    ]


def write(runs: Sequence[Run], path: Path) -> None:
    """Write the runs as arrays."""
    arrays = {
        f"{run.method}/{number}/{side}/{name}": value
        for number, run in enumerate(runs)
        for side, values in (("in", run.inputs), ("out", run.outputs))
        for name, value in values.items()
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> list[tuple[str, dict[str, Array], dict[str, Array]]]:
    """Return method, inputs and outputs of each run; raise ArtifactError for a damaged file."""
    found: dict[tuple[str, str], tuple[dict[str, Array], dict[str, Array]]] = {}
    try:
        with np.load(path, allow_pickle=False) as data:
            for key in data.files:
                method, number, side, name = key.split("/", 3)
                found.setdefault((method, number), ({}, {}))[side == "out"][name] = data[key]
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is no file of runs: {error}.", hint="Build the artifact again.") from error
    return [(method, inputs, outputs) for (method, _), (inputs, outputs) in found.items()]


def repeat(path: Path) -> list[Finding]:
    """Run what stands in `vectors.npz` beside a program again; return an error finding for each run that differs."""
    beside = path.with_name(FILE)
    if not beside.is_file():
        return []
    view, data = program.read(path), path.read_bytes()
    made: list[Finding] = []
    for method, inputs, wanted in read(beside):
        signature = view.of(method)
        if signature is None:
            raise ArtifactError(f"{path} has no method {method!r} of tensors.", hint="Build the artifact again.")
        found = ExecuTorchSession(data, signature, method=method).run(inputs)
        if any(not _near(found[n], v) for n, v in wanted.items()):
            made.append(
                Finding(
                    rule="GOLDEN_MISMATCH",
                    severity="error",
                    op=method,
                    message=f"The program does not repeat {method} with {_shapes(inputs)}.",
                    fix="This runtime computes something else than at build time: compare versions with the manifest.",
                )
            )
    return made


def _near(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind != "f":
        return bool((np.abs(found.astype(np.int64) - wanted.astype(np.int64)) <= 1).all())
    size = float(np.abs(wanted).max(initial=1e-6))
    return bool(np.allclose(found, wanted, rtol=0, atol=1e-3 * size, equal_nan=True))
