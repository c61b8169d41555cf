"""The Edge TPU runtime: LiteRT's int8 program, normalised for the frozen compiler, with its placement predicted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.affine import to_program
from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.findings import Finding
from edge.isolate import Progress
from edge.targets.base import Carrier, Inspection, Model, Operator, Program, Session, Target
from edge.targets.edgetpu import compiler, dense, devices, finish, normalize, package
from edge.targets.edgetpu.predict import Prediction, predict_program
from edge.targets.litert import contract, flatbuffer
from edge.targets.litert import inspect as litert_inspect
from edge.targets.litert.runtime import LiteRT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.calibration.data import Dataset

    Array = NDArray[np.generic]

ON_CHIP = "edgetpu"
# Inputs on which a normalised program must be bit-identical to what it was made of.
_IDENTITY_SAMPLES = 8


class EdgeTPU:
    """`edge.targets.base.Runtime` for the Coral Edge TPU: stands on LiteRT, adds dialect and prediction."""

    name = "edgetpu"
    carrier: Carrier = "litert"
    suffix = ".tflite"
    recipes: tuple[str, ...] = ("int8",)
    kernel_sets: tuple[str, ...] = (*LiteRT.kernel_sets, ON_CHIP)

    def __init__(self) -> None:
        self._litert = LiteRT()

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Quantize to int8 and normalise; refuse what is not bit-identical afterwards. Raises QuantizationError."""
        if recipe.scheme != "int8" or samples is None:
            raise QuantizationError(f"The Edge TPU runs int8 programs only, not {recipe.name}.")
        per_tensor = tuple(target.options.get("per_tensor", ()))
        recipe = replace(recipe, per_tensor_operators=per_tensor)
        if target.options.get("dense_as_convolutions"):
            model = replace(model, path=dense.rewritten(model.path, model.signature, workdir))
        program = self._litert.build(model, recipe, target, samples, workdir, progress)
        program = normalised(program, samples, progress)
        if compiler.find_command() is None:
            return replace(program, findings=(*program.findings, finish.NOT_COMPILED))
        progress("compiling for the Edge TPU", None)
        done = finish.compile_program(program.path, finish.options_from(target.options), workdir)
        return replace(
            program,
            extra_files=done.files,
            findings=(*program.findings, *done.findings),
            details={**program.details, **done.details},
        )

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:
        """Read a compiled model's package, or predict what the compiler will make of an int8 program."""
        base = litert_inspect.inspect_program(path)
        loaded = flatbuffer.load(path)
        if package.is_compiled(loaded):
            return _compiled(base, path)
        hardware = target.hardware if target else {}
        prediction = predict_program(
            loaded,
            name=path.name,
            multiple_subgraphs=bool(options.get("multiple_subgraphs", False)),
            min_runtime_version=int(options.get("min_runtime_version", 14)),
            hosts=_hosts(hardware),
            available_bytes=options.get("available_bytes"),
        )
        return _predicted(base, prediction)

    def open(self, path: Path, *, kernels: str, threads: int) -> Session:
        """Load the int8 program with CPU kernels, or a compiled one on a Coral: `edgetpu`, `edgetpu:usb:0`."""
        if kernels.startswith(ON_CHIP):
            return DeviceSession(path, kernels.partition(":")[2] or None)
        return self._litert.open(path, kernels=kernels, threads=threads)

    def open_carrier(self, path: Path) -> Session:
        """Load the float carrier."""
        return self._litert.open_carrier(path)


class DeviceSession:
    """A compiled program on an attached Coral, by signature names."""

    def __init__(self, path: Path, device: str | None) -> None:
        loaded = flatbuffer.load(path)
        self.signature = contract.signature_of(loaded)
        names, graph = contract.contract_of(loaded), flatbuffer.graph(loaded)
        self._inputs = {name: graph.tensors[t].name for name, t in names.inputs.items()}
        self._outputs = {name: graph.tensors[t].name for name, t in names.outputs.items()}
        self.device = devices.open_edgetpu(path, device)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DeviceError."""
        found = self.device.run({self._inputs[name]: value for name, value in inputs.items()})
        return {name: found[tensor] for name, tensor in self._outputs.items()}


def _hosts(hardware: Mapping[str, Any]) -> dict[str, str]:
    """Return the CPU class of the target's own connection, where its TOML names one."""
    link, cpu = hardware.get("transfer"), hardware.get("cpu")
    return {str(link): str(cpu).removeprefix("cortex-")} if link and cpu else {}


def normalised(program: Program, samples: Dataset, progress: Progress) -> Program:
    """Return the program in the dialect of the frozen compiler, bit-identical in its outputs; rewrites its file."""
    progress("normalising for the Edge TPU compiler", None)
    inputs: list[list[Array]] = [
        [to_program(t, sample.inputs[t.name]) for t in program.signature.inputs]
        for sample in itertools.islice(samples, _IDENTITY_SAMPLES)
    ]
    done = normalize.normalize(program.path.read_bytes(), inputs=inputs)
    program.path.write_bytes(done.program)
    return replace(program, details={**program.details, "normalization": [c.to_json() for c in done.changes]})


def _predicted(base: Inspection, prediction: Prediction) -> Inspection:
    placed = {p.index: p for p in prediction.placement.operators}
    operators = tuple(
        replace(o, place=ON_CHIP if placed[o.index].mapped else "cpu", reason=placed[o.index].reason,
                certainty=placed[o.index].certainty)
        if o.subgraph == 0 and o.index in placed
        else o
        for o in base.operators
    )  # fmt: skip
    said = prediction.to_json()
    details = {
        **{key: said[key] for key in ("subgraphs", "on_chip_bytes", "off_chip_bytes", "latency_ms")},
        "mode": "predicted",
        "placement": _placement_details(operators, said, "predicted"),
        "compiler_table": [list(row) for row in prediction.placement.table()],
    }
    return replace(
        base, operators=operators, findings=(*base.findings, *prediction.findings), details={**base.details, **details}
    )


def _placement_details(operators: tuple[Operator, ...], said: Mapping[str, Any], mode: str) -> dict[str, Any]:
    return {
        "mode": mode,
        "operators": len(operators),
        "mapped": sum(o.place == ON_CHIP for o in operators),
        "subgraphs": said["subgraphs"],
        "on_chip_bytes": said["on_chip_bytes"],
        "off_chip_bytes": said["off_chip_bytes"],
    }


def _compiled(base: Inspection, path: Path) -> Inspection:
    compiled = package.read(path)
    operators = tuple(replace(o, place=ON_CHIP) if o.op == package.CUSTOM_OP else o for o in base.operators)
    left = ", ".join(sorted(set(compiled.cpu_operators)))
    said = {
        "subgraphs": compiled.subgraphs,
        "on_chip_bytes": compiled.on_chip_bytes,
        "off_chip_bytes": compiled.off_chip_bytes,
    }
    details = {
        **said,
        "mode": "compiled",
        "placement": _placement_details(operators, said, "compiled"),
        "min_runtime_version": compiled.min_runtime_version,
        "cpu_operators": list(compiled.cpu_operators),
        "scratch_bytes": compiled.scratch_bytes,
        "narrow_bytes_per_tile": compiled.narrow_bytes_per_tile,
        "estimated_cycles": compiled.estimated_cycles,
    }
    # The custom operators belong here: LiteRT's own findings about them do not.
    findings = [f for f in base.findings if f.rule not in ("CUSTOM_OP",)]
    if compiled.cpu_operators:
        findings.append(
            Finding(
                rule="EDGETPU_CPU_OPERATORS",
                severity="warning",
                message=f"{len(compiled.cpu_operators)} operators of the compiled model run on the CPU: {left}.",
                fix="`edgekit inspect` of the int8 model before compiling says why, operator by operator.",
            )
        )
    return replace(base, operators=operators, findings=tuple(findings), details={**base.details, **details})
