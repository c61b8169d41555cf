"""The whole prediction for one quantized program: placement, memory, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.findings import Finding
from edge.targets.edgetpu import memory, placement
from edge.targets.edgetpu.memory import Activations, MemoryPlan
from edge.targets.edgetpu.placement import DEFAULT_RUNTIME, Placement
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph

RUNTIMES = (10, 11, 12, 13, 14)
# The compiler's TensorFlow Lite knows the operators up to this code; newer files are refused as a whole.
_LAST_BUILTIN = 146
_VERSION_LIMITS = {
    "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 6,
    "FULLY_CONNECTED": 9,
    "RESHAPE": 1,
    "TRANSPOSE_CONV": 3,
    "BATCH_MATMUL": 4,
}

_LATER_SUBGRAPH = "SECOND_SUBGRAPH"
# Rules whose operators cannot be brought onto the chip by a change of the model.
_WITHOUT_GAIN = frozenset({_LATER_SUBGRAPH, "FLOAT_INPUT"})
# Predicting again for each rule must not make a large graph slow.
_MOST_OPERATORS_FOR_GAIN = 1000


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the compiler will make of a program, mode `predicted`.

    `latency_ms` maps a connection (`usb3`, `usb2`, `pcie`, …) to value, low and high in milliseconds.
    """

    model: str
    placement: Placement
    memory: MemoryPlan
    activations: Activations
    latency_ms: Mapping[str, Any]
    findings: tuple[Finding, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the object that `edgekit inspect --target coral --json` prints, operators in execution order."""
        return {
            "model": self.model,
            "operators": [
                {"index": op.index, "op": op.op, "mapped": op.mapped, "reason": op.reason, "certainty": op.certainty}
                for op in self.placement.operators
            ],
            "subgraphs": self.placement.subgraphs,
            "on_chip_bytes": self.memory.on_chip_bytes,
            "off_chip_bytes": self.memory.off_chip_bytes,
            "latency_ms": {
                name: {"value": each.value, "low": each.low, "high": each.high}
                for name, each in self.latency_ms.items()
            },
        }


def predict_program(
    model: Any,
    *,
    name: str = "model",
    multiple_subgraphs: bool = False,
    min_runtime_version: int = DEFAULT_RUNTIME,
    hosts: Mapping[str, str] | None = None,
    available_bytes: int | None = None,
) -> Prediction:
    """Predict placement, memory and latency of a program given as bytes, path or `ModelT`.

    `available_bytes` is what models compiled together before this one leave of the cache. `hosts` maps a connection to
    the CPU class that runs the unmapped operators, where it is not the usual one.

    Raises SourceError for what is no valid flatbuffer, UsageError for a runtime version that does not exist.
    """
    if min_runtime_version not in RUNTIMES:
        raise UsageError(
            f"No Edge TPU runtime has version {min_runtime_version}; accepted: {RUNTIMES[0]} to {RUNTIMES[-1]}.",
            hint="Leave --min-runtime-version out: the compiler's default is 14.",
        )
    from edge.targets.edgetpu.latency import predict_latency

    loaded = flatbuffer.load(model, name=name) if isinstance(model, bytes | Path) else model
    graph = flatbuffer.graph(loaded)
    placed = placement.predict(graph, multiple_subgraphs=multiple_subgraphs, min_runtime_version=min_runtime_version)
    parameters = memory.plan(graph, placed, min_runtime_version=min_runtime_version, available_bytes=available_bytes)
    used = memory.activations(graph, placed)
    # Without a mapped operator the chip does nothing, and a time for it would be one of the CPU.
    latency = (
        predict_latency(graph, placed.mapped, parameters, invocations=placed.subgraphs, hosts=hosts)
        if any(placed.mapped)
        else {}
    )
    return Prediction(
        model=name,
        placement=placed,
        memory=parameters,
        activations=used,
        latency_ms=latency,
        findings=(*refusals(graph, subgraphs=len(loaded.subgraphs)), *_advice(graph, placed, parameters, used, hosts)),
    )


def shared_cache(models: Sequence[Path]) -> int:
    """Return the bytes of cache that models compiled together share: the least that any of them leaves."""
    limits = []
    for path in models:
        graph = flatbuffer.graph(flatbuffer.load(path))
        limits.append(memory.cache_limit(graph, placement.predict(graph)))
    return min(limits)


def refusals(graph: Graph, *, subgraphs: int = 1) -> tuple[Finding, ...]:
    """Return what makes the compiler refuse the file as a whole, in the words of its error message."""
    found = []
    for op in graph.ops:
        limit = _VERSION_LIMITS.get(op.name)
        if limit is not None and op.version > limit:
            found.append((op.name, op.version))
    messages = [
        _refusal(
            f"Didn't find op for builtin opcode '{name}' version '{version}'",
            "Lower the operator's version where no newer feature is used; `edgekit build --target coral` does so.",
            name,
        )
        for name, version in dict.fromkeys(found)
    ]
    dynamic = sorted({op.name for op in graph.ops if _is_dynamic(graph, op.inputs, op.name)})
    if dynamic:
        messages.append(
            _refusal(
                "Attempting to use a delegate that only supports static-sized tensors with a graph that has "
                f"dynamic-sized tensors ({', '.join(dynamic)})",
                "Convert with a fixed input shape (batch 1), so that no SHAPE operator is left.",
                dynamic[0],
            )
        )
    messages += [
        _refusal(f"Op builtin_code out of range: {op.name}", "Convert with fewer new operators.", op.name)
        for op in graph.ops
        if op.custom is None and _code(op.name) > _LAST_BUILTIN
    ]
    if subgraphs > 1:
        messages.append(
            Finding(
                rule="EDGETPU_CONTROL_FLOW",
                severity="warning",
                message=f"The file has {subgraphs} subgraphs (control flow); only operators of the first are mapped.",
                fix="Unroll loops and conditions before the conversion.",
            )
        )
    return tuple(messages)


def _code(name: str) -> int:
    try:
        return flatbuffer.code_of(name)
    except KeyError:
        return int(name.removeprefix("BUILTIN_"))


def _is_dynamic(graph: Graph, inputs: Sequence[int], name: str) -> bool:
    # A RESHAPE to a computed shape is resized while the interpreter runs, which the delegate refuses.
    return name in ("RESHAPE", "FILL", "RANGE", "BROADCAST_TO") and any(
        t >= 0 and graph.tensors[t].dtype == "int32" and not graph.tensors[t].is_constant for t in inputs[1:2]
    )


def _refusal(message: str, fix: str, op: str) -> Finding:
    return Finding(rule="EDGETPU_REFUSES_FILE", severity="error", message=f"{message}.", op=op, fix=fix)


def _advice(
    graph: Graph,
    placed: Placement,
    parameters: MemoryPlan,
    used: Activations,
    hosts: Mapping[str, str] | None,
) -> list[Finding]:
    found = [_unmapped(graph, placed, rule, _gain(graph, placed, rule, parameters, hosts)) for rule in _rules(placed)]
    if used.risk == "high" and used.op is not None:
        found.append(
            Finding(
                rule="EDGETPU_LARGE_ACTIVATIONS",
                severity="warning",
                op=graph.ops[used.op].name,
                message=f"Operator {used.op} keeps {used.peak_bytes:,} bytes of activations alive; the tiles hold "
                "3,145,728 and nothing that large was seen compiled: the compiler may end with 'Compilation failed "
                "due to large activation tensors in model.'",
                fix="Make the input smaller.",
            )
        )
    if parameters.off_chip_bytes > memory.MIB // 4:
        found.append(
            Finding(
                rule="EDGETPU_STREAMED_PARAMETERS",
                severity="warning",
                message=f"{parameters.off_chip_bytes:,} bytes of parameters are sent to the chip at every inference.",
                fix="Use fewer channels or cut the model into a pipeline of several Edge TPUs; flatten less before a "
                "fully-connected layer (rows above 8,192 inputs are never cached).",
            )
        )
    return found


def _rules(placed: Placement) -> list[str]:
    return list(dict.fromkeys(op.rule for op in placed.operators if op.rule))


def _unmapped(graph: Graph, placed: Placement, rule: str, gain: str) -> Finding:
    ops = [op for op in placed.operators if op.rule == rule]
    first = ops[0]
    tensor = graph.tensors[graph.ops[first.index].outputs[0]].name if graph.ops[first.index].outputs else first.op
    names = ", ".join(sorted({op.op for op in ops}))
    return Finding(
        rule=f"EDGETPU_{rule}",
        severity="info" if rule == "FLOAT_INPUT" else "warning",
        op=tensor,
        message=f"{len(ops)} operators stay on the CPU ({names}), the first is number {first.index}: "
        f"{first.reason} ({first.certainty}).{gain}",
        fix=first.fix,
    )


def _gain(graph: Graph, placed: Placement, rule: str, parameters: MemoryPlan, hosts: Mapping[str, str] | None) -> str:
    """Return what mapping the operators of a rule would bring, as a sentence: operators and milliseconds over USB 3.

    What is refused by that rule, or only for being in a later subgraph, counts as supported; the graph is cut again.
    """
    from edge.targets.edgetpu.latency import predict_latency

    if rule in _WITHOUT_GAIN or len(graph.ops) > _MOST_OPERATORS_FOR_GAIN:
        return ""
    supported = [op.mapped or op.rule in (rule, _LATER_SUBGRAPH) for op in placed.operators]
    kept = [members for kind, members in placement.partition(graph, supported) if kind]
    chosen = {i for members in kept[: max(1, placed.subgraphs)] for i in members}
    mapped = [i in chosen for i in range(len(graph.ops))]
    more = sum(mapped) - sum(placed.mapped)
    if more <= 0 or not any(placed.mapped):
        return ""
    ways = (placed.mapped, mapped)
    before, after = (predict_latency(graph, way, parameters, hosts=hosts)["usb3"].value for way in ways)
    saved = f"{before - after:.2f} ms less" if before > after else "no time saved"
    return f" If they mapped: {more} operators more on the Edge TPU, {saved} over USB 3 (predicted)."
