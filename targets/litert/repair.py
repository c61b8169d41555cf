"""Repairs of what quantizers get wrong without a word: huge masks, dead channels, stale signature outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.ranges import Ranges
from edge.errors import QuantizationError
from edge.targets.litert import calibrate, edit, flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

HUGE = 1e30
_TRIED = tuple(float(2**n) for n in range(4, 15))  # 16 … 16384
_SAMPLES = 8
_TOLERANCE = 1e-5
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
_SMALLEST = 1e-7

# Bounds of clamps by operator, and by the number of a fused activation (RELU_N1_TO_1, RELU6).
_CLAMPS = {"RELU6": 6.0, "RELU_N1_TO_1": 1.0, "RELU_0_TO_1": 1.0}
_FUSED_CLAMPS = {2: 1.0, 3: 6.0}
_MOST_STEPS = 2.0**30  # half of what int32 holds: room for the zero point


def patch_masks(model: Any, samples: Iterable[Any]) -> float | None:
    """Replace float constants beyond ±1e30 (attention masks of -inf) by the smallest power of 2 that acts the same.

    A quantizer derives the step of int8 from the smallest value: with -inf the mask becomes 0 and padding is attended.
    "The same" is: float outputs on the first samples differ by at most 1e-5 of their largest magnitude. Edits the
    checked `ModelT` in place and returns the magnitude used, None where there was nothing to do. Raises
    QuantizationError where no value up to 16384 acts the same.
    """
    masks = _masks(model)
    if not masks:
        return None
    reference = calibrate.run_reference(flatbuffer.dump(model), samples, limit=_SAMPLES)
    for tensor, values in masks:
        edit.set_constant(model, tensor, values)  # a buffer of its own, which the trials below overwrite
    for magnitude in _TRIED:
        for tensor, values in masks:
            bounded = _bounded(values, magnitude)
            model.buffers[tensor.buffer].data = np.frombuffer(bounded.tobytes(), np.uint8)
        trial = calibrate.run_reference(flatbuffer.dump(model), samples, limit=_SAMPLES)
        if all(_same(a, b) for a, b in zip(reference, trial, strict=True)):
            return magnitude
    name = flatbuffer.text(masks[0][0].name)
    raise QuantizationError(
        f"The constant {name!r} holds values beyond ±{HUGE:g}, which 8 bits cannot represent beside ordinary ones, "
        f"and no value up to ±{_TRIED[-1]:g} gives the same outputs.",
        hint="Mask with a moderate number such as -100 in the model, or return the unmasked tensor.",
    )


def _masks(model: Any) -> list[tuple[Any, NDArray[np.float32]]]:
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors or ():
            values = flatbuffer.constant(model, tensor)
            if values is not None and values.dtype == np.float32 and values.size and np.abs(values).max() > HUGE:
                found.append((tensor, values.astype(np.float32)))
    return found


def _bounded(values: NDArray[np.float32], magnitude: float) -> NDArray[np.float32]:
    """Only the huge values change: ordinary ones beside them keep their meaning."""
    return np.where(np.abs(values) > HUGE, np.sign(values) * np.float32(magnitude), values).astype(np.float32)


def _same(reference: dict[str, Any], trial: dict[str, Any]) -> bool:
    for name, wanted in reference.items():
        if not np.issubdtype(wanted.dtype, np.floating):
            if not np.array_equal(wanted, trial[name]):
                return False
            continue
        scale = max(1e-6, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
        if not np.allclose(trial[name], wanted, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True):
            return False
    return True


def lift_dead_channels(model: Any, ranges: Ranges, levels: int) -> int:
    """Give output channels whose weights are all but 0 a weight scale that their bias fits.

    The bias is stored as int32 in steps of s_in * s_w. With s_w near 0 (a dead channel after batch-norm folding) it
    overflows: ai-edge-quantizer then even flips its sign, and the channel's constant is lost. The largest weight of
    such a channel is raised to w = 127 * |b| / (s_in * 2^30), so that b takes 2^30 steps; as |x| <= levels * s_in, this
    adds at most 127 * levels / 2^30 * |b| to the output (3e-5 of the bias for 255 levels). Channels of exact zeros get
    1e-7 of the tensor's largest weight, because XNNPACK refuses a scale of 0. Returns the number of channels edited, in
    place.
    """
    edited = 0
    for graph in model.subgraphs:
        for op in graph.operators or ():
            name, _, _ = flatbuffer.operator_name(model, op)
            if name in _CHANNEL_AXIS:
                edited += _lift(model, graph, name, list(op.inputs), ranges, levels)
    return edited


def _lift(model: Any, graph: Any, name: str, inputs: list[int], ranges: Ranges, levels: int) -> int:
    source = 2 if name == "TRANSPOSE_CONV" else 0
    bias_at = 3 if name == "TRANSPOSE_CONV" else 2
    raw = graph.tensors[inputs[1]]
    weights = flatbuffer.constant(model, raw)
    limits = ranges.limits.get(flatbuffer.text(graph.tensors[inputs[source]].name))
    if weights is None or weights.dtype != np.float32 or limits is None or weights.size == 0:
        return 0
    channels = np.moveaxis(weights.astype(np.float32), _CHANNEL_AXIS[name], 0).copy()
    flat = channels.reshape(len(channels), -1)
    largest = np.abs(flat).max(axis=1)
    floor = np.full(len(flat), max(_SMALLEST * float(largest.max()), 1e-9), np.float32)
    bias = _bias(model, graph, inputs, bias_at)
    if bias is not None and bias.size == len(flat):
        step = max(max(limits[1], 0.0) - min(limits[0], 0.0), 1e-9) / levels
        floor = np.maximum(floor, 127.0 * np.abs(bias) / (step * 2.0**30)).astype(np.float32)
    low = np.flatnonzero(largest < floor)
    if low.size == 0:
        return 0
    peaks = np.abs(flat[low]).argmax(axis=1)
    flat[low, peaks] = np.copysign(floor[low], flat[low, peaks])
    edit.set_constant(model, raw, np.ascontiguousarray(np.moveaxis(channels, 0, _CHANNEL_AXIS[name])))
    return int(low.size)


def _bias(model: Any, graph: Any, inputs: list[int], at: int) -> NDArray[np.float32] | None:
    if len(inputs) <= at or inputs[at] < 0:
        return None
    values = flatbuffer.constant(model, graph.tensors[inputs[at]])
    return None if values is None or values.dtype != np.float32 else values.astype(np.float32)


def mend_signature(quantized: Any, source: Any) -> int:
    """Point the signature of a quantized `ModelT` at its subgraph's inputs and outputs, as the float `source` has them.

    ai-edge-quantizer renews the subgraph's outputs but not the signature's where an output is also used inside the
    graph (recurrent states): the signature then reads a tensor that is not there, or a float one that is not written.
    Returns the number of entries that were wrong. Edits in place.
    """
    wrong = 0
    quantized.signatureDefs = quantized.signatureDefs or source.signatureDefs
    for signature, original in zip(quantized.signatureDefs or (), source.signatureDefs or (), strict=True):
        before = source.subgraphs[original.subgraphIndex]
        after = quantized.subgraphs[signature.subgraphIndex]
        for entries, originals, old, new in (
            (signature.inputs, original.inputs, before.inputs, after.inputs),
            (signature.outputs, original.outputs, before.outputs, after.outputs),
        ):
            places = {flatbuffer.text(e.name): list(old).index(e.tensorIndex) for e in originals or ()}
            for entry in entries or ():
                right = int(new[places[flatbuffer.text(entry.name)]])
                wrong += entry.tensorIndex != right
                entry.tensorIndex = right
    return wrong


def hold_clamps(model: Any, ranges: Ranges) -> Ranges:
    """Return the ranges, widened where a clamp such as ReLU6 would not fit into the steps of a tiny range.

    Kernels write the clamp's bounds in steps of the output: 6 / scale must be an int32, or they refuse to load. Outputs
    as small as that come from untrained weights, and from layers that do nothing.
    """
    limits = dict(ranges.limits)
    for view in flatbuffer.graphs(model):
        for op in view.ops:
            clamp = _CLAMPS.get(op.name) or _FUSED_CLAMPS.get(op.option("fusedActivationFunction"))
            name = view.tensors[op.outputs[0]].name if clamp and op.outputs else None
            if clamp is None or name not in limits:
                continue
            low, high = limits[name]
            least = clamp * 256 / _MOST_STEPS
            limits[name] = (low, max(high, low + least))
    return replace(ranges, limits=limits)
