"""Bring a `.tflite` file that holds compressed weights, several signatures or open shapes to one plain float graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError, SourceError
from edge.findings import Finding
from edge.sources.carrier import prune, replace_tensor
from edge.sources.interpret import interpreter
from edge.targets.litert import edit, learned
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

EDGETPU_OPERATOR = "edgetpu-custom-op"
_STORED = ("int8", "uint8", "int16", "int4")


def refuse_finished(model: Any, where: str) -> None:
    """Raise SourceError for a program that is compiled for the Edge TPU or whose activations are quantized already."""
    for graph in fb.graphs(model):
        if any(op.custom == EDGETPU_OPERATOR for op in graph.ops):
            raise SourceError(
                f"{where} is compiled for the Edge TPU already; build starts from a float model.",
                hint="Give the model that was compiled; `edgekit inspect` reads this one.",
            )
        fake = _between_pairs(graph)
        stored = [t for t in graph.tensors if _is_quantized(t) and not t.is_constant and t.index not in fake]
        dtypes = sorted({t.dtype for t in stored})
        if dtypes:
            raise SourceError(
                f"{where} is already quantized: its activations are {', '.join(dtypes)}; "
                "build starts from a float model.",
                hint="Give the float model that it was made of, or let this one be computed in float again with "
                "--dequantize; `edgekit inspect` reads it as it is.",
            )


def _between_pairs(graph: fb.Graph) -> set[int]:
    """Return the tensors between QUANTIZE and DEQUANTIZE alone: fake quantization, the network computes in float."""
    written = {op.outputs[0] for op in graph.ops if op.name == "QUANTIZE"}
    return written - {t for op in graph.ops if op.name != "DEQUANTIZE" for t in op.inputs} - set(graph.outputs)


def _is_quantized(tensor: fb.Tensor) -> bool:
    return tensor.dtype in _STORED and tensor.quantization is not None


def fold_weights(model: Any, where: str) -> tuple[Finding, ...]:
    """Replace float16 and integer weights by their float32 values; DEQUANTIZE operators on constants go.

    real = scale * (stored - zero_point). In a network with fake quantization integers stay: their scales were learned.
    Raises SourceError for a stored form that is unknown here.
    """
    graph, trained = fb.graph(model), learned.carries(model)
    stored = [
        t for t in graph.tensors if t.is_constant and (t.dtype == "float16" or (_is_quantized(t) and not trained))
    ]
    for tensor in stored:
        target = model.subgraphs[0].tensors[tensor.index]
        edit.set_constant(model, target, real_value(model, graph, tensor, where))
        target.quantization = None
    folded = {t.index for t in stored}
    dead = {op.index for op in graph.ops if op.name == "DEQUANTIZE" and op.inputs[0] in folded}
    for index in dead:
        replace_tensor(model, graph.ops[index].outputs[0], graph.ops[index].inputs[0])
    if dead:
        model.subgraphs[0].operators = [op for i, op in enumerate(model.subgraphs[0].operators) if i not in dead]
    _refuse_unknown(model, where)
    if not stored:
        return ()
    prune(model)
    forms = sorted({t.dtype for t in stored})
    return (
        Finding(
            rule="WEIGHTS_EXPANDED",
            severity="info" if forms == ["float16"] else "warning",
            message=f"{len(stored)} weights are stored as {', '.join(forms)}; they are used as float32.",
            fix=None if forms == ["float16"] else "The float model that the file was made of is more exact.",
        ),
    )


def real_value(model: Any, graph: fb.Graph, tensor: fb.Tensor, where: str) -> Array:
    """Return the float32 values of a constant. Raises SourceError for a stored form that is unknown here."""
    raw = model.subgraphs[0].tensors[tensor.index]
    if raw.sparsity is not None or (_is_quantized(tensor) and raw.quantization.detailsType):
        raise SourceError(
            f"{where} stores the weight {tensor.name!r} sparse or in blocks, which edgekit does not read."
        )
    value = _nibbles(model.buffers[tensor.buffer].data, tensor) if tensor.dtype == "int4" else graph.data(tensor.index)
    if value is None:
        raise SourceError(f"{where} stores the weight {tensor.name!r} in an unknown form ({tensor.dtype}).")
    q = tensor.quantization
    if q is None or tensor.dtype == "float16":
        return value.astype(np.float32)
    shape = [1] * value.ndim
    if q.axis is not None:
        shape[q.axis] = -1
    scale = np.array(q.scale, np.float32).reshape(shape)
    return (scale * (value.astype(np.float32) - np.array(q.zero_point, np.float32).reshape(shape))).astype(np.float32)


def _nibbles(data: Any, tensor: fb.Tensor) -> Array:
    packed = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.int8)
    # The first value stands in the low four bits; arithmetic shifts keep the sign.
    low = np.right_shift(np.left_shift(packed, 4), 4)
    both = np.stack([low, np.right_shift(packed, 4)], axis=1).ravel()
    return both[: tensor.elements].reshape(tensor.shape)


def _refuse_unknown(model: Any, where: str) -> None:
    graph = fb.graph(model)
    odd = sorted({t.dtype for t in graph.tensors if t.dtype in ("float16", "bfloat16", "float64", "complex64")})
    if odd:
        raise SourceError(
            f"{where} computes in {', '.join(odd)}; a float program here has float32 activations.",
            hint="Convert the model with float32 activations (float16 weights are fine).",
        )


def choose_signature(model: Any, wanted: str, where: str) -> tuple[Finding, ...]:
    """Leave one signature, and its subgraph alone. Raises SourceError for a name that is not there."""
    keys = [fb.text(s.signatureKey) for s in model.signatureDefs or []]
    if wanted and wanted not in keys:
        raise SourceError(f"{where} has no signature {wanted!r}; it has {', '.join(keys) or 'none'}.")
    chosen = 0
    if keys:
        key = wanted or ("serving_default" if "serving_default" in keys else keys[0])
        signature = model.signatureDefs[keys.index(key)]
        chosen, signature.subgraphIndex = signature.subgraphIndex, 0
        model.signatureDefs = [signature]
    # The operators that call other subgraphs were refused before.
    model.subgraphs = [model.subgraphs[chosen]]
    if len(keys) < 2 or wanted:
        return ()
    return (
        Finding(
            rule="SIGNATURE_CHOSEN",
            severity="warning",
            message=f"The file has the signatures {', '.join(keys)}; {key!r} is built.",
            fix="Declare `signature` for another one.",
        ),
    )


def fix_shapes(model: Any, shapes: list[tuple[int, ...]]) -> None:
    """Give every tensor of the main graph the concrete shape that it has for these input shapes.

    The interpreter infers them: it resizes the inputs, allocates and, for shapes that are computed, runs once on zeros.
    Raises ConversionError where the graph cannot take the shapes.
    """
    graph = model.subgraphs[0]
    open_shape = any(t.shapeSignature is not None and -1 in list(t.shapeSignature) for t in graph.tensors)
    stale = any(list(graph.tensors[i].shape) != list(s) for i, s in zip(graph.inputs, shapes, strict=True))
    if open_shape or stale:
        inferred = _infer(fb.dump(model), shapes)
        for index, tensor in enumerate(graph.tensors):
            tensor.shape = inferred.get(index, tensor.shape)
    for tensor in graph.tensors:
        tensor.shapeSignature = None


def _infer(program: bytes, shapes: list[tuple[int, ...]]) -> dict[int, list[int]]:
    try:
        runner = interpreter(program, "optimized")
        for detail, shape in zip(runner.get_input_details(), shapes, strict=True):
            runner.resize_tensor_input(detail["index"], list(shape))
        runner.allocate_tensors()
        runner.invoke()
        return {d["index"]: [int(n) for n in d["shape"]] for d in runner.get_tensor_details()}
    except (RuntimeError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise ConversionError(
            f"The model cannot take inputs of {', '.join(str(list(s)) for s in shapes)}: {first[:300]}",
            hint="Sizes are baked into it; declare the shape that it was made for, or convert it again.",
        ) from error
