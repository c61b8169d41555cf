"""An int8 graph in parts, run by torch: weights only, activations only, and both, to tell which of them loses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Recipe
from edge.errors import UsageError
from edge.isolate import Progress, no_progress
from edge.signature import Signature
from edge.targets import torch_fake_quant
from edge.targets.executorch import carrier, delegates, probe, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.calibration.data import Dataset

_QUANTIZE, _DEQUANTIZE = "quantized_decomposed.quantize_per", "quantized_decomposed.dequantize_per"


class GraphSession:
    """A graph module with the float ends of the signature, run by torch on this host."""

    mode = "emulated"
    not_run: tuple[str, ...] = ()

    def __init__(self, graph: Any, signature: Signature) -> None:
        self.signature, self._graph = signature, graph

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name. Raises DataError for inputs that do not fit."""
        import torch
        from torch.utils import _pytree as pytree

        with torch.no_grad():
            results = self._graph(*carrier.as_tensors(self.signature, inputs))
        return carrier.as_arrays(self.signature, [r for r in pytree.tree_leaves(results) if r is not None])


def rungs(
    path: Path,
    signature: Signature,
    recipe: Recipe,
    options: Mapping[str, Any],
    samples: Dataset,
    progress: Progress = no_progress,
) -> Iterator[tuple[str, GraphSession]]:
    """Yield name and session of each part of a float program's int8 form; `options` is the target's for ExecuTorch.

    Raises UsageError for a network with learned scales, which has no float form of its own to compare with;
    QuantizationError, DataError.
    """
    chain = delegates.chosen(options)
    program, _ = carrier.load(path)
    if torch_fake_quant.marks(program.graph):
        raise UsageError(
            "The network was trained with fake quantization: its weights and activations cannot be told apart here.",
            hint="Diagnose the float network without fake quantization.",
        )
    program = quantize.folded(program, signature)
    made = quantize.converted(program, signature, recipe, chain[0], options.get(chain[0].name, {}), samples, progress)
    yield "weights only", GraphSession(without_activations(made.graph), signature)
    yield "activations only", GraphSession(without_weights(made.graph, made.reference), signature)
    yield "int8, in torch", GraphSession(made.graph, signature)


def without_activations(graph: Any) -> Any:
    """Return a copy of an int8 graph whose activations are float: no pairs of quantize and dequantize around them."""
    changed = copy.deepcopy(graph)
    for node in list(changed.graph.nodes):
        if _calls(node, _DEQUANTIZE) and _calls(node.args[0], _QUANTIZE):
            node.replace_all_uses_with(node.args[0].args[0])
    return _cleaned(changed)


def without_weights(graph: Any, reference: Any) -> Any:
    """Return a copy of an int8 graph whose linear layers have the float weights of the graph that it was made of."""
    changed = copy.deepcopy(graph)
    floats = {n.name: n for n in probe.linear_nodes(reference)}
    for node in probe.linear_nodes(changed):
        stored = node.args[1]
        if node.name not in floats or not _calls(stored, _DEQUANTIZE):
            continue
        source = floats[node.name].args[1]
        source = source.args[0] if source.op == "call_module" else source  # behind its observer
        name = torch_fake_quant.register(changed, f"_{node.name}_float", torch_fake_quant.constant(reference, source))
        with changed.graph.inserting_before(node):
            node.replace_input_with(stored, changed.graph.get_attr(name))
    return _cleaned(changed)


def _calls(node: Any, name: str) -> bool:
    return node.op == "call_function" and name in str(node.target)


def _cleaned(graph: Any) -> Any:
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
