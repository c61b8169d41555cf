"""The signature of a flatbuffer: names from its SignatureDef, else from its tensors; dtypes, shapes, quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edge.errors import SourceError
from edge.signature import DTYPES, Signature, TensorSpec
from edge.targets.litert import flatbuffer

DEFAULT_KEY = "serving_default"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Names of a subgraph's inputs and outputs mapped to tensor indices, in order."""

    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]
    from_signature: bool


def contract_of(model: Any) -> Contract:
    """Return the contract of a checked `ModelT`: its `serving_default` signature, else its first, else subgraph 0."""
    signatures = list(model.signatureDefs or ())
    keys = [flatbuffer.text(s.signatureKey) for s in signatures]
    if signatures:
        chosen = signatures[keys.index(DEFAULT_KEY) if DEFAULT_KEY in keys else 0]
        return Contract(
            subgraph=chosen.subgraphIndex,
            inputs={flatbuffer.text(t.name): int(t.tensorIndex) for t in chosen.inputs or ()},
            outputs={flatbuffer.text(t.name): int(t.tensorIndex) for t in chosen.outputs or ()},
            from_signature=True,
        )
    graph = model.subgraphs[0]
    return Contract(
        subgraph=0,
        inputs=_named(graph, graph.inputs),
        outputs=_named(graph, graph.outputs),
        from_signature=False,
    )


def _named(graph: Any, tensors: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for position, tensor in enumerate(() if tensors is None else tensors):
        name = flatbuffer.text(graph.tensors[tensor].name) or f"tensor_{position}"
        found[name if name not in found else f"{name}_{position}"] = int(tensor)
    return found


def _spec(name: str, tensor: flatbuffer.Tensor) -> TensorSpec:
    if tensor.dtype not in DTYPES:
        raise SourceError(
            f"The tensor {name!r} has dtype {tensor.dtype}; accepted at a program's ends: {', '.join(DTYPES)}.",
            hint="Move the part of the model that needs this dtype out of it.",
        )
    return TensorSpec(
        name=name, shape=tensor.signature_shape, dtype=tensor.dtype, quantization=tensor.quantization, layout="other"
    )


def signature_of(model: Any, base: Signature | None = None) -> Signature:
    """Return the signature of a checked `ModelT`.

    `base` (the float model's) gives order, layouts, preprocessing and labels where its names are the program's.
    Raises SourceError for a program without inputs or outputs, or with a dtype that no input can have.
    """
    contract = contract_of(model)
    graph = flatbuffer.graph(model, contract.subgraph)
    if not contract.inputs or not contract.outputs:
        raise SourceError(
            "The program has no inputs or no outputs.", hint="Convert the model again with example inputs."
        )
    inputs = tuple(_spec(name, graph.tensors[t]) for name, t in contract.inputs.items())
    outputs = tuple(_spec(name, graph.tensors[t]) for name, t in contract.outputs.items())
    if base is None:
        return Signature(inputs=inputs, outputs=outputs)
    return base.with_tensors(_ordered(inputs, base.inputs), _ordered(outputs, base.outputs))


def _ordered(found: tuple[TensorSpec, ...], base: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    by_name = {t.name: t for t in found}
    if set(by_name) != {t.name for t in base}:
        raise SourceError(
            f"The program has the tensors {', '.join(by_name)}; its signature says {', '.join(t.name for t in base)}."
        )
    return tuple(replace(by_name[t.name], layout=t.layout) for t in base)
