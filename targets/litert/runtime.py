"""The LiteRT runtime: quantize, inspect and run `.tflite` programs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration import recipe as recipes
from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.isolate import Progress
from edge.targets.base import Carrier, Inspection, Model, Program, Target
from edge.targets.litert import aeq, contract, flatbuffer, inspect, learned, prepare, session, work
from edge.targets.litert import quantize as quantizing
from edge.targets.litert.session import LiteRTSession

if TYPE_CHECKING:
    from edge.calibration.data import Dataset

_THREADS = 2
_FILE = "model.tflite"


class LiteRT:
    """`edge.targets.base.Runtime` for LiteRT (TensorFlow Lite): float flatbuffer in, quantized flatbuffer out."""

    name = "litert"
    carrier: Carrier = "litert"
    suffix = ".tflite"
    recipes: tuple[str, ...] = recipes.NAMES
    kernel_sets: tuple[str, ...] = session.KERNEL_SETS

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Write the program below `workdir`.

        `target.options["full_integer"]` makes an operator left float an error. Raises QuantizationError where the
        recipe cannot be applied, DataError for calibration data that cannot be used.
        """
        if model.carrier != self.carrier:
            raise QuantizationError(f"LiteRT builds from the litert carrier, not from {model.carrier}.")
        source = flatbuffer.load(model.path)
        prepare.canonical(source, model.signature)
        path = workdir / _FILE
        if recipe.scheme == "float32":
            found = learned.findings(learned.take(source), (), None, recipe)
            path.write_bytes(flatbuffer.dump(source))
            return _program(path, model, recipe, "none", {}, found)
        full = bool(target.options.get("full_integer"))
        made = quantizing.quantize(source, recipe, samples, full_integer=full, threads=_THREADS, progress=progress)
        path.write_bytes(made.program)
        return _program(path, model, recipe, made.quantizer, made.details, made.findings)

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:  # noqa: ARG002
        """Read the program's operators and memory; every operator's place is the CPU.

        For a target with a roofline the details hold `latency_ms` (predicted), or `latency_note` where there is none.
        """
        found = inspect.inspect_program(path)
        return replace(found, details={**found.details, **work.predicted_latency(path, target)})

    def open(self, path: Path, *, kernels: str, threads: int) -> LiteRTSession:
        """Load the program. Raises SourceError for a damaged file, UsageError for an unknown kernel set."""
        return session.open_program(path, kernels=kernels, threads=threads)

    def open_carrier(self, path: Path) -> LiteRTSession:
        """Load the float carrier with XNNPACK's kernels."""
        return session.open_program(path, kernels="xnnpack", threads=1)


def _program(
    path: Path, model: Model, recipe: Recipe, quantizer: str, details: Mapping[str, Any], findings: tuple[Any, ...] = ()
) -> Program:
    built = flatbuffer.load(path)
    packages = ("ai-edge-litert", aeq.NAME) if quantizer == aeq.NAME else ("ai-edge-litert",)
    return Program(
        path=path,
        signature=contract.signature_of(built, model.signature),
        recipe=recipe,
        quantizer=quantizer,
        tools={name: importlib.metadata.version(name) for name in packages},
        findings=findings,
        details=details,
    )
