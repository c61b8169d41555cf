"""Build: quantize and lower one program, and inspect it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.calibration.recipe import Recipe
from edge.calibration.selection import Selection
from edge.signature import Signature
from edge.targets import registry
from edge.targets.base import Model, Target

if TYPE_CHECKING:
    from edge.isolate import Progress


def build_program(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Quantize and lower one program; return it with its inspection."""
    signature = codec.from_json(Signature, request["signature"])
    target = codec.from_json(Target, request["target"])
    selection = codec.from_json(Selection, request["calibration"]) if request["calibration"] else None
    runtime = registry.runtime(request["runtime"])
    program = runtime.build(
        Model(carrier=request["carrier_kind"], path=Path(request["carrier"]), signature=signature),
        codec.from_json(Recipe, request["recipe"]),
        target,
        selection.open(signature) if selection else None,
        Path(request["workdir"]),
        progress,
    )
    found = runtime.inspect(program.path, target, target.options)
    if program.recipe.overrides:
        # Who quantized tells what has no integer form from what the recipe keeps float; the file alone does not.
        found = replace(found, findings=tuple(f for f in found.findings if f.rule != "OPS_LEFT_FLOAT"))
    return {"program": codec.to_json(program), "inspection": codec.to_json(found)}


def compile_program(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Compile a built int8 program for the Edge TPU."""
    from edge.targets.edgetpu import finish

    progress("compiling for the Edge TPU", None)
    options = finish.options_from(request["options"])
    done = finish.compile_program(Path(request["path"]), options, Path(request["workdir"]))
    return {
        "files": [str(f) for f in done.files],
        "findings": [codec.to_json(f) for f in done.findings],
        "details": dict(done.details),
    }
