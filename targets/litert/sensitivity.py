"""Sensitivity of a LiteRT network, layer by layer, on the samples that quantization hurts most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge.calibration import noise
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.calibration.sensitivity import LayerRecord, ranked, unbalanced, weight_spread
from edge.isolate import Progress, no_progress
from edge.targets.litert import coverage, equalize, flatbuffer, frontend, probe, session
from edge.targets.litert.simulate import CHANNEL_AXIS, Simulation

# Runs of the program for all layers together; each layer gets at least 8 samples.
_RUNS, _LEAST, _MOST = 3000, 8, 64
# So many are run with everything quantized, to find the worst samples among them.
_CANDIDATES = 128
# Layers with one scale per output channel over all input channels, and the axis of the latter.
_READING = {"CONV_2D": 3, "FULLY_CONNECTED": 1}


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Records of all layers, worst first, and what they cost: `runs` of the program on `samples` samples."""

    layers: tuple[LayerRecord, ...]
    samples: int
    runs: int


def measure(
    program: bytes, ranges: Ranges, recipe: Recipe, samples: Iterable[Any], progress: Progress = no_progress
) -> Sensitivity:
    """Return how much the outputs of a prepared float program lose with one layer quantized at a time.

    Weights and output tensor of each layer are quantized apart, in a float program: (layers with weights + tensors) x
    samples runs. The samples are those with the largest relative error when all is quantized. What the recipe keeps
    float is left out.
    """
    model = flatbuffer.load(program)
    graph = flatbuffer.graph(model)
    ranges, kept = _quantized(graph, ranges, frontend.resolved(recipe, program, ranges))
    weighted = [op.index for op in graph.ops if _weights(graph, op) is not None and op.index not in kept]
    inputs = probe.spread_inputs(samples, _CANDIDATES)
    count = max(_LEAST, min(_MOST, _RUNS // (len(weighted) + len(ranges))))
    chosen = _worst(program, ranges, recipe, inputs, weighted, count)
    bench = _Bench(program, ranges, recipe, chosen)
    total = len(weighted) + len(ranges)
    by_op, by_tensor = {}, {}
    for index in weighted:
        by_op[index] = bench.alone(weights=(index,))
        progress("measuring layers", len(by_op) / total)
    for name in ranges:
        by_tensor[name] = bench.alone(activations=(name,))
        progress("measuring layers", (len(by_op) + len(by_tensor)) / total)
    saturated = _saturation(program, ranges, chosen)
    records = _joined(model, list(_records(graph, ranges, by_op, by_tensor, saturated)), chosen)
    runs = 2 * len(inputs) + (total + 3) * len(chosen)
    return Sensitivity(layers=ranked(records), samples=len(chosen), runs=runs)


def _quantized(graph: flatbuffer.Graph, ranges: Ranges, recipe: Recipe) -> tuple[Ranges, set[int]]:
    """Return the ranges of tensors that an operator reads or writes which no override keeps float, and those kept."""
    name = [graph.tensors[op.outputs[0]].name if op.outputs else "" for op in graph.ops]
    kept = {op.index for op in graph.ops if coverage.kept_float((op.name, name[op.index]), recipe.overrides)}
    inner = {t for i in kept for t in (*graph.ops[i].inputs, *graph.ops[i].outputs) if t >= 0}
    inner -= {t for op in graph.ops if op.index not in kept for t in (*op.inputs, *op.outputs)}
    names = {graph.tensors[t].name for t in inner - set(graph.outputs)}
    limits = {n: r for n, r in ranges.limits.items() if n not in names}
    return replace(ranges, limits=limits), kept


def _joined(model: Any, records: list[LayerRecord], inputs: Sequence[Mapping[str, Any]]) -> list[LayerRecord]:
    """Blame the first of two layers whose channels are uneven against each other for the second one's weights too."""
    graph = flatbuffer.graph(model)
    pairs = [p for p in equalize.find_pairs(model) if graph.ops[p.second].name in _READING]
    peaks = probe.channel_peaks(flatbuffer.dump(model), inputs, {p.tensor for p in pairs}, threads=1)
    found = {r.index: r for r in records}
    for pair in pairs:
        first, second = found.get(pair.first), found.get(pair.second)
        reading = equalize.magnitudes(
            graph.data(graph.ops[pair.second].inputs[1]), _READING[graph.ops[pair.second].name]
        )
        if first is None or second is None or not unbalanced(peaks[pair.tensor], reading):
            continue
        found[pair.first] = replace(first, unbalanced_with=second.output, next_weights_db=second.weights_db)
        found[pair.second] = replace(found[pair.second], blamed_before=True)
    return list(found.values())


class _Bench:
    def __init__(self, program: bytes, ranges: Ranges, recipe: Recipe, inputs: Sequence[Mapping[str, Any]]) -> None:
        self._program, self._ranges, self._recipe, self._inputs = program, ranges, recipe, inputs
        self._references = probe.outputs(program, inputs)

    def alone(self, *, weights: tuple[int, ...] = (), activations: tuple[str, ...] = ()) -> float:
        one = Simulation(self._program, self._ranges, self._recipe, weights=weights, activations=activations)
        return noise.snr_db(probe.outputs(one.program(), self._inputs), self._references)


def _weights(graph: flatbuffer.Graph, op: flatbuffer.Op) -> Any:
    """Return an operator's largest float constant, None where it has none."""
    found = [graph.data(t) for t in op.inputs if t >= 0 and graph.tensors[t].dtype == "float32"]
    constants = [c for c in found if c is not None and c.size]
    return max(constants, key=lambda c: c.size, default=None)


def _worst(
    program: bytes,
    ranges: Ranges,
    recipe: Recipe,
    inputs: Sequence[Mapping[str, Any]],
    weighted: Sequence[int],
    count: int,
) -> list[Mapping[str, Any]]:
    if len(inputs) <= count:
        return list(inputs)
    whole = Simulation(program, ranges, recipe, weights=weighted, activations=list(ranges)).program()
    lost = noise.collect(probe.outputs(whole, inputs), probe.outputs(program, inputs)).ratios()
    return [inputs[i] for i in np.argsort(-lost, kind="stable")[:count]]


def _saturation(program: bytes, ranges: Ranges, inputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of each tensor's values outside of its range."""
    opened = session.LiteRTSession(program, kernels="builtin", threads=1, preserve=True)
    tensors = [t for t in flatbuffer.graph(flatbuffer.load(program)).tensors if t.name in ranges]
    outside = {t.name: [0, 0] for t in tensors}
    for values in inputs:
        opened.invoke(values)
        for t in tensors:
            real: Any = opened.tensor(t.index)
            low, high = ranges[t.name]
            outside[t.name][0] += int(np.count_nonzero((real < low) | (real > high)))
            outside[t.name][1] += real.size
    return {name: cut / max(1, count) for name, (cut, count) in outside.items()}


def _records(
    graph: flatbuffer.Graph,
    ranges: Ranges,
    by_op: Mapping[int, float],
    by_tensor: Mapping[str, float],
    saturated: Mapping[str, float],
) -> Iterable[LayerRecord]:
    for tensor in graph.inputs:
        name = graph.tensors[tensor].name
        if name in by_tensor:
            yield _record(-1, "INPUT", name, None, None, ranges, by_tensor, saturated)
    for op in graph.ops:
        name = graph.tensors[op.outputs[0]].name if op.outputs else ""
        if op.index not in by_op and name not in by_tensor:
            continue
        weights = _weights(graph, op)
        spread = None if weights is None else weight_spread(weights, CHANNEL_AXIS.get(op.name))
        yield _record(op.index, op.name, name, by_op.get(op.index), spread, ranges, by_tensor, saturated)


def _record(
    index: int,
    operator: str,
    name: str,
    weights_db: float | None,
    spread: tuple[float, float] | None,
    ranges: Ranges,
    by_tensor: Mapping[str, float],
    saturated: Mapping[str, float],
) -> LayerRecord:
    low, high = ranges.limits.get(name, (None, None))
    return LayerRecord(
        index=index,
        operator=operator,
        output=name,
        weights_db=weights_db,
        output_db=by_tensor.get(name),
        low=low,
        high=high,
        saturated=saturated.get(name),
        channel_spread=spread[0] if spread else None,
        peak_to_rms=spread[1] if spread else None,
    )
