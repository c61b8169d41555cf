"""Hold the compiler's word against the prediction: each difference is a finding and goes into a regression record.

The record is JSON with the structure of the model (operators, shapes, dtypes) and no weights, so a user can send it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge import codec
from edge.findings import Finding
from edge.targets.edgetpu.compiler import Options
from edge.targets.edgetpu.compiler_log import CompiledModelLog, CompilerLog
from edge.targets.edgetpu.memory import MemoryPlan
from edge.targets.edgetpu.package import CUSTOM_OP, CompiledModel
from edge.targets.edgetpu.placement import Placement
from edge.targets.litert.flatbuffer import Graph

RECORD_SCHEMA = 1
# Sizes are printed with two digits after the point, and predicted to a few percent; closer is agreement.
_SIZE_TOLERANCE = 0.05
_SMALL_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences between prediction and compiler, as findings; `mapped` is what the compiler did, by operator."""

    findings: tuple[Finding, ...]
    mapped: tuple[bool, ...]

    @property
    def agrees(self) -> bool:
        """Whether the compiler did what was predicted."""
        return not self.findings


def comparable(options: Options, log: CompilerLog) -> bool:
    """Tell whether the prediction applies: not to a pipeline, nor behind a cut (the user's or a delegate search's)."""
    return options.num_segments == 1 and not options.intermediate_tensors and not log.intermediate_tensors


def actual_placement(graph: Graph, compiled: Graph) -> tuple[bool, ...]:
    """Return for each operator of the input model whether it went into an Edge TPU operator of the compiled one.

    The compiler keeps the tensors' names: an operator that is left computes what it computed before.
    """
    left = {compiled.tensors[t].name for op in compiled.ops if op.custom != CUSTOM_OP for t in op.outputs}
    return tuple(not any(graph.tensors[t].name in left for t in op.outputs) for op in graph.ops)


def _operators(graph: Graph, placement: Placement, mapped: Sequence[bool]) -> Iterator[Finding]:
    for op, predicted, actual in zip(graph.ops, placement.operators, mapped, strict=True):
        if predicted.mapped != actual:
            reason = f" ({predicted.reason})" if predicted.reason else ""
            yield Finding(
                rule="EDGETPU_PREDICTED_OTHERWISE",
                severity="info",
                op=f"{op.index}: {predicted.op}",
                message=f"Predicted {_where(predicted.mapped)}{reason}, but the compiler put it {_where(actual)}; "
                f"the prediction was {predicted.certainty}.",
                fix="Send the regression record, so that the rule is corrected.",
            )


def _where(mapped: bool) -> str:
    return "on the Edge TPU" if mapped else "on the CPU"


def _table(placement: Placement, log: CompiledModelLog | None) -> Iterator[Finding]:
    """Compare the table by operator and status; a status counts even where the place is the same."""
    if log is None or not log.table:
        return
    predicted = Counter({(name, status): count for name, count, status in placement.table()})
    printed = Counter({(row.operator, row.status): row.count for row in log.table})
    for operator, status in sorted(predicted.keys() | printed.keys()):
        if (expected := predicted[operator, status]) != (found := printed[operator, status]):
            yield Finding(
                rule="EDGETPU_TABLE_DIFFERS",
                severity="info",
                op=operator,
                message=f"{status!r}: predicted {expected} times, the compiler says {found} times.",
            )


def _sizes(memory: MemoryPlan, placement: Placement, compiled: CompiledModel) -> Iterator[Finding]:
    if placement.subgraphs != compiled.subgraphs:
        yield Finding(
            rule="EDGETPU_SUBGRAPHS_DIFFER",
            severity="info",
            message=f"Predicted {placement.subgraphs} Edge TPU subgraphs, the compiler made {compiled.subgraphs}.",
        )
    pairs = (
        ("on chip", memory.on_chip_bytes, compiled.on_chip_bytes),
        ("streamed at every inference", memory.off_chip_bytes, compiled.off_chip_bytes),
    )
    for what, predicted, actual in pairs:
        if abs(predicted - actual) > max(_SMALL_BYTES, _SIZE_TOLERANCE * actual):
            yield Finding(
                rule="EDGETPU_MEMORY_DIFFERS",
                severity="info",
                message=f"Parameters {what}: predicted {predicted} bytes, the compiler's package has {actual}.",
            )


def compare(
    graph: Graph,
    placement: Placement,
    memory: MemoryPlan,
    compiled_graph: Graph,
    compiled: CompiledModel,
    log: CompilerLog,
) -> Comparison:
    """Return the differences between a prediction for `graph` and the compiled model with its package and log."""
    mapped = actual_placement(graph, compiled_graph)
    said = log.models[0] if log.models else None
    findings = [
        *_operators(graph, placement, mapped),
        *_table(placement, said),
        *_sizes(memory, placement, compiled),
    ]
    return Comparison(findings=tuple(findings), mapped=mapped)


def _describe(graph: Graph, placement: Placement, mapped: Sequence[bool]) -> list[dict[str, Any]]:
    def tensor(index: int) -> dict[str, Any] | None:
        if index < 0:
            return None
        t = graph.tensors[index]
        return {"shape": list(t.shape), "dtype": t.dtype, "constant": t.is_constant}

    return [
        {
            "op": predicted.op,
            "version": op.version,
            "inputs": [tensor(t) for t in op.inputs],
            "outputs": [tensor(t) for t in op.outputs],
            "predicted": predicted.mapped,
            "rule": predicted.rule,
            "certainty": predicted.certainty,
            "mapped": actual,
        }
        for op, predicted, actual in zip(graph.ops, placement.operators, mapped, strict=True)
    ]


def regression_record(
    model: bytes,
    graph: Graph,
    placement: Placement,
    memory: MemoryPlan,
    compiled: CompiledModel,
    log: CompilerLog,
    options: Options,
    comparison: Comparison,
) -> dict[str, Any]:
    """Return the case as JSON-compatible data: structure, prediction and what the compiler did; no weights."""
    return {
        "schema": RECORD_SCHEMA,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "compiler_version": log.version,
        "options": asdict(options) | {"intermediate_tensors": len(options.intermediate_tensors)},
        "operators": _describe(graph, placement, comparison.mapped),
        "log_rows": [[r.operator, r.count, r.status] for m in log.models[:1] for r in m.table],
        "subgraphs": {"predicted": placement.subgraphs, "compiled": compiled.subgraphs},
        "on_chip_bytes": {"predicted": memory.on_chip_bytes, "compiled": compiled.on_chip_bytes},
        "off_chip_bytes": {"predicted": memory.off_chip_bytes, "compiled": compiled.off_chip_bytes},
        "differences": [codec.to_json(finding) for finding in comparison.findings],
    }


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a regression record whole or not at all."""
    codec.write_atomically(path, codec.dumps(record))
