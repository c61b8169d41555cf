"""The ways from ONNX to a float flatbuffer, each tried in a child process of its own."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import ConversionError, MissingPackageError
from edge.signature import Signature
from edge.sources import onnx_graph
from edge.sources.base import Declaration
from edge.sources.litert_exported import close
from edge.sources.onnx_file import Description, OnnxReference, describe, read, typed
from edge.sources.torch_io import Call
from edge.sources.torch_model import LoadedTorch
from edge.sources.verify import compare, verify_carrier

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.isolate import Progress

    Array = NDArray[np.generic]

_SEED = 20260102


def attempt(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Convert by one route, verify against onnxruntime on random inputs, and leave the program at `carrier`."""
    path, declaration = Path(request["source"]), codec.from_json(Declaration, request["declaration"])
    model = read(path)
    description = describe(model, declaration)
    progress(f"converting ONNX by {request['route']}", None)
    if "signature" in request:  # of an earlier route, whose layouts stay
        declaration = replace(declaration, decided=codec.from_json(Signature, request["signature"]))
    loaded = opened(model, description, declaration, request["route"])
    inputs, outputs = loaded.turned()
    carrier = Path(request["carrier"])
    loaded.to_litert(carrier)
    reference = OnnxReference(path, description, turned_inputs=inputs, turned_outputs=outputs)
    _verify(loaded, reference, carrier, model, description)
    return {
        "signature": codec.to_json(loaded.signature),
        "findings": [codec.to_json(f) for f in loaded.findings],
        "tools": dict(loaded.tools),
        "turned_inputs": inputs,
        "turned_outputs": outputs,
    }


def attempt_export(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Export by one route to `carrier` in the layouts of `signature`, its module verified against onnxruntime."""
    path, declaration = Path(request["source"]), codec.from_json(Declaration, request["declaration"])
    signature = codec.from_json(Signature, request["signature"])
    model = read(path)
    description = describe(model, declaration)
    loaded = opened(model, description, replace(declaration, decided=signature), request["route"])
    inputs, outputs = loaded.turned()
    reference = OnnxReference(path, description, turned_inputs=inputs, turned_outputs=outputs)
    samples = [random_inputs(loaded.signature, k) for k in range(2)]
    expected = [typed(reference.run(s), loaded.signature) for s in samples]
    if wrong := [d for d in compare(expected, [loaded.run(s) for s in samples]) if not d.accepted]:
        where = _first_difference(loaded, model, description, loaded.tensors(samples[0]))
        raise ConversionError(f"The module made of the ONNX model computes something else. {wrong[0]}. {where}")
    found = loaded.to_exported(Path(request["carrier"]), progress)
    return {"findings": [codec.to_json(f) for f in found], "tools": dict(loaded.tools)}


def culprit(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Stage: find the first operator that differs from onnxruntime's on `inputs` (an npz in order)."""
    path, declaration = Path(request["source"]), codec.from_json(Declaration, request["declaration"])
    signature = codec.from_json(Signature, request["signature"])
    model = read(path)
    description = describe(model, declaration)
    progress("looking for the first operator that differs", None)
    loaded = opened(model, description, replace(declaration, decided=signature), request["route"])
    with np.load(request["inputs"], allow_pickle=False) as stored:
        sample = {t.name: stored[f"arr_{i}"] for i, t in enumerate(signature.inputs)}
    return {"where": _first_difference(loaded, model, description, loaded.tensors(sample))}


class OnnxTorch(LoadedTorch):
    """A PyTorch form of an ONNX model."""

    def tensors(self, sample: Mapping[str, Array]) -> list[Any]:
        """Return an input of the signature as the module takes it: in the file's layouts and dtypes."""
        import torch

        found = []
        for name, like in zip(self._call.names, self._call.tensors, strict=True):
            value = np.asarray(sample[name])
            if self._turned(("input", name)):
                value = np.moveaxis(value, -1, 1)
            found.append(torch.from_numpy(np.array(value, order="C")).to(like.dtype))
        return found

    def turned(self) -> tuple[list[str], list[str]]:
        """Return the inputs and outputs that are channel-first in the file and channel-last in the program."""
        return tuple(  # type: ignore[return-value]
            [t.name for t in specs if self._turned((side, t.name))]  # type: ignore[arg-type]
            for side, specs in (("input", self.signature.inputs), ("output", self.signature.outputs))
        )

    @property
    def module(self) -> Any:
        """The module, positional tensors to a dict of tensors."""
        return self._module


def opened(model: Any, description: Description, declaration: Declaration, route: str) -> OnnxTorch:
    """Return the model as a PyTorch module by one route. Raises ConversionError, MissingPackageError."""
    module = _MODULES[route](model, description)
    tensors = tuple(onnx_graph.example(i.shape, i.dtype) for i in description.free)
    names = tuple(i.name for i in description.free)
    layouts = tuple(i.layout for i in description.free)
    structure = _positional(len(tensors))
    call = Call(names, tensors, layouts, tensors, tuple(range(len(tensors))), structure)
    # Declared shapes and values are in the description already.
    inputs = {n: d for n, d in _by_name(declaration, description).items() if n in names}
    free = replace(declaration, inputs=inputs, outputs=())
    return OnnxTorch(module, call, free, digest="", findings=(), kind="onnx")


def _by_name(declaration: Declaration, description: Description) -> Mapping[str, Any]:
    positions = {str(k): i.name for k, i in enumerate(description.inputs)}
    return {positions.get(k, k): v for k, v in declaration.inputs.items()}


def _positional(count: int) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_flatten(((0,) * count, {}))[1]


def _by_onnx2torch(model: Any, description: Description) -> Any:
    """Return the module of onnx2torch, through TorchScript: its own modules branch on sizes, which export refuses."""
    import torch

    from edge.sources.torchscript_convert import exported

    _stub_torchvision()
    try:
        import onnx2torch
    except ImportError as error:
        raise MissingPackageError(
            "The route needs the package onnx2torch, which is not installed.", hint="pip install --no-deps onnx2torch"
        ) from error
    if any(i.value is not None for i in description.inputs):
        raise ConversionError("onnx2torch cannot fix the value of an input.")
    tensors = tuple(onnx_graph.example(i.shape, i.dtype) for i in description.inputs)
    try:
        module = onnx2torch.convert(model).eval()
        program = exported(torch.jit.trace(module, tensors, check_trace=False), tensors)
    except Exception as error:  # it raises NotImplementedError for operators, and what torch raises
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise ConversionError(f"onnx2torch failed: {type(error).__name__}: {text[:300]}") from error
    names = [name for _, name in description.outputs]

    class Named(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.program = program

        def forward(self, *given: Any) -> dict[str, Any]:
            results = self.program(*given)
            flat = results if isinstance(results, (tuple, list)) else (results,)
            return dict(zip(names, flat, strict=True))

    return Named()


def _stub_torchvision() -> None:
    """Stand in for torchvision, which onnx2torch imports for two operators that no program can have."""
    import importlib.util

    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    package, operators = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    for name in ("nms", "box_convert", "roi_align"):
        setattr(operators, name, None)
    package.ops = operators  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": package, "torchvision.ops": operators})


_MODULES = {"graph": onnx_graph.build, "onnx2torch": _by_onnx2torch}


class _Subject:
    """What `verify_carrier` compares with: the signature of the program, the outputs of onnxruntime."""

    def __init__(self, loaded: LoadedTorch, reference: OnnxReference) -> None:
        self.kind, self.digest, self.findings, self.tools = "onnx", "", loaded.findings, loaded.tools
        self.signature, self._reference = loaded.signature, reference

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return typed(self._reference.run(inputs), self.signature)

    def to_litert(self, path: Path) -> None:
        raise NotImplementedError


def random_inputs(signature: Signature, number: int) -> dict[str, Array]:
    """Return inputs to verify with: 0 to 1, and small integers."""
    random = np.random.default_rng((_SEED, number))
    return {
        t.name: random.random(t.shape, np.float32)
        if t.dtype == "float32"
        else random.integers(0, 2, t.shape).astype(t.dtype)
        for t in signature.inputs
    }


def _verify(loaded: OnnxTorch, reference: OnnxReference, carrier: Path, model: Any, description: Description) -> None:
    samples = [random_inputs(loaded.signature, k) for k in range(2)]
    try:
        loaded.findings += verify_carrier(_Subject(loaded, reference), carrier, samples)
    except ConversionError as error:
        where = _first_difference(loaded, model, description, loaded.tensors(samples[0]))
        raise ConversionError(f"{error.message} {where}", hint=error.hint) from error


def _first_difference(loaded: OnnxTorch, model: Any, description: Description, tensors: list[Any]) -> str:
    """Return a sentence on the first operator whose PyTorch form differs from onnxruntime's result."""
    import torch

    from edge.sources.onnx_file import session

    module = loaded.module
    if not hasattr(module, "replay") or model.ByteSize() > 2**30:
        return "Which operator is at fault is not known."
    copy = type(model)()
    copy.CopyFrom(model)
    have = {o.name for o in copy.graph.output}
    named = [o for n in copy.graph.node for o in n.output if o and o not in have]
    copy.graph.output.extend(type(copy.graph.output[0])(name=o) for o in named)
    free = iter(tensors)
    feed = {i.source: i.constant() if i.value is not None else _fed(next(free), i.dtype) for i in description.inputs}
    values = dict(zip([*have, *named], session(copy.SerializeToString()).run([*have, *named], feed), strict=True))
    with torch.no_grad():
        for node, results in module.replay(module.start(tensors)):
            for name, tensor in results:
                expected = np.asarray(values.get(name)) if name in values else None
                if expected is not None and not close(expected, tensor.numpy()):
                    return f"The first operator that differs is {node.kind} (node {node.name!r}, tensor {name!r})."
    return "Each operator alone gives onnxruntime's result; the conversion of the whole PyTorch graph is at fault."


def _fed(tensor: Any, dtype: str) -> Array:
    array: Array = tensor.numpy()
    return array.astype(dtype, copy=False)
