"""Which operators of a program compute in float, and which conversions stand between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.calibration.recipe import Override
from edge.findings import Finding
from edge.targets.litert import flatbuffer

CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_FLOATS = frozenset({"float32", "float16", "float64"})
_INTEGERS = frozenset({"int8", "uint8", "int16", "int4", "uint4", "int2"})


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a program computes in integers.

    `left_float` names operators (type, first output tensor) that read or write float; `by_wish` counts those that an
    override keeps float; `conversions` counts QUANTIZE and DEQUANTIZE operators that are not at the program's ends;
    `stored` counts constants stored as scaled integers or float16.
    """

    total: int
    left_float: tuple[tuple[str, str], ...]
    by_wish: int
    conversions: int
    stored: int

    @property
    def cost(self) -> tuple[int, int]:
        """Order of preference between programs: fewer float operators first, then fewer conversions."""
        return len(self.left_float), self.conversions


def of(model: Any, overrides: Sequence[Override] = ()) -> Coverage:
    """Return the coverage of a checked `ModelT`, all subgraphs together."""
    views = list(flatbuffer.graphs(model))
    computing = [(v, op) for v in views for op in v.ops if op.name not in CONVERSIONS]
    in_float = [(v, op) for v, op in computing if _is_float(v, op)]
    left = [(op.name, _output_name(v, op)) for v, op in in_float]
    wished = [entry for entry in left if kept_float(entry, overrides)]
    return Coverage(
        total=len(computing),
        left_float=tuple(entry for entry in left if entry not in wished),
        by_wish=len(wished),
        conversions=sum(_inner_conversions(v) for v in views),
        stored=sum(_is_stored(t) for v in views for t in v.tensors),
    )


def _is_float(view: flatbuffer.Graph, op: flatbuffer.Op) -> bool:
    used = [t for t in (*op.inputs, *op.outputs) if t >= 0]
    return any(view.tensors[t].dtype in _FLOATS for t in used)


def _output_name(view: flatbuffer.Graph, op: flatbuffer.Op) -> str:
    return view.tensors[op.outputs[0]].name if op.outputs else ""


def _is_stored(tensor: flatbuffer.Tensor) -> bool:
    scaled = tensor.dtype in _INTEGERS and tensor.quantization is not None
    return tensor.is_constant and (scaled or tensor.dtype == "float16")


def kept_float(entry: tuple[str, str], overrides: Sequence[Override]) -> bool:
    """Tell whether the overrides keep an operator float, given as its type and the first tensor that it writes."""
    last = next((o for o in reversed(overrides) if matches(o, *entry)), None)
    return last is not None and last.scheme == "float32"


def matches(override: Override, operator: str, tensor: str) -> bool:
    """Tell whether an override speaks of the operator that writes `tensor`."""
    return override.operator in ("*", operator) and re.search(override.tensor, tensor) is not None


def _inner_conversions(view: flatbuffer.Graph) -> int:
    inputs, outputs = set(view.inputs), set(view.outputs)
    return sum(
        op.name in CONVERSIONS
        and op.inputs[0] not in inputs
        and op.outputs[0] not in outputs
        and not view.tensors[op.inputs[0]].is_constant
        for op in view.ops
    )


def findings(coverage: Coverage, *, severity: str = "warning") -> tuple[Finding, ...]:
    """Return one finding per operator type left float, and one for inner conversions."""
    made = []
    for operator, count in sorted(Counter(name for name, _ in coverage.left_float).items()):
        first = next(tensor for name, tensor in coverage.left_float if name == operator)
        made.append(
            Finding(
                rule="OPS_LEFT_FLOAT",
                severity="error" if severity == "error" else "warning",
                op=operator,
                message=f"{count} {operator} stayed float (the first writes {first!r}): no quantizer here has an "
                "integer form of it.",
                fix="Replace the operator in the model, or accept that it runs in float on the CPU.",
            )
        )
    if coverage.conversions:
        made.append(
            Finding(
                rule="EXTRA_QUANTIZE",
                severity="info",
                message=f"{coverage.conversions} QUANTIZE or DEQUANTIZE operators stand inside the program.",
                fix="They come from operators left float, or from branches that join with different ranges.",
            )
        )
    return tuple(made)
