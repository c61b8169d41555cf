"""What a Core ML package is made of, read from its specification; works on any platform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.errors import ConversionError
from edge.targets.base import Inspection, Operator
from edge.targets.coreml import contract as contracts
from edge.targets.coreml.contract import Contract
from edge.targets.coreml.session import load_model
from edge.targets.torch_common import CONTRACT


def operators(spec: Any) -> list[Operator]:
    """Return the operators of an ML program in order, without constants; nested blocks are further subgraphs."""
    found: list[Operator] = []

    def walk(block: Any, subgraph: int) -> None:
        for op in block.operations:
            if op.type != "const":
                outputs = tuple(v.name for v in op.outputs)
                found.append(Operator(index=len(found), op=op.type, outputs=outputs, subgraph=subgraph))
            for number, inner in enumerate(op.blocks):
                walk(inner, subgraph + number + 1)

    for block in _blocks(spec):
        walk(block, 0)
    return found


def _blocks(spec: Any) -> Iterator[Any]:
    for function in spec.mlProgram.functions.values():
        yield function.block_specializations[function.opset]


def describe(spec: Any) -> dict[str, Any]:
    """Return the features with their kinds, the operator set and the specification's version as JSON data."""
    return {
        "specification_version": spec.specificationVersion,
        "operator_set": next(iter(f.opset for f in spec.mlProgram.functions.values()), None),
        "inputs": {f.name: _kind(f) for f in spec.description.input},
        "outputs": {f.name: _kind(f) for f in spec.description.output},
    }


def _kind(feature: Any) -> dict[str, Any]:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        return {"kind": "image", "width": image.width, "height": image.height, "colour": image.colorSpace}
    if kind == "multiArrayType":
        held = feature.type.multiArrayType
        return {"kind": "array", "shape": list(held.shape), "dtype": held.ArrayDataType.Name(held.dataType)}
    return {"kind": str(kind).removesuffix("Type")}


def inspect_package(path: Path) -> Inspection:
    """Read a package without loading it into Core ML. Raises SourceError for what is no package."""
    model = load_model(path)
    spec = model.get_spec()
    held = model.user_defined_metadata
    signature = contracts.load(held, path.name).signature if CONTRACT in held else None
    kinds = operators(spec)
    return Inspection(
        operators=tuple(kinds),
        parameter_bytes=sum(f.stat().st_size for f in path.rglob("weight.bin")),
        signature=signature,
        details={**describe(spec), "operator_kinds": _counted(kinds)},
    )


def _counted(kinds: list[Operator]) -> dict[str, int]:
    names = sorted({o.op for o in kinds})
    return {name: sum(o.op == name for o in kinds) for name in names}


def check(spec: Any, contract: Contract) -> Mapping[str, Any]:
    """Return `describe` of a specification that has the contract's features; raise ConversionError for another."""
    found = describe(spec)
    wanted = [contract.features[t.name] for t in contract.signature.inputs]
    produced = ["classLabel", contracts.PROBABILITIES]
    if contract.classifier is None:
        produced = [contract.features[t.name] for t in contract.signature.outputs]
    if (sorted(found["inputs"]), sorted(found["outputs"])) != (sorted(wanted), sorted(produced)):
        raise ConversionError(
            f"The package has inputs {', '.join(found['inputs'])} and outputs {', '.join(found['outputs'])}; "
            f"wanted: {', '.join(wanted)} and {', '.join(produced)}.",
            hint="Name the outputs otherwise: an output that is an input, or is returned twice, keeps one name.",
        )
    for t in contract.signature.inputs:
        kind = found["inputs"][contract.features[t.name]]
        if kind["kind"] != ("image" if t.name in contract.images else "array"):
            raise ConversionError(f"The input {t.name!r} is {kind['kind']} in the package.")
        if kind["kind"] == "array" and -1 not in t.shape and kind["shape"] != list(t.shape or (1,)):
            raise ConversionError(
                f"The input {t.name!r} is {kind['shape']} in the package, {list(t.shape)} in the source."
            )
    return found
