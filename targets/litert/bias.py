"""Bias correction of a quantized program, layer by layer, kept only where held-out samples say that it helps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration import affine, noise
from edge.calibration import bias as arithmetic
from edge.isolate import Progress, no_progress
from edge.targets.litert import edit, flatbuffer, layers, probe, session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Floats = NDArray[np.float64]

# Runs of the program in all, shared among its layers; and how many samples that may come to.
_RUNS, _LEAST, _MOST = 2000, 16, 256
_HELD_OUT = 64


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """The program to use; `kept` tells whether it is the corrected one. `runs` counts invocations of either program."""

    program: bytes
    kept: bool
    before_db: float
    after_db: float
    channels: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return what the report shows."""
        return {
            "kept": self.kept,
            "held_out_snr_db": [self.before_db, self.after_db],
            "channels": self.channels,
            "runs": self.runs,
        }


def correct(
    source: bytes, program: bytes, samples: Iterable[Any], progress: Progress = no_progress
) -> Corrected | None:
    """Return the program with corrected biases, or as it was where that is better; None where nothing can be corrected.

    `source` is the float flatbuffer that `program` was quantized from. In execution order, each layer's mean error is
    measured with the layers before it corrected already. Every fourth sample is held out to judge by.
    """
    found = _layers(flatbuffer.load(source), flatbuffer.load(program))
    inputs = probe.spread_inputs(samples, min(_MOST, max(_LEAST, _RUNS // max(1, len(found)))) * 4 // 3)
    if not found or len(inputs) < 2:
        return None
    held = inputs[::4][:_HELD_OUT]
    used = [v for i, v in enumerate(inputs) if i % 4] if len(inputs) >= 8 else inputs
    wanted = _float_means(source, used, found)
    model, channels = flatbuffer.load(program), 0
    for number, layer in enumerate(found):
        channels += _correct_layer(model, layer, used, wanted[layer.source])
        progress("correcting biases", (number + 1) / len(found))
    made = flatbuffer.dump(model)
    references = probe.outputs(source, held)
    before, after = (noise.snr_db(probe.outputs(p, held), references) for p in (program, made))
    return Corrected(
        program=made if after > before else program,
        kept=after > before,
        before_db=before,
        after_db=after,
        channels=channels,
        runs=(len(found) + 1) * len(used) + 3 * len(held),
    )


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer: its output tensor in the float program, its output and bias tensors in the quantized one."""

    source: int
    output: int
    bias: int


def _layers(source: Any, program: Any) -> list[_Layer]:
    graph = flatbuffer.graph(program)
    readers = graph.consumers()
    found = []
    for a, b in layers.paired(source, program):
        if len(b.inputs) < 3 or b.inputs[2] < 0:
            continue
        tensor, output = graph.tensors[b.inputs[2]], graph.tensors[b.outputs[0]]
        if tensor.quantization and output.quantization and len(readers[tensor.index]) == 1:
            found.append(_Layer(source=a.outputs[0], output=b.outputs[0], bias=b.inputs[2]))
    return found


def _channel_means(values: Array) -> Floats:
    return np.asarray(values.reshape(-1, values.shape[-1]).astype(np.float64).mean(axis=0))


def _float_means(source: bytes, inputs: Sequence[Mapping[str, Array]], pairs: Sequence[_Layer]) -> dict[int, Floats]:
    """Return each layer's mean output per sample and channel, [N, C]."""
    opened = session.LiteRTSession(source, kernels="xnnpack", threads=1, preserve=True)
    rows: dict[int, list[Floats]] = {layer.source: [] for layer in pairs}
    for values in inputs:
        opened.invoke(values)
        for tensor, found in rows.items():
            found.append(_channel_means(opened.tensor(tensor)))
    return {tensor: np.stack(found) for tensor, found in rows.items()}


def _correct_layer(model: Any, layer: _Layer, inputs: Sequence[Mapping[str, Array]], wanted: Floats) -> int:
    """Correct one layer's bias in place; return how many channels changed."""
    opened = session.LiteRTSession(flatbuffer.dump(model), kernels="builtin", threads=1, preserve=True)
    tensor = flatbuffer.graph(model).tensors[layer.output]
    assert tensor.quantization is not None
    found, active = [], []
    limits = np.iinfo(tensor.dtype)
    for values in inputs:
        fed = {s.name: affine.to_program(s, np.asarray(values[s.name])) for s in opened.signature.inputs}
        opened.invoke(fed)
        stored = opened.tensor(layer.output)
        inside = (stored != limits.min) & (stored != limits.max)
        active.append(_channel_means(inside))
        found.append(_channel_means(affine.dequantize(stored, tensor.quantization)))
    delta = arithmetic.correction(wanted - np.stack(found), np.mean(active, axis=0))
    raw = model.subgraphs[0].tensors[layer.bias]
    bias: Any = flatbuffer.constant(model, raw)
    step = flatbuffer.graph(model).tensors[layer.bias].quantization
    if bias is None or step is None or bias.size != delta.size:
        return 0
    changed = arithmetic.corrected(bias, affine.step_sizes(step, 1), delta)
    quantization = raw.quantization
    edit.set_constant(model, raw, changed)
    raw.quantization = quantization
    return int(np.count_nonzero(changed != bias))
