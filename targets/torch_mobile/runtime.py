"""The PyTorch Mobile runtime (legacy): `.ptl` programs for the lite interpreter."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, ConversionError, QuantizationError
from edge.findings import Finding
from edge.isolate import Progress
from edge.targets.base import Carrier, Inspection, Model, Program, Target
from edge.targets.torch_common import (
    Exported,
    ExportedSession,
    as_tensors,
    example_shapes,
    load_exported,
    open_carrier,
    quiet,
    sample_inputs,
)
from edge.targets.torch_mobile import inspect, lower, quantize, scripted, session
from edge.targets.torch_mobile.quantize import Quantized
from edge.targets.torch_mobile.rebuild import rebuild
from edge.targets.torch_mobile.scripted import ScriptedSession
from edge.targets.torch_mobile.session import LiteInterpreterSession

if TYPE_CHECKING:
    from edge.calibration.data import Dataset
    from edge.signature import Signature

_CHECKS = 8
_FILE = "model.ptl"
_MIGRATE = "edgekit build SOURCE --target android --runtime executorch"


class TorchMobile:
    """`edge.targets.base.Runtime` for PyTorch Mobile: exported program in, lite interpreter program out."""

    name = "torch_mobile"
    carrier: Carrier = "exported"
    suffix = ".ptl"
    recipes: tuple[str, ...] = ("float32", "dynamic", "int8")
    kernel_sets: tuple[str, ...] = session.KERNEL_SETS

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Write the program below `workdir`; its ends are float32 or the source's integers.

        `torch.cond` and `while_loop` become scripted branches; other control flow cannot be in an exported program.
        Raises QuantizationError where the recipe cannot be applied, ConversionError where a step changes the results.
        """
        self._refuse(model, recipe, target)
        if model.carrier == "scripted":
            return _scripted(model, recipe, workdir, progress)
        exported = load_exported(model.path, model.signature)
        inputs = sample_inputs(exported, samples, _CHECKS)
        made = _quantized(exported, recipe, samples, progress)
        progress("tracing", None)
        traced = lower.trace(made.module, inputs)
        final, absent = lower.optimized(traced)
        path = workdir / _FILE
        signature = _static(exported)
        lower.save(final, signature, path)
        progress("verifying in the lite interpreter", None)
        opened = session.open_program(path, kernels=quantize.ENGINE, threads=1)
        reload_error = lower.verify(opened.run_tensors, made.module, inputs)
        error = _source_error(exported, opened, inputs, exact=recipe.scheme == "float32")
        findings = (_legacy(), *made.findings, *([absent] if absent else []), *_baked(exported))
        details = {
            **made.details,
            "operators": inspect.required_operators(path),
            "bytecode_version": inspect.bytecode_version(path),
            "verified_inputs": len(inputs),
            "reload_error": reload_error,
            "source_error": error,
        }
        return Program(
            path=path,
            signature=signature,
            recipe=recipe,
            quantizer="none" if recipe.scheme == "float32" else "torch.ao",
            tools={"torch": importlib.metadata.version("torch")},
            findings=findings,
            details=details,
        )

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:  # noqa: ARG002
        """Read the program's operators, the list for selective builds, and its bytecode version."""
        return inspect.inspect_program(path)

    def open(self, path: Path, *, kernels: str, threads: int) -> LiteInterpreterSession:
        """Load the program. Raises SourceError for a damaged file, UsageError for an unknown kernel set."""
        return session.open_program(path, kernels=kernels, threads=threads)

    def open_carrier(self, path: Path) -> ExportedSession | ScriptedSession:
        """Open the float carrier, exported or scripted. Raises SourceError."""
        return ScriptedSession(path) if path.suffix == scripted.SUFFIX else open_carrier(path)

    def _refuse(self, model: Model, recipe: Recipe, target: Target) -> None:
        if model.carrier not in (self.carrier, "scripted"):
            raise QuantizationError(f"PyTorch Mobile builds from the exported carrier, not from {model.carrier}.")
        if recipe.kind not in self.recipes or recipe.corrects:
            raise QuantizationError(
                f"PyTorch Mobile does not make {recipe.name}; accepted: {', '.join(self.recipes)}, "
                "int8 also per-tensor and with an estimator.",
                hint="Use `--runtime executorch`.",
            )
        if recipe.scheme == "int8" and recipe.io != "float32":
            raise QuantizationError(
                f"A PyTorch Mobile program has float32 ends, not {recipe.io}: it quantizes inside.",
                hint="Build with --io float32.",
            )
        if dict(target.options.get("torch_mobile", {})).get("script") and model.carrier != "scripted":
            raise ConfigError(
                "options.torch_mobile.script: an exported program has no Python left to script.",
                hint="Build the PyTorch module from file.py:factory with --script.",
            )


def _scripted(model: Model, recipe: Recipe, workdir: Path, progress: Progress) -> Program:
    """Build from a TorchScript carrier: freeze, optimize, save, and run both on inputs that branch either way."""
    import torch

    scripted.refuse(recipe.name)
    progress("freezing", None)
    carrier = ScriptedSession(model.path)
    inputs = carrier.draws(_CHECKS)
    with quiet(), torch.no_grad():
        frozen, absent = lower.optimized(torch.jit.freeze(carrier.module))
    path = workdir / _FILE
    lower.save(frozen, model.signature, path)
    progress("verifying in the lite interpreter", None)
    opened = session.open_program(path, kernels=quantize.ENGINE, threads=1)
    error = lower.verify(opened.run_tensors, carrier.module, inputs)
    return Program(
        path=path,
        signature=model.signature,
        recipe=recipe,
        quantizer="none",
        tools={"torch": importlib.metadata.version("torch")},
        findings=(_legacy(), *([absent] if absent else [])),
        details={
            "route": "script",
            "operators": inspect.required_operators(path),
            "bytecode_version": inspect.bytecode_version(path),
            "verified_inputs": len(inputs),
            "reload_error": error,
        },
    )


def _quantized(exported: Exported, recipe: Recipe, samples: Dataset | None, progress: Progress) -> Quantized:
    if recipe.scheme == "float32":
        with quiet():
            return Quantized(module=rebuild(exported.program).module)
    if recipe.scheme == "dynamic":
        progress("quantizing", None)
        return quantize.dynamic(rebuild(exported.program, recipe.overrides))

    def calibrate() -> Iterator[list[Any]]:
        for sample in samples or ():
            yield as_tensors(exported.signature, sample.inputs)

    return quantize.static(exported.program, recipe, calibrate, progress)


def _source_error(
    exported: Exported, opened: LiteInterpreterSession, inputs: Sequence[Sequence[Any]], *, exact: bool
) -> float:
    """Return the largest difference from the float source; raise ConversionError where it should be none."""
    module = exported.module()
    worst = 0.0
    for tensors in islice(inputs, _CHECKS):
        worst = max(worst, lower.largest_difference(exported.run(module, tensors), opened.run_tensors(tensors)))
    if worst == float("inf") or (exact and worst > lower.TOLERANCE):
        raise ConversionError(
            f"The program differs from the source by {worst:.3g} of the output on {len(inputs)} inputs.",
            hint="Use `--runtime executorch`, and report the model.",
        )
    return worst


def _static(exported: Exported) -> Signature:
    """Return the signature with the sizes that the trace has."""
    from dataclasses import replace

    shapes = example_shapes(exported)
    inputs = tuple(replace(t, shape=s) for t, s in zip(exported.signature.inputs, shapes, strict=True))
    return exported.signature.with_tensors(inputs, exported.signature.outputs)


def _legacy() -> Finding:
    return Finding(
        rule="LEGACY_RUNTIME",
        severity="warning",
        message="PyTorch Mobile and its lite interpreter are deprecated; ExecuTorch has replaced them.",
        fix=f"Migrate with `{_MIGRATE}`.",
    )


def _baked(exported: Exported) -> tuple[Finding, ...]:
    if not any(-1 in t.shape for t in exported.signature.inputs):
        return ()
    return (
        Finding(
            rule="SHAPES_BAKED",
            severity="warning",
            message="Dynamic sizes of the exported program become those of its example inputs.",
            fix="Use `--runtime executorch` for dynamic sizes, or declare the sizes that are wanted.",
        ),
    )
