"""Adaptive rounding of an int8 program: the layers whose weights hurt most get other steps for some of their weights.

Only weights change, each by one step at most: those of a layer together bring its outputs closer to the float ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration import affine, noise
from edge.calibration import rounding as arithmetic
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.isolate import Progress, no_progress
from edge.targets.litert import edit, flatbuffer, layers, patches, probe, session
from edge.targets.litert.simulate import CHANNEL_AXIS, Simulation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# The layers that are rounded, and how many samples rank them.
_LAYERS, _RANKING = 8, 16
_SAMPLES, _HELD_OUT, _JUDGES = 256, 64, 48
# Rows (positions of an image) per layer, as far as the memory goes.
_ROWS, _LEAST_ROWS, _ROW_BYTES = 4096, 256, 32 * 2**20
# schema: ActivationFunctionType -> the interval that the outputs are cut to.
_FUSED = {0: (-np.inf, np.inf), 1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """The program to use; `kept` tells whether it is the rounded one. `runs` counts invocations of any program."""

    program: bytes
    kept: bool
    before_db: float
    after_db: float
    layers: tuple[str, ...]
    changed: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return what the report shows."""
        return {
            "kept": self.kept,
            "held_out_snr_db": [self.before_db, self.after_db],
            "layers": list(self.layers),
            "weights_changed": self.changed,
            "runs": self.runs,
        }


def adapt(
    source: bytes,
    program: bytes,
    ranges: Ranges,
    recipe: Recipe,
    samples: Iterable[Any],
    progress: Progress = no_progress,
) -> Rounded | None:
    """Return the program with adapted weights, or as it was where that is better; None where no layer can be.

    `source` is the prepared float flatbuffer that `program` was quantized from. Up to 8 convolutions, depthwise and
    dense layers, in execution order; up to 256 samples. A layer that brings the network's outputs no closer keeps its
    weights; every fourth sample is held out to judge the whole by.
    """
    inputs = probe.spread_inputs(samples, _SAMPLES * 4 // 3)
    found = _candidates(flatbuffer.load(source), flatbuffer.load(program))
    if not found or len(inputs) < 8:
        return None
    held, used = inputs[::4][:_HELD_OUT], [v for i, v in enumerate(inputs) if i % 4]
    chosen = _worst(source, ranges, recipe, found, used[:_RANKING])
    reader = _Reader(source, used, chosen)
    judges = used[::3][:_JUDGES]
    wanted = probe.outputs(source, judges)
    made, best, kept, changed = program, noise.snr_db(probe.outputs(program, judges), wanted), [], 0
    for number, pair in enumerate(chosen):
        model = flatbuffer.load(made)
        count = _round_layer(model, pair, reader)
        trial = flatbuffer.dump(model)
        score = noise.snr_db(probe.outputs(trial, judges), wanted)
        if score > best:
            made, best, changed = trial, score, changed + count
            kept.append(pair.name)
        progress("choosing weight steps", (number + 1) / len(chosen))
    references = probe.outputs(source, held)
    before, after = (noise.snr_db(probe.outputs(p, held), references) for p in (program, made))
    return Rounded(
        program=made if after > before else program,
        kept=after > before,
        before_db=before,
        after_db=after,
        layers=tuple(kept) if after > before else (),
        changed=changed if after > before else 0,
        runs=len(used) + (len(chosen) + 2) * len(judges) + (len(found) + 1) * min(_RANKING, len(used)) + 3 * len(held),
    )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A layer: its operator in the float program and in the quantized one."""

    index: int
    name: str
    source: flatbuffer.Op
    op: flatbuffer.Op


def _candidates(source: Any, program: Any) -> list[_Pair]:
    """Return the layers whose int8 weights nothing else reads and whose float weights have the same shape."""
    first, second = flatbuffer.graph(source), flatbuffer.graph(program)
    readers = second.consumers()
    found = []
    for a, b in layers.paired(source, program):
        real, stored = first.data(a.inputs[1]), second.data(b.inputs[1])
        ends = [second.tensors[t] for t in (b.inputs[0], b.inputs[1], b.outputs[0])]
        fits = real is not None and stored is not None and real.shape == stored.shape and stored.dtype == np.int8
        if not fits or any(t.quantization is None for t in ends) or len(readers[b.inputs[1]]) > 1:
            continue
        if b.option("fusedActivationFunction", 0) in _FUSED and patches.is_plain(second, b):
            found.append(_Pair(index=a.index, name=first.tensors[a.outputs[0]].name, source=a, op=b))
    return found


def _worst(
    source: bytes, ranges: Ranges, recipe: Recipe, pairs: Sequence[_Pair], inputs: Sequence[Mapping[str, Any]]
) -> list[_Pair]:
    """Return the layers whose weights alone hurt the outputs most, in execution order."""
    if len(pairs) <= _LAYERS:
        return list(pairs)
    references = probe.outputs(source, inputs)
    alone = {}
    for pair in pairs:
        one = Simulation(source, ranges, recipe, weights=(pair.index,), activations=())
        alone[pair.index] = noise.snr_db(probe.outputs(one.program(), inputs), references)
    kept = set(sorted(alone, key=alone.__getitem__)[:_LAYERS])
    return [p for p in pairs if p.index in kept]


class _Reader:
    """What each layer of the float program has: weights [C, K]; inputs and outputs at some positions.

    The inputs are the float ones: those of the quantized program carry noise, which makes any fit shrink the weights,
    the same way at all positions, and what pools over positions adds that up.
    """

    def __init__(self, source: bytes, inputs: Sequence[Mapping[str, Any]], pairs: Sequence[_Pair]) -> None:
        graph = flatbuffer.graph(flatbuffer.load(source))
        rng = np.random.default_rng(0)
        self.weights = {p.index: _as_rows(graph.data(p.source.inputs[1]), p.op.name) for p in pairs}
        fed: dict[int, list[Floats]] = {p.index: [] for p in pairs}
        made: dict[int, list[Floats]] = {p.index: [] for p in pairs}
        opened = session.LiteRTSession(source, kernels="xnnpack", threads=1, preserve=True)
        for values in inputs:
            opened.invoke(values)
            for p in pairs:
                # Shapes are the interpreter's: those in the file may be stale.
                read, wanted = (opened.tensor(t) for t in (p.source.inputs[0], p.source.outputs[0]))
                chosen = _positions(graph, p.source, wanted.shape, len(inputs), rng)
                fed[p.index].append(patches.rows(graph, p.source, read, wanted.shape, chosen))
                made[p.index].append(wanted.reshape(-1, wanted.shape[-1])[chosen])
        self.inputs = {index: np.concatenate(rows) for index, rows in fed.items()}
        self.wanted = {index: np.concatenate(rows) for index, rows in made.items()}


def _as_rows(weights: Any, operator: str) -> Any:
    axis = CHANNEL_AXIS[operator]
    return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)


def _positions(
    graph: flatbuffer.Graph, op: flatbuffer.Op, made: Sequence[int], count: int, rng: np.random.Generator
) -> Any:
    """Return which positions of a layer's output, of shape `made`, are used of one of `count` samples."""
    places = int(np.prod(made[:-1], dtype=np.int64))
    rows = int(np.clip(_ROW_BYTES // (4 * patches.row_size(graph, op)), _LEAST_ROWS, _ROWS))
    return np.sort(rng.choice(places, min(places, max(1, rows // count)), replace=False))


def _round_layer(model: Any, pair: _Pair, reader: _Reader) -> int:
    """Give a layer of the quantized model its adapted weights in place; return how many changed."""
    graph, axis = flatbuffer.graph(model), CHANNEL_AXIS[pair.op.name]
    stored = graph.data(pair.op.inputs[1])
    assert stored is not None
    codes = arithmetic.adapt(_layer(graph, pair, reader)).astype(np.int8)
    made = np.moveaxis(codes.reshape(np.moveaxis(stored, axis, 0).shape), 0, axis)
    raw = model.subgraphs[0].tensors[pair.op.inputs[1]]
    quantization = raw.quantization
    edit.set_constant(model, raw, np.ascontiguousarray(made))
    raw.quantization = quantization
    return int(np.count_nonzero(made != stored))


def _layer(graph: flatbuffer.Graph, pair: _Pair, reader: _Reader) -> arithmetic.Layer:
    weights, result = (graph.tensors[t] for t in (pair.op.inputs[1], pair.op.outputs[0]))
    assert weights.quantization is not None
    assert result.quantization is not None
    count = len(reader.weights[pair.index])
    step = np.broadcast_to(np.asarray(weights.quantization.scale, np.float32), count)
    limits = np.iinfo(result.dtype)
    ends = affine.dequantize(np.asarray([limits.min, limits.max]), result.quantization)
    low, high = _FUSED[pair.op.option("fusedActivationFunction", 0)]
    return arithmetic.Layer(
        inputs=reader.inputs[pair.index],
        wanted=reader.wanted[pair.index],
        weights=reader.weights[pair.index],
        step=step,
        bias=_bias(graph, pair.op, count),
        low=max(low, float(ends[0])),
        high=min(high, float(ends[1])),
    )


def _bias(graph: flatbuffer.Graph, op: flatbuffer.Op, count: int) -> Floats:
    stored = graph.data(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
    if stored is None:
        return np.zeros(count, np.float32)
    quantization = graph.tensors[op.inputs[2]].quantization
    return affine.dequantize(stored, quantization) if quantization else stored.astype(np.float32)
