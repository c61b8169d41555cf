"""Programs that bring learned scales: their pairs of quantize and dequantize operators are what is lowered."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edge.errors import QuantizationError
from edge.findings import Finding
from edge.targets import torch_fake_quant

if TYPE_CHECKING:
    from edge.calibration.recipe import Recipe


def paired(program: Any, recipe: Recipe) -> tuple[Any, Finding]:
    """Return a graph module whose learned scales are int8 operators, weights stored as integers, and what was kept.

    Raises QuantizationError for a recipe that would replace them.
    """
    if recipe.estimator != "minmax" or recipe.overrides:
        what = "its overrides" if recipe.overrides else recipe.name
        raise QuantizationError(
            f"The network was trained with fake quantization, and {what} would replace its learned scales.",
            hint="Use the recipe int8, which keeps them, or give the float network without fake quantization.",
        )
    graph = copy.deepcopy(program).module(check_guards=False)
    torch_fake_quant.rewrite(graph)
    total = sum(1 for _ in torch_fake_quant.learned(graph))
    stored = _store_weights(graph)
    return graph, Finding(
        rule="LEARNED_SCALES",
        severity="info",
        message=f"The network was trained with fake quantization: all of its {total} learned scales "
        f"({total - stored} of activations, {stored} of weights) are kept exactly. What has none stays float.",
    )


def _store_weights(graph: Any) -> int:
    """Let dequantize operators of weights read stored integers; return how many there are."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or "quantized_decomposed.quantize_per" not in str(node.target):
            continue
        value = torch_fake_quant.constant(graph, node)
        if value is None:
            continue
        name = torch_fake_quant.register(graph, f"_{node.name}_stored", value)
        with graph.graph.inserting_before(node):
            made = graph.graph.get_attr(name)
        node.replace_all_uses_with(made)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def without(program: Any, recipe: Recipe) -> tuple[Any, Finding]:
    """Return a graph module in float, for a recipe without int8 activations, and the finding that says so."""
    graph = copy.deepcopy(program).module(check_guards=False)
    torch_fake_quant.rewrite(graph)
    count = 0
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and "quantized_decomposed.dequantize_per" in str(node.target):
            quantizer = node.args[0]
            node.replace_all_uses_with(quantizer.args[0])
            count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, Finding(
        rule="LEARNED_SCALES_DROPPED",
        severity="warning",
        message=f"The {count} scales that the network learned with fake quantization are not used: {recipe.name} has "
        "no int8 activations.",
        fix="Use the recipe int8, which keeps them.",
    )
