"""Load a fresh program and run one sample, before it is accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import isolate
from edge.errors import QuantizationError, StageCrashError
from edge.isolate import Progress
from edge.targets.litert import session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_STAGE = "edge.targets.litert.tryout:stage"
_TIMEOUT_S = 600.0


def run(program: bytes, inputs: Mapping[str, Array] | None, *, isolated: bool) -> None:
    """Load `program` with the builtin kernels and with XNNPACK, and run it once with each on float `inputs`.

    `isolated` does so in a child process: some integer kernels abort the process instead of refusing an operator (int16
    forms of rarely used ones). Raises SourceError, DataError, QuantizationError for an abort.
    """
    if not isolated:
        _run(program, inputs)
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-tryout-") as folder:
        Path(folder, "program.tflite").write_bytes(program)
        np.savez(Path(folder, "inputs.npz"), **{f"input:{k}": np.asarray(v) for k, v in (inputs or {}).items()})  # type: ignore[arg-type]
        try:
            isolate.call(_STAGE, {"folder": folder}, workdir=Path(folder), timeout_s=_TIMEOUT_S)
        except StageCrashError as error:
            words = Path(error.log).read_text(errors="replace").splitlines() if error.log else []
            last = next((line.strip() for line in reversed(words) if line.strip()), error.message)
            raise QuantizationError(f"LiteRT's kernels abort on the quantized program: {last[:300]}") from error


def stage(request: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001
    """Run in the child what `run` was asked."""
    folder = Path(request["folder"])
    with np.load(folder / "inputs.npz", allow_pickle=False) as stored:
        inputs = {name.removeprefix("input:"): stored[name] for name in stored.files}
    _run((folder / "program.tflite").read_bytes(), inputs or None)
    return {}


def _run(program: bytes, inputs: Mapping[str, Array] | None) -> None:
    for kernels in ("xnnpack", "builtin"):
        opened = session.LiteRTSession(program, kernels=kernels, threads=1)
        if inputs is not None:
            session.run_float(opened, inputs)
