"""Requests to the stages that search and diagnose, for a float program and data that is already written beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge import codec
from edge.calibration import recipe as recipes
from edge.calibration.selection import Selection
from edge.targets import registry
from edge.targets.litert import contract, flatbuffer


def request(folder: Path, program: bytes, target: str, **changes: Any) -> dict[str, Any]:
    """Write the program to `folder`, and return a request for int8 calibrated by 100 samples of `data.npz` there."""
    (folder / "float.tflite").write_bytes(program)
    found = registry.target(target)
    selection = Selection(location=str(folder / "data.npz"), role="calibration", indices=tuple(range(100)))
    return {
        "carrier": str(folder / "float.tflite"),
        "signature": codec.to_json(contract.signature_of(flatbuffer.load(program))),
        "recipe": codec.to_json(recipes.named("int8", io=found.io)),
        "target": codec.to_json(found),
        "runtime": found.runtimes[0],
        "calibration": codec.to_json(selection),
        "evaluation": None,
        "metric": None,
        "max_drop": 0.08,
        "kernels": "builtin",
        "workdir": str(folder / "work"),
        "cache": None,
        **changes,
    }
