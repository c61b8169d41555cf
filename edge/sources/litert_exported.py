"""Stages between the two carriers: from a float flatbuffer to an exported program, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import ConversionError
from edge.findings import Finding
from edge.signature import Signature
from edge.sources import declared, litert_graph
from edge.sources.interpret import interpreter
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.isolate import Progress

    Array = NDArray[np.generic]


def export(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: write the exported carrier of a float flatbuffer.

    Request: `flatbuffer` (its inputs and outputs in the signature's order), `signature`, `path`. Answer: `findings`,
    `tools`. Raises ConversionError that names an operator without a form in torch.export.
    """
    signature = codec.from_json(Signature, request["signature"])
    progress("exporting the flatbuffer with torch.export", None)
    found = export_flatbuffer(fb.load(Path(request["flatbuffer"])), signature, Path(request["path"]))
    return {"findings": [codec.to_json(f) for f in found], "tools": dict(declared.versions("torch"))}


def export_flatbuffer(model: Any, signature: Signature, path: Path) -> tuple[Finding, ...]:
    """Write the exported carrier of a checked model at `path`."""
    import torch

    from edge.sources import exported
    from edge.targets.executorch import carrier

    module = litert_graph.build(model)
    litert_graph.check_results(module, model)
    examples = [torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in signature.inputs]
    program = exported.export(module, examples, signature.inputs)
    carrier.save(program, signature, path)
    return exported.bounds(program, signature)


def culprit(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: find the first operator of `flatbuffer` whose form in PyTorch differs on `inputs` (an npz in order)."""
    progress("looking for the first operator that differs", None)
    with np.load(request["inputs"], allow_pickle=False) as stored:
        inputs = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    return {"where": first_difference(Path(request["flatbuffer"]).read_bytes(), inputs)}


def first_difference(program: bytes, inputs: Sequence[Array]) -> str:
    """Return a sentence on the first operator whose form in PyTorch differs from LiteRT's kernel on the same inputs.

    Both compute the whole graph; the first tensor in the order of execution that is apart by more than 1e-3 of its
    largest value + 1e-5 is named.
    """
    import torch

    model = fb.load(program)
    graph = fb.graph(model)
    expected = _all_tensors(program, inputs)
    module = litert_graph.build(model)
    with torch.no_grad():
        for op, results in module.replay([torch.from_numpy(np.array(i)) for i in inputs]):
            for index, value in zip(op.outputs, results, strict=True):
                wanted = expected.get(index)
                if wanted is not None and not close(wanted, value):
                    return f"The first operator that differs is {op.name} (tensor {graph.tensors[index].name!r})."
    return "Each operator alone gives LiteRT's result; the export of the whole graph is at fault."


def _all_tensors(program: bytes, inputs: Sequence[Array]) -> dict[int, Array]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter(program, "optimized")  # the package's absence is an error of ours
    runner = Interpreter(
        model_content=program,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
        num_threads=2,
    )
    runner.allocate_tensors()
    for detail, value in zip(runner.get_input_details(), inputs, strict=True):
        runner.set_tensor(detail["index"], value.astype(detail["dtype"], copy=False))
    runner.invoke()
    found = {}
    for detail in runner.get_tensor_details():
        try:
            found[int(detail["index"])] = runner.get_tensor(detail["index"])
        except ValueError:  # a tensor that no kernel filled
            continue
    return found


def close(a: Array, b: Array) -> bool:
    """Tell whether two values differ by rounding only: at most 1e-3 of the largest of `a`, + 1e-5."""
    if a.shape != b.shape:
        return False
    limit = 1e-3 * float(np.abs(a.astype(np.float64)).max(initial=0)) + 1e-5
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=limit, equal_nan=True))


def convert_exported(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: write the flatbuffer of an exported carrier by litert-torch.

    Request: `exported`, `signature` (names and layouts of the result), `path`. Answer: `findings`.
    """
    from edge.sources import registry
    from edge.sources.base import Declaration, InputDeclaration
    from edge.sources.carrier import set_signature

    signature = codec.from_json(Signature, request["signature"])
    progress("converting by litert-torch", None)
    inputs = {str(i): InputDeclaration(layout=t.layout) for i, t in enumerate(signature.inputs)}
    loaded = registry.load(str(request["exported"]), Declaration(inputs=inputs, layout="keep"))
    path = Path(request["path"])
    loaded.to_litert(path)
    model = fb.load(path)
    graph = fb.graph(model)
    if (len(graph.inputs), len(graph.outputs)) != (len(signature.inputs), len(signature.outputs)):
        raise ConversionError(f"litert-torch made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs.")
    set_signature(
        model,
        [(t.name, i) for t, i in zip(signature.inputs, graph.inputs, strict=True)],
        [(t.name, i) for t, i in zip(signature.outputs, graph.outputs, strict=True)],
    )
    path.write_bytes(fb.dump(model))
    return {"findings": [codec.to_json(f) for f in loaded.findings]}
