"""Time per operator of programs whose runtime has to be imported to profile them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.isolate import Progress


def executorch_operators(request: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001
    """Profile a `.pte`; keys of the request: `program`, `inputs` (.npz by name), `runs`, `threads`."""
    from edge.targets.executorch import profile

    with np.load(request["inputs"], allow_pickle=False) as data:
        inputs = {name: data[name] for name in data.files}
    found = profile.profile(Path(request["program"]), inputs, runs=request["runs"], threads=request["threads"])
    return {
        "operators": [{"name": t.name, "place": t.place, "mean_us": 1e3 * t.mean_ms, "runs": t.runs} for t in found]
    }
