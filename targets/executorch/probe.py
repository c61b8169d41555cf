"""Look into PT2E graphs: intermediate values of the float form, and what each operator loses of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from edge.calibration.noise import decibels
from edge.signature import Signature
from edge.targets.executorch import carrier

# Linear operators: argument with the bias, axis of the output's channels.
LINEAR = {
    "aten.conv1d.default": (2, 1),
    "aten.conv2d.default": (2, 1),
    "aten.conv3d.default": (2, 1),
    "aten.conv_transpose2d.input": (2, 1),
    "aten.linear.default": (2, -1),
}


@functools.cache
def _watcher() -> Any:
    import torch
    from torchao.quantization.pt2e.observer import ObserverBase

    class Watcher(torch.fx.Interpreter):  # type: ignore[misc]
        """Runs a graph without its observers and hands each result to `see`, whose answer takes its place."""

        def __init__(self, graph: Any, see: Callable[[str, Any], Any]) -> None:
            super().__init__(graph)
            self._see = see

        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            if isinstance(self.fetch_attr(target), ObserverBase):
                return args[0]
            return super().call_module(target, args, kwargs)

        def run_node(self, n: Any) -> Any:
            return self._see(n.name, super().run_node(n))

    return Watcher


def values(graph: Any, signature: Signature, inputs: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the results of some nodes, as arrays, for one sample; observers see nothing of it."""
    found: dict[str, Any] = {}

    def see(name: str, value: Any) -> Any:
        if name in names:
            found[name] = value.detach().numpy().copy()
        return value

    _run(graph, signature, inputs, see)
    return found


def outputs(graph: Any, signature: Signature, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the graph's outputs for one sample, by name."""
    results = _run(graph, signature, inputs, lambda _, value: value)
    return {t.name: r.detach().numpy().copy() for t, r in zip(signature.outputs, results, strict=True)}


def _run(graph: Any, signature: Signature, inputs: Mapping[str, Any], see: Callable[[str, Any], Any]) -> Any:
    import torch

    with torch.no_grad():
        return _watcher()(graph, see).run(*carrier.as_tensors(signature, inputs))


def linear_nodes(graph: Any) -> list[Any]:
    """Return the convolutions and linear layers of a graph in execution order."""
    return [n for n in graph.graph.nodes if n.op == "call_function" and str(n.target) in LINEAR]


def losses(reference: Any, graph: Any, signature: Signature, samples: Iterable[Any]) -> dict[str, float]:
    """Return the signal-to-noise ratio in dB that each linear layer has of its own.

    Every layer gets the float values as its inputs, quantized as the program has it, so that what one loses is not
    counted for the next: one run of each graph per sample for all layers together.
    """
    names = {n.name for n in linear_nodes(reference)} & {n.name for n in linear_nodes(graph)}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for sample in samples:
        wanted = values(reference, signature, sample.inputs, names)

        def forced(name: str, value: Any, wanted: Mapping[str, Any] = wanted) -> Any:
            if name not in wanted:
                return value
            real = value.detach().numpy().astype(np.float64)
            signal = float((wanted[name].astype(np.float64) ** 2).sum())
            ratios[name].append(float(((real - wanted[name]) ** 2).sum()) / max(signal, 1e-30))
            return value.new_tensor(wanted[name])

        _run(graph, signature, sample.inputs, forced)
    return {name: decibels(float(np.mean(found))) for name, found in ratios.items() if found}
