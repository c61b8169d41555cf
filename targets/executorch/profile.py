"""Time per operator of a `.pte`, by ExecuTorch's event tracer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import SourceError, ToolError
from edge.targets.executorch import carrier, program, session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# Events that contain others: their times would be counted twice.
_OUTER = ("Method::execute", "Method::init", "Program::load_method", "DELEGATE_CALL", "OPERATOR_CALL")

# What the tracer puts before the name of a portable kernel.
_KERNEL = "native_call_"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One operator: its name as the kernel or the delegate calls it, its mean time over `runs` runs.

    `place` is `portable`, or the id of the backend that ran it.
    """

    name: str
    place: str
    mean_ms: float
    runs: int


def profile(path: Path, inputs: Mapping[str, Array], *, runs: int = 20, threads: int = 1) -> tuple[Timing, ...]:
    """Run a program with the tracer on and return its operators in order.

    Raises SourceError for a program that this host cannot run, ToolError where this ExecuTorch has no tracer.
    """
    view = program.read(path)
    if lacking := session.absent(view.backends, view.operators):
        raise SourceError(f"This host cannot profile the program: it has not {', '.join(lacking)}.")
    if view.signature is None:
        raise SourceError(f"{path} has inputs or outputs that are no tensors.")
    opened = session.loaded(path.read_bytes(), threads=threads, trace=True)
    method = opened.load_method("forward" if "forward" in view.methods else view.methods[0])
    tensors = carrier.as_tensors(view.signature, inputs)
    for _ in range(runs):
        method.execute(tensors)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        dump = Path(folder) / "trace.etdp"
        opened.write_etdump_result_to_file(str(dump), str(Path(folder) / "debug.bin"))
        if not dump.is_file() or dump.stat().st_size == 0:
            raise ToolError("This ExecuTorch was built without its event tracer.", hint="pip install -U executorch")
        return _timings(dump, "/".join(view.backends))


def _timings(dump: Path, backends: str) -> tuple[Timing, ...]:
    from executorch.devtools import Inspector

    inspector: Any = Inspector(etdump_path=str(dump))
    events = [e for block in inspector.event_blocks if block.name == "Execute" for e in block.events]
    return tuple(
        Timing(
            name=str(event.name).removeprefix(_KERNEL),
            place="portable" if event.name.startswith(_KERNEL) else backends,
            mean_ms=float(event.perf_data.avg),
            runs=len(event.perf_data.raw),
        )
        for event in events
        if event.name not in _OUTER and event.perf_data is not None and math.isfinite(event.perf_data.avg)
    )
