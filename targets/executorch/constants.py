"""What a graph computes of constants alone becomes a constant: delegates look for weights, not for their making.

Converters leave such operators behind: a bias that is reshaped, a kernel that is transposed at each run.
"""

from __future__ import annotations

from typing import Any

from edge.targets import torch_fake_quant

# Operators with a weight and a bias, at these places among their arguments.
_LAYERS = ("aten.linear.", "aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose")
_WEIGHT, _BIAS = 1, 2


def fold(program: Any) -> Any | None:
    """Return the graph module of an ExportedProgram with its constant operators evaluated, None where it has none.

    Left alone are random operators, those with effects and what they change, results larger than what they are made
    of (a broadcast), and graphs with fake quantization, whose operators on weights are a part of the model.
    """
    if torch_fake_quant.marks(program.graph):
        return None
    module = program.module(check_guards=False)
    known: dict[Any, Any] = {}
    made: list[Any] = []
    changed = _changed_in_place(module.graph)
    for node in module.graph.nodes:
        value = None if node in changed else _value(module, node, known)
        if value is None:
            continue
        known[node] = value
        if node.op == "call_function":
            made.append(node)
    replaced = [n for n in made if any(user not in known for user in n.users)]
    for number, node in enumerate(replaced):
        _replace(module, node, known[node], f"edgekit_constant_{number}")
    if not replaced:
        return None
    module.graph.eliminate_dead_code()
    module.recompile()
    return without_unused(module)


def _value(module: Any, node: Any, known: dict[Any, Any]) -> Any | None:
    """Return the tensor of a node that depends on constants alone, None for any other."""
    import torch

    if node.op == "get_attr":
        found = _attribute(module, str(node.target))
        return found.detach() if isinstance(found, torch.Tensor) else None
    sources = node.all_input_nodes
    if node.op != "call_function" or not sources or not _pure(node.target) or not all(s in known for s in sources):
        return None
    arguments, named = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
    with torch.no_grad():
        result = node.target(*arguments, **named)
    if not isinstance(result, torch.Tensor) or result.numel() > sum(known[s].numel() for s in sources):
        return None
    return result


def _changed_in_place(graph: Any) -> set[Any]:
    """Return the values that an operator writes over, and all that they may be views of: each run needs them anew."""
    import torch

    waiting = []
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            for given, argument in zip(node.args, node.target._schema.arguments, strict=False):
                if (
                    isinstance(given, torch.fx.Node)
                    and argument.alias_info is not None
                    and argument.alias_info.is_write
                ):
                    waiting.append(given)
    found: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node not in found and node.op == "call_function":
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _pure(target: Any) -> bool:
    import torch

    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags


def _attribute(module: Any, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute, None)


def _replace(module: Any, node: Any, value: Any, name: str) -> None:
    module.register_buffer(name, value.clone().contiguous())
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)


def without_unused(graph: Any) -> Any:
    """Return the graph module without parameters and buffers that nothing reads: they would go into the program."""
    used = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    held = [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]
    for name in held:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    return graph


def separate(graph: Any) -> Any:
    """Give each layer of a graph module a bias of its own and, where several read one, each convolution its weight.

    Converters share equal constants. Quantizers leave a convolution float whose weight or bias another has already, and
    XNNPACK stores a bias once, in the steps of its first reader: the others would compute with a wrong one.
    """
    taken: set[str] = set()
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith(_LAYERS):
            continue
        for place in (_WEIGHT, _BIAS):
            held: Any = node.args[place] if len(node.args) > place else None
            if getattr(held, "op", None) != "get_attr":
                continue
            if (name := str(held.target)) not in taken:
                taken.add(name)
            elif place == _BIAS or "conv" in str(node.target):
                _own(graph, node, place, _attribute(graph, name))
    graph.recompile()
    return graph


def _own(module: Any, node: Any, place: int, value: Any) -> None:
    """Let one argument of a node read a copy of its constant."""
    name = torch_fake_quant.register(module, f"edgekit_own_{node.name}_{place}", value)
    with module.graph.inserting_before(node):
        copy = module.graph.get_attr(name)
    copy.meta = dict(node.args[place].meta)
    node.update_arg(place, copy)
