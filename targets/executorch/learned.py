"""Programs that bring learned scales: their pairs of quantize and dequantize operators are what is lowered."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edge.errors import QuantizationError
from edge.findings import Finding
from edge.targets import torch_fake_quant

if TYPE_CHECKING:
    from edge.calibration.recipe import Recipe

_MOVERS = frozenset({"reshape", "view", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"})


def paired(program: Any, recipe: Recipe) -> tuple[Any, Finding]:
    """Return a graph module whose learned scales are int8 operators, weights stored as integers, and what was kept.

    Raises QuantizationError for a recipe that would replace them.
    """
    if recipe.estimator != "minmax" or recipe.refinements or recipe.overrides:
        what = "its overrides" if recipe.overrides else recipe.name
        raise QuantizationError(
            f"The network was trained with fake quantization, and {what} would replace its learned scales.",
            hint="Use the recipe int8, which keeps them, or give the float network without fake quantization.",
        )
    graph = copy.deepcopy(program).module(check_guards=False)
    _drop_idle(graph)
    torch_fake_quant.rewrite(graph)
    total = sum(1 for _ in torch_fake_quant.learned(graph))
    stored = _store_weights(graph)
    _fold_constants(graph)
    _move_weights(graph)
    _before_movers(graph)
    _one_per_reader(graph)
    return graph, Finding(
        rule="LEARNED_SCALES",
        severity="info",
        message=f"The network was trained with fake quantization: all of its {total} learned scales "
        f"({total - stored} of activations, {stored} of weights) are kept exactly. What has none stays float.",
    )


def _drop_idle(graph: Any) -> None:
    """Drop assertions on dtypes, and casts to the dtype that there is: they part weights from what reads them."""
    for node in reversed(list(graph.graph.nodes)):
        name = str(node.target)
        if name == "aten._assert_tensor_metadata.default":
            graph.graph.erase_node(node)
        elif name.startswith("aten.to.") and node.args and _dtype(node) == _dtype(node.args[0]) is not None:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _dtype(node: Any) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _store_weights(graph: Any) -> int:
    """Let dequantize operators of weights read stored integers; return how many there are."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or "quantized_decomposed.quantize_per" not in str(node.target):
            continue
        value = torch_fake_quant.constant(graph, node)
        if value is None:
            continue
        # XNNPACK has no tensors without dimensions; one dimension of 1 broadcasts alike.
        name = torch_fake_quant.register(graph, f"_{node.name}_stored", value if value.dim() else value.reshape(1))
        with graph.graph.inserting_before(node):
            made = graph.graph.get_attr(name)
        node.replace_all_uses_with(made)
        count += 1
    _clean(graph)
    return count


def _fold_constants(graph: Any) -> None:
    """Compute what depends on constants only, such as a reshaped bias: delegates take constants as they are."""
    import torch

    for node in list(graph.graph.nodes):
        if node.op != "call_function" or "quantized_decomposed" in str(node.target) or not _of_constants(node):
            continue
        value = torch_fake_quant.constant(graph, node)
        if isinstance(value, torch.Tensor):
            _become(graph, node, value)
    _clean(graph)


def _of_constants(node: Any) -> bool:
    given = node.all_input_nodes
    return bool(given) and all(n.op == "get_attr" for n in given)


def _become(graph: Any, node: Any, value: Any) -> Any:
    with graph.graph.inserting_before(node):
        made = graph.graph.get_attr(torch_fake_quant.register(graph, f"_{node.name}_stored", value.contiguous()))
    node.replace_all_uses_with(made)
    return made


def _before_movers(graph: Any) -> None:
    """Quantize before what only moves values too, in the same steps: XNNPACK moves no floats into an int8 tensor."""
    q = torch_fake_quant.operators()
    for node in reversed(list(graph.graph.nodes)):
        if node.target is not q.quantize_per_tensor.default or not _moves(node.args[0]):
            continue
        mover, settings = node.args[0], tuple(node.args[1:])
        source = mover.args[0]
        if source.op == "call_function" and source.target is q.dequantize_per_tensor.default:
            continue
        with graph.graph.inserting_before(mover):
            stored = graph.graph.call_function(q.quantize_per_tensor.default, (source, *settings))
            mover.replace_input_with(
                source, graph.graph.call_function(q.dequantize_per_tensor.default, (stored, *settings))
            )
    _clean(graph)


def _moves(node: Any) -> bool:
    name = str(node.target).removeprefix("aten.").split(".")[0]
    return node.op == "call_function" and name in _MOVERS and len(node.users) == 1


def _one_per_reader(graph: Any) -> None:
    """Give each reader a dequantize operator of its own, as PT2E does: a shared one ties partitions into a cycle."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or "quantized_decomposed.dequantize_per" not in str(node.target):
            continue
        for reader in list(node.users)[1:]:
            with graph.graph.inserting_before(reader):
                reader.replace_input_with(node, graph.graph.node_copy(node))
    _clean(graph)


def _clean(graph: Any) -> None:
    """Drop operators and values that nothing reads."""
    graph.graph.eliminate_dead_code()
    read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for name, _ in (*graph.named_buffers(), *graph.named_parameters()):
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    graph.recompile()


def _move_weights(graph: Any) -> None:
    """Store weights as their reader wants them: transposed integers, and a product with a matrix as a linear layer."""
    import torch

    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if _is_product(graph, node):
            turned = _transposed(graph, node.args[1], (1, 0))
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.call_function(aten.linear.default, (node.args[0], turned)))
        elif (order := _order(graph, node)) is not None:
            node.replace_all_uses_with(_transposed(graph, node.args[0], order))
    _clean(graph)


def _is_product(graph: Any, node: Any) -> bool:
    import torch

    kinds = (torch.ops.aten.matmul.default, torch.ops.aten.mm.default)
    return node.target in kinds and _is_stored(node.args[1]) and _stored(graph, node.args[1]).dim() == 2


def _is_stored(node: Any) -> bool:
    called = getattr(node, "op", "") == "call_function" and "quantized_decomposed.dequantize_per" in str(node.target)
    return called and node.args[0].op == "get_attr"


def _stored(graph: Any, node: Any) -> Any:
    return torch_fake_quant.constant(graph, node.args[0])


def _order(graph: Any, node: Any) -> tuple[int, ...] | None:
    """Return the order of dimensions that a node brings stored weights into, None where it is no such node."""
    import torch

    aten = torch.ops.aten
    if not node.args or not _is_stored(node.args[0]):
        return None
    rank = _stored(graph, node.args[0]).dim()
    if node.target in (aten.t.default, aten.numpy_T.default) and rank == 2:
        return (1, 0)
    if node.target is aten.permute.default:
        return tuple(int(d) % rank for d in node.args[1])
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = (int(d) % rank for d in node.args[1:3])
        order[a], order[b] = b, a
        return tuple(order)
    return None


def _transposed(graph: Any, node: Any, order: tuple[int, ...]) -> Any:
    """Return a dequantize operator of the same weights with their dimensions in this order."""
    value = _stored(graph, node).permute(order)
    rest = list(node.args[1:])
    if "per_channel" in str(node.target):
        rest[2] = order.index(int(rest[2]) % value.dim())
    with graph.graph.inserting_before(node):
        held = graph.graph.get_attr(torch_fake_quant.register(graph, f"_{node.name}_turned", value.contiguous()))
    with graph.graph.inserting_after(node):
        return graph.graph.call_function(node.target, (held, *rest))


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
    _fold_constants(graph)
    return graph, Finding(
        rule="LEARNED_SCALES_DROPPED",
        severity="warning",
        message=f"The {count} scales that the network learned with fake quantization are not used: {recipe.name} has "
        "no int8 activations.",
        fix="Use the recipe int8, which keeps them.",
    )
