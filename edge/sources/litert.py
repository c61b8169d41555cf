"""Source: a float `.tflite` file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import ConfigError, SourceError
from edge.findings import Finding
from edge.signature import Signature, TensorSpec
from edge.sources import declared
from edge.sources.base import Declaration, LoadedSource
from edge.sources.carrier import check_operators, set_signature, signature_tensors
from edge.sources.interpret import FloatRunner
from edge.sources.litert_dequantize import dequantize
from edge.sources.litert_fold import choose_signature, fix_shapes, fold_weights, refuse_finished
from edge.sources.sniff import sniff
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class LiteRTSource:
    """Float LiteRT flatbuffers."""

    kind: str = "litert"
    packages: tuple[str, ...] = ("ai_edge_litert",)

    def matches(self, location: str) -> bool:
        """Tell whether the file has the flatbuffer's identifier."""
        return sniff(location) == "tflite"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Read the file. Raises SourceError for a damaged, quantized or compiled one and for foreign operators."""
        path = Path(location)
        model = fb.load(path)
        floated = dequantize(model, location) if declaration.dequantize else ()
        refuse_finished(model, location)
        check_operators(model, location, SourceError)
        chosen = choose_signature(model, declaration.signature, location)
        findings = [*floated, *chosen, *fold_weights(model, location)]
        signature, more = _contract(model, declaration)
        return LoadedLiteRT(
            digest=declared.file_digest(path),
            signature=signature,
            findings=(*findings, *more, *_state(model)),
            tools=declared.versions("ai-edge-litert"),
            program=fb.dump(model),
        )


@dataclass(frozen=True, kw_only=True)
class LoadedLiteRT:
    """A float flatbuffer with one signature and fixed shapes, kept as bytes in `program`."""

    digest: str
    signature: Signature
    findings: tuple[Finding, ...]
    tools: Mapping[str, str]
    program: bytes
    kind: str = "litert"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the file on the reference kernels, or the optimized ones where an operator has no reference kernel."""
        return _runner(self).run(inputs)

    def to_litert(self, path: Path) -> None:
        """Write the flatbuffer."""
        path.write_bytes(self.program)


@functools.lru_cache(maxsize=1)
def _runner_of(program: bytes, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> FloatRunner:
    return FloatRunner(program, inputs, outputs)


def _runner(loaded: LoadedLiteRT) -> FloatRunner:
    inputs, outputs = (tuple(t.name for t in side) for side in (loaded.signature.inputs, loaded.signature.outputs))
    return _runner_of(loaded.program, inputs, outputs)


def _ends(model: Any) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return names and tensors of the graph's inputs and outputs: the signature's, else those of the tensors."""
    graph = fb.graph(model)
    ends = []
    for side, indices in enumerate((graph.inputs, graph.outputs)):
        if model.signatureDefs:
            ends.append(list(signature_tensors(model)[side].items()))
        else:
            names = declared.unique(_plain(graph.tensors[i].name) for i in indices)
            ends.append(list(zip(names, indices, strict=True)))
    return ends[0], ends[1]


def _plain(name: str) -> str:
    """Return a tensor's name without what converters add: `serving_default_image:0` is `image`."""
    return name.removeprefix("serving_default_").removesuffix(":0")


def _contract(model: Any, declaration: Declaration) -> tuple[Signature, list[Finding]]:
    inputs, outputs = _ends(model)
    wishes = declared.inputs_of(declaration, [n for n, _ in inputs])
    names = declared.output_names(declaration, [n for n, _ in outputs])
    tensors = fb.graph(model).tensors
    findings: list[Finding] = []
    shapes = []
    for (name, index), wish in zip(inputs, wishes, strict=True):
        declared.check_dtype(name, tensors[index].dtype, wish.dtype)
        shapes.append(declared.static_shape(name, tensors[index].signature_shape, wish.shape))
        findings += declared.batch_finding(name, tensors[index].signature_shape)
    set_signature(model, inputs, [(n, i) for n, (_, i) in zip(names, outputs, strict=True)])
    fix_shapes(model, shapes)
    tensors = fb.graph(model).tensors
    specs = [
        _spec(name, tensors[index], declared.default_layout(tensors[index].shape, tensors[index].dtype, wish.layout))
        for (name, index), wish in zip(inputs, wishes, strict=True)
    ]
    results = [
        _spec(name, tensors[i], declared.default_layout(tensors[i].shape, tensors[i].dtype))
        for name, (_, i) in zip(names, outputs, strict=True)
    ]
    return declared.signature(declaration, specs, results), findings


def _spec(name: str, tensor: fb.Tensor, layout: Any) -> TensorSpec:
    if 0 in tensor.shape:
        raise ConfigError(f"The tensor {name!r} has the empty shape {list(tensor.shape)}.")
    return declared.tensor(name, tensor.shape, tensor.dtype, layout)


def _state(model: Any) -> list[Finding]:
    names = [t.name for t in fb.graph(model).tensors if t.is_variable]
    if not names:
        return []
    return [
        Finding(
            rule="STATE_RESET",
            severity="warning",
            op=names[0],
            message=f"{len(names)} tensors keep their values between calls (fused LSTM); here each call starts from 0.",
            fix="In the app, reset the interpreter's variables before each call.",
        )
    ]
