"""Bias correction of a PT2E graph: the mean error of each channel of a layer is taken out of its float bias."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from edge.calibration import bias as arithmetic
from edge.calibration import noise
from edge.isolate import Progress
from edge.signature import Signature
from edge.targets.executorch import probe

# Runs of the graph in all, shared among its layers; and how many samples that may come to.
_RUNS, _LEAST, _MOST = 400, 16, 64


def correct(
    reference: Any, graph: Any, signature: Signature, samples: Iterable[Any], progress: Progress
) -> dict[str, Any] | None:
    """Correct the biases of a converted graph in place, layer by layer; return what was done, for the report.

    `reference` is the prepared graph that it was converted from, whose values are the float ones. Every fourth sample
    is held out; where those do not come closer to the float outputs, the biases stay as they were. None where no layer
    has a float bias of its own.
    """
    nodes = [n for n in probe.linear_nodes(graph) if _bias(graph, n) is not None]
    count = min(_MOST, max(_LEAST, _RUNS // max(1, len(nodes))))
    inputs = [dict(s.inputs) for s in itertools.islice(samples, count * 4 // 3)]
    if not nodes or len(inputs) < 8:
        return None
    held, used = inputs[::4], [v for i, v in enumerate(inputs) if i % 4]
    before = _distance(reference, graph, signature, held)
    kept = {n.name: _bias(graph, n).detach().clone() for n in nodes}
    means = _means(reference, signature, used, {n.name: probe.LINEAR[str(n.target)][1] for n in nodes})
    channels = 0
    for number, node in enumerate(nodes):
        axis = probe.LINEAR[str(node.target)][1]
        error = means[node.name] - _means(graph, signature, used, {node.name: axis})[node.name]
        delta = arithmetic.correction(error, np.ones(error.shape[1]))
        _bias(graph, node).data += _bias(graph, node).new_tensor(delta)
        channels += int(np.count_nonzero(delta))
        progress("correcting biases", (number + 1) / len(nodes))
    after = _distance(reference, graph, signature, held)
    if after <= before:
        for node in nodes:
            _bias(graph, node).data = kept[node.name]
    return {
        "kept": after > before,
        "held_out_snr_db": [before, after],
        "channels": channels,
        "runs": (len(nodes) + 1) * len(used) + 4 * len(held),
    }


def _bias(graph: Any, node: Any) -> Any:
    """Return the float bias that only this node reads, None where there is none."""
    place = probe.LINEAR[str(node.target)][0]
    source = node.args[place] if len(node.args) > place else None
    if source is None or source.op != "get_attr" or len(source.users) > 1:
        return None
    found: Any = graph
    for part in str(source.target).split("."):
        found = getattr(found, part)
    return found if found.is_floating_point() else None


def _means(graph: Any, signature: Signature, inputs: list[Any], axes: dict[str, int]) -> dict[str, Any]:
    """Return each layer's mean output per sample and channel, [N, C]."""
    rows: dict[str, list[Any]] = {name: [] for name in axes}
    for values in inputs:
        for name, value in probe.values(graph, signature, values, set(axes)).items():
            channels = np.moveaxis(value.astype(np.float64), axes[name], -1)
            rows[name].append(channels.reshape(-1, channels.shape[-1]).mean(axis=0))
    return {name: np.stack(found) for name, found in rows.items()}


def _distance(reference: Any, graph: Any, signature: Signature, inputs: list[Any]) -> float:
    lost = noise.Noise()
    for values in inputs:
        lost.add(probe.outputs(graph, signature, values), probe.outputs(reference, signature, values))
    return lost.snr_db
