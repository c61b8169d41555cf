"""Run a program that edgekit did not build on this host, for golden vectors that other places are compared to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.calibration.affine import to_program
from edge.calibration.data import open_dataset
from edge.isolate import Progress
from edge.signature import Signature, TensorSpec
from edge.stages.checking import write_golden
from edge.targets import registry

Array = NDArray[np.generic]
VECTORS = 16
_SEED = 20260101


def run_here(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write the golden vectors of a program's host run; return its signature.

    Keys of the request: `program`, `runtime`, `kernels`, `golden` (the file to write), `evaluation` (data whose first
    samples are the inputs, or None for random ones). Raises SourceError, DataError.
    """
    progress("running the program on this host", None)
    session = registry.runtime(request["runtime"]).open(Path(request["program"]), kernels=request["kernels"], threads=1)
    inputs = _inputs(session.signature, request["evaluation"])
    none: dict[str, Array] = {}  # there is no float source
    write_golden(Path(request["golden"]), [(fed, session.run(fed), none) for fed in inputs])
    return {"signature": codec.to_json(session.signature)}


def _inputs(signature: Signature, evaluation: str | None) -> Iterator[dict[str, Array]]:
    if evaluation is not None:
        for sample in islice(open_dataset(evaluation, signature, role="evaluation"), VECTORS):
            yield {t.name: to_program(t, sample.inputs[t.name]) for t in signature.inputs}
        return
    random = np.random.default_rng(_SEED)
    for _ in range(VECTORS):
        yield {t.name: _random(t, random) for t in signature.inputs}


def _random(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Return any values of a quantized or float input; of plain integers, which may be indices, 0 and 1."""
    shape, dtype = tuple(max(d, 1) for d in spec.shape), np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if spec.quantization is None:
        return random.integers(0, 2, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
