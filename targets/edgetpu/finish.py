"""Compile an int8 program with Google's compiler where it is, and hold its word against the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.findings import Finding
from edge.targets.edgetpu import compiler, compiler_bisect, compiler_compare, memory, package, placement
from edge.targets.edgetpu.compiler import Options
from edge.targets.litert import flatbuffer

RECORD = "edgetpu_regression.json"
LOG = "edgetpu_compiler.log"

NOT_COMPILED = Finding(
    rule="EDGETPU_NOT_COMPILED",
    severity="info",
    message="The Edge TPU compiler is not on this machine: the artifact is complete but for model_edgetpu.tflite.",
    fix="Where the compiler is, run: edgekit compile ARTIFACT. `edgekit doctor` says how to get it.",
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What compiling gave: files to put into the artifact, findings, and details that replace the prediction's."""

    files: tuple[Path, ...]
    findings: tuple[Finding, ...]
    details: Mapping[str, Any]


def options_from(given: Mapping[str, Any]) -> Options:
    """Return the compiler's options of a mapping that may hold others too."""
    known = {key: given[key] for key in Options.__dataclass_fields__ if given.get(key) is not None}
    if "timeout_s" in known:
        known["timeout_s"] = int(known["timeout_s"])
    # JSON brings a list.
    known["intermediate_tensors"] = tuple(known.get("intermediate_tensors", ()))
    return Options(**known)


def compile_program(program: Path, options: Options, folder: Path) -> Finished:
    """Compile into `folder`. Raises MissingPackageError without a compiler, ToolError where it fails."""
    tool = compiler.find()
    result = compiler_bisect.compile_models(tool, [program], folder, options)
    compilation = result.compilation
    log = folder / LOG
    log.write_text(compilation.text, encoding="utf-8")
    if not compilation.log.succeeded:
        error = compiler.failure(compilation)
        if result.culprit:
            error.message += f" {result.findings[0].message}"
            error.hint = result.findings[0].fix
        error.log = str(log)
        raise error
    held: tuple[Finding, ...] = ()
    if compiler_compare.comparable(options, compilation.log):
        held = _held_against_prediction(program, compilation, options, folder)
    compiled = [package.read(path, required=False) for path in compilation.outputs]
    details = {
        "compiled": f"yes, by compiler {tool.version}",
        "compiler_version": tool.version,
        "placement_compiled": {
            "subgraphs": sum(c.subgraphs for c in compiled),
            "on_chip_bytes": sum(c.on_chip_bytes for c in compiled),
            "off_chip_bytes": sum(c.off_chip_bytes for c in compiled),
            "min_runtime_version": max((c.min_runtime_version for c in compiled), default=0),
            "cpu_operators": [op for c in compiled for op in c.cpu_operators],
        },
    }
    record = folder / RECORD
    files = (*compilation.outputs, log, *((record,) if record.is_file() else ()))
    return Finished(files=files, findings=(*result.findings, *held), details=details)


def _held_against_prediction(
    program: Path, compilation: compiler.Compilation, options: Options, folder: Path
) -> tuple[Finding, ...]:
    """Return the differences as findings, and write them as a record that the user can send us."""
    data = program.read_bytes()
    graph = flatbuffer.graph(flatbuffer.load(data))
    runtime = options.min_runtime_version or placement.DEFAULT_RUNTIME
    placed = placement.predict(graph, multiple_subgraphs=options.multiple_subgraphs, min_runtime_version=runtime)
    parameters = memory.plan(graph, placed, min_runtime_version=runtime)
    output = compilation.outputs[0]
    compiled, compiled_graph = package.read(output, required=False), flatbuffer.graph(flatbuffer.load(output))
    comparison = compiler_compare.compare(graph, placed, parameters, compiled_graph, compiled, compilation.log)
    if comparison.agrees:
        return ()
    record = compiler_compare.regression_record(
        data, graph, placed, parameters, compiled, compilation.log, options, comparison
    )
    compiler_compare.write_record(record, folder / RECORD)
    return comparison.findings
