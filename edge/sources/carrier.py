"""What every route does to the float flatbuffer that a converter wrote: names, order, forbidden operators, pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edge.errors import ConversionError, SourceError
from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

SIGNATURE_KEY = "serving_default"

# Operators that keep state, draw random numbers or call subgraphs: no quantizer and no accelerator here takes them.
_REFUSED = {
    **dict.fromkeys(("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE"), "control flow"),
    **dict.fromkeys(("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"), "a variable that is kept between calls"),
    **dict.fromkeys(("HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE"), "a lookup table"),
    **dict.fromkeys(("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"), "random numbers"),
}


def signature_tensors(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tensor indices of the first signature's inputs and outputs by name."""
    signature = model.signatureDefs[0]
    inputs = {fb.text(e.name): int(e.tensorIndex) for e in signature.inputs or []}
    outputs = {fb.text(e.name): int(e.tensorIndex) for e in signature.outputs or []}
    return inputs, outputs


def set_signature(model: Any, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> None:
    """Give the model exactly one signature with these names and tensors, and the graph's ends the same order.

    The tensors get the names too, where that leaves tensor names unique: quantizers and runtimes show them.
    """
    schema = fb.schema()

    def entries(ends: Sequence[tuple[str, int]]) -> list[Any]:
        maps = []
        for name, index in ends:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            maps.append(entry)
        return maps

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE_KEY, 0
    signature.inputs, signature.outputs = entries(inputs), entries(outputs)
    model.signatureDefs = [signature]
    graph = model.subgraphs[0]
    graph.inputs = [index for _, index in inputs]
    graph.outputs = [index for _, index in outputs]
    _name_tensors(graph, [*inputs, *outputs])


def _name_tensors(graph: Any, ends: Sequence[tuple[str, int]]) -> None:
    renamed = {index: name for name, index in reversed(ends)}  # the first name of a tensor wins
    taken = {fb.text(t.name) for i, t in enumerate(graph.tensors) if i not in renamed}
    for index, name in renamed.items():
        if name not in taken:
            taken.add(name)
            graph.tensors[index].name = name


def refused_operators(model: Any) -> dict[str, str]:
    """Return the operators that no route may leave in a program, each with the reason."""
    found: dict[str, str] = {}
    for graph in fb.graphs(model):
        for op in graph.ops:
            if op.custom is not None:
                flex = op.custom.startswith("Flex")
                found[op.custom] = "a TensorFlow operator (Flex)" if flex else "a custom operator"
            elif op.name in _REFUSED:
                found[op.name] = _REFUSED[op.name]
    return found


def check_operators(model: Any, where: str, error: type[ConversionError] | type[SourceError] = ConversionError) -> None:
    """Raise `error` listing the operators of `refused_operators`."""
    if not (refused := refused_operators(model)):
        return
    listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(refused.items()))
    raise error(
        f"{where} has operators that the targets cannot take: {listed}.",
        hint="Change the model so that it is made of builtin operators without state, or move that part out of it.",
    )


def replace_tensor(model: Any, old: int, new: int) -> None:
    """Let every reader of tensor `old` of the main graph, its ends and signatures included, read `new`."""
    graph = model.subgraphs[0]
    swap = _mapper({old: new})
    for op in graph.operators:
        op.inputs = swap(op.inputs)
    graph.outputs = swap(graph.outputs)
    for signature in model.signatureDefs or []:
        for entry in signature.outputs or []:
            entry.tensorIndex = swap([entry.tensorIndex])[0]


def _mapper(table: Mapping[int, int]) -> Callable[[Iterable[int] | None], list[int]]:
    return lambda indices: [table.get(int(i), int(i)) for i in ([] if indices is None else indices)]


def prune(model: Any) -> None:
    """Remove tensors of the main graph that nothing names, and buffers that no tensor uses. One subgraph only."""
    edit.prune(model)


def transposed_ends(model: Any) -> tuple[set[int], set[int]]:
    """Return the positions of graph inputs read by a TRANSPOSE and of graph outputs written by one."""
    graph = fb.graph(model)
    read = {op.inputs[0] for op in graph.ops if op.name == "TRANSPOSE"}
    written = {op.outputs[0] for op in graph.ops if op.name == "TRANSPOSE"}
    return (
        {i for i, t in enumerate(graph.inputs) if t in read},
        {i for i, t in enumerate(graph.outputs) if t in written},
    )


def turned_series(model: Any) -> tuple[set[int], set[int]]:
    """Return the positions of 3-D graph inputs and outputs that are only turned: [n, channels, length], last to first.

    Convolutions over series are those of images with one row, so a reshape may stand before the TRANSPOSE.
    """
    graph = fb.graph(model)
    producers, consumers = graph.producers(), graph.consumers()
    read = set()
    for position, tensor in enumerate(graph.inputs):
        ops = [graph.ops[i] for i in consumers.get(tensor, [])]
        while len(ops) == 1 and ops[0].name == "RESHAPE" and ops[0].outputs[0] not in graph.outputs:
            ops = [graph.ops[i] for i in consumers.get(ops[0].outputs[0], [])]
        if len(graph.tensors[tensor].shape) == 3 and ops and all(op.name == "TRANSPOSE" for op in ops):
            read.add(position)
    written = {
        position
        for position, tensor in enumerate(graph.outputs)
        if len(graph.tensors[tensor].shape) == 3
        and tensor in producers
        and graph.ops[producers[tensor]].name == "TRANSPOSE"
    }
    return read, written


def count(model: Any, operator: str) -> int:
    """Return how often an operator occurs."""
    return sum(op.name == operator for graph in fb.graphs(model) for op in graph.ops)
