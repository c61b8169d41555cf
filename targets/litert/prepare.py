"""Bring a float flatbuffer to the form that quantizers understand, without changing what it computes.

The passes exist because quantizers read old or unusual files wrongly and without a word: an operator code that stands
only in the deprecated one-byte field is taken for ADD; two tensors of one name share their statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge.calibration import affine
from edge.errors import QuantizationError
from edge.signature import Signature
from edge.targets.litert import contract, edit, flatbuffer, islands
from edge.targets.litert.canonical import canonical_operators

CONTROL_FLOW = frozenset({"WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE"})
_STORED_INTEGERS = frozenset({"int8", "uint8", "int16", "int4", "uint4", "int2"})
_TO_RESHAPE = frozenset({"SQUEEZE", "EXPAND_DIMS"})


def canonical(model: Any, signature: Signature) -> None:
    """Edit a checked float `ModelT` in place: real operator codes, a signature, static shapes, unique tensor names."""
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    _ensure_signature(model, signature)
    if not any(-1 in spec.shape for spec in signature.inputs):
        _static_shapes(model)
    canonical_operators(model)
    _drop_unused_codes(model)
    _unique_names(model)


def quantizable(model: Any, *, static: bool) -> int:
    """Refuse what cannot be quantized, then simplify in place. Raises QuantizationError with the reason.

    `static` says that activations will be quantized too, which needs one plain graph. Returns the number of integer
    weights that were stored in the model and are float now.
    """
    _refuse_quantized(model)
    if static:
        _refuse_control_flow(model)
    restored = _restore_float_weights(model)
    _drop_constant_dequantize(model)
    _refuse_nan(model)
    _drop_float_ranges(model)
    if static:
        islands.write_otherwise(model)
    for graph in model.subgraphs:
        _squeeze_to_reshape(model, graph)
        _general_int16_scales(model, graph)
    _drop_unused_codes(model)
    return restored


def _ensure_signature(model: Any, signature: Signature) -> None:
    if model.signatureDefs:
        return
    schema = flatbuffer.schema()
    graph = model.subgraphs[0]
    entry = schema.SignatureDefT()
    entry.signatureKey, entry.subgraphIndex = contract.DEFAULT_KEY.encode(), 0
    entry.inputs = _tensor_maps([t.name for t in signature.inputs], graph.inputs)
    entry.outputs = _tensor_maps([t.name for t in signature.outputs], graph.outputs)
    model.signatureDefs = [entry]


def _tensor_maps(names: list[str], tensors: Any) -> list[Any]:
    if len(names) != len(tensors):
        raise QuantizationError(f"The signature names {len(names)} tensors where the flatbuffer has {len(tensors)}.")
    made = []
    for name, tensor in zip(names, tensors, strict=True):
        entry = flatbuffer.schema().TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(tensor)
        made.append(entry)
    return made


def _static_shapes(model: Any) -> None:
    for graph in model.subgraphs:
        for tensor in graph.tensors or ():
            tensor.shapeSignature = None


def _unique_names(model: Any) -> None:
    seen: set[str] = set()
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors or ()):
            name = flatbuffer.text(tensor.name) or f"tensor_{index}"
            number = 1
            unique = name
            while unique in seen:
                unique = f"{name};{number}"
                number += 1
            seen.add(unique)
            tensor.name = unique.encode()


def _each_tensor(model: Any, visit: Callable[[Any, flatbuffer.Tensor], None]) -> None:
    for number, graph in enumerate(model.subgraphs):
        view = flatbuffer.graph(model, number)
        for raw, tensor in zip(graph.tensors or (), view.tensors, strict=True):
            visit(raw, tensor)


def _is_scaled(raw: Any, tensor: flatbuffer.Tensor) -> bool:
    q = raw.quantization
    return tensor.dtype in _STORED_INTEGERS and q is not None and q.scale is not None and len(q.scale) > 0


def _refuse_quantized(model: Any) -> None:
    """Refuse integer activations; stored integer weights under float activations (dynamic, weight-only) may be."""
    found: list[str] = []

    def visit(raw: Any, tensor: flatbuffer.Tensor) -> None:
        readable = tensor.quantization is not None and flatbuffer.constant(model, raw) is not None
        if _is_scaled(raw, tensor) and not readable:
            found.append(tensor.name)

    _each_tensor(model, visit)
    if found:
        raise QuantizationError(
            f"The model is quantized already: {len(found)} tensors hold scaled integers, the first is {found[0]!r}.",
            hint="Give the float model that it was made from, or use the recipe float32 to take it as it is.",
        )


def _restore_float_weights(model: Any) -> int:
    """Turn stored float16 and scaled integer constants into float32: quantizers would pass over them."""
    restored: list[str] = []

    def visit(raw: Any, tensor: flatbuffer.Tensor) -> None:
        if not tensor.is_constant:
            return
        values = flatbuffer.constant(model, raw)
        if tensor.quantization is not None and _is_scaled(raw, tensor) and values is not None:
            edit.set_constant(model, raw, affine.dequantize(values, tensor.quantization))
            restored.append(tensor.name)
        elif values is not None and tensor.dtype == "float16":
            edit.set_constant(model, raw, values.astype(np.float32))

    _each_tensor(model, visit)
    return len(restored)


def _drop_constant_dequantize(model: Any) -> None:
    """Let readers of DEQUANTIZE of a constant, which is float by now, read the constant itself."""
    for graph in model.subgraphs:
        renamed: dict[int, int] = {}
        kept = []
        for op in graph.operators or ():
            name, _, _ = flatbuffer.operator_name(model, op)
            if name == "DEQUANTIZE" and flatbuffer.constant(model, graph.tensors[op.inputs[0]]) is not None:
                renamed[int(op.outputs[0])] = int(op.inputs[0])
            else:
                op.inputs = np.asarray([renamed.get(int(t), int(t)) for t in op.inputs], np.int32)
                kept.append(op)
        graph.operators = kept


def _refuse_nan(model: Any) -> None:
    def visit(raw: Any, tensor: flatbuffer.Tensor) -> None:
        if tensor.dtype not in ("float32", "float16") or not tensor.is_constant:
            return
        values = flatbuffer.constant(model, raw)
        if values is not None and values.size and np.isnan(values.min()):
            raise QuantizationError(
                f"The constant {tensor.name!r} holds NaN.",
                hint="The training diverged or the file is damaged; take an earlier checkpoint.",
            )

    _each_tensor(model, visit)


def _refuse_control_flow(model: Any) -> None:
    found = sorted({op.name for view in flatbuffer.graphs(model) for op in view.ops} & CONTROL_FLOW)
    if found:
        raise QuantizationError(
            f"The model has control flow ({', '.join(found)}), whose bodies cannot be calibrated.",
            hint="Unroll loops before converting (Keras: unroll=True; PyTorch through litert-torch unrolls), "
            "or use the recipe dynamic or float16.",
        )
    if len(model.signatureDefs or ()) > 1:
        raise QuantizationError(
            f"The model has {len(model.signatureDefs)} signatures; one can be calibrated.",
            hint="Convert each entry point to a model of its own.",
        )


def _drop_float_ranges(model: Any) -> None:
    """Remove ranges that converters leave at float tensors; quantizers take them for quantization parameters."""

    def visit(raw: Any, tensor: flatbuffer.Tensor) -> None:
        if tensor.dtype == "float32":
            raw.quantization = None

    _each_tensor(model, visit)


def _squeeze_to_reshape(model: Any, graph: Any) -> None:
    for op in graph.operators or ():
        name, _, _ = flatbuffer.operator_name(model, op)
        output = graph.tensors[op.outputs[0]] if len(op.outputs) else None
        if name not in _TO_RESHAPE or output is None or output.shapeSignature is not None:
            continue
        shape = np.asarray(() if output.shape is None else output.shape, np.int32)
        target = edit.add_constant(model, graph, f"{flatbuffer.text(output.name)}/shape", shape)
        op.opcodeIndex = edit.code_index(model, "RESHAPE")
        op.inputs = np.asarray([op.inputs[0], target], np.int32)
        op.builtinOptionsType = flatbuffer.schema().BuiltinOptions.ReshapeOptions
        op.builtinOptions = flatbuffer.schema().ReshapeOptionsT()
        op.builtinOptions.newShape = shape


def _general_int16_scales(model: Any, graph: Any) -> None:
    """Tell int16 ADD and SUB that scales are no powers of 2, as the schema assumes by default; others ignore it."""
    schema = flatbuffer.schema()
    for op in graph.operators or ():
        name, _, _ = flatbuffer.operator_name(model, op)
        if name not in ("ADD", "SUB"):
            continue
        if op.builtinOptions is None:
            op.builtinOptions = schema.AddOptionsT() if name == "ADD" else schema.SubOptionsT()
            kind = schema.BuiltinOptions
            op.builtinOptionsType = kind.AddOptions if name == "ADD" else kind.SubOptions
        op.builtinOptions.potScaleInt16 = False


def _drop_unused_codes(model: Any) -> None:
    """Remove operator codes that no operator uses: a quantizer refuses a file for one that it does not know."""
    operators = [op for graph in model.subgraphs for op in graph.operators or ()]
    used = sorted({op.opcodeIndex for op in operators})
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for op in operators:
        op.opcodeIndex = used.index(op.opcodeIndex)


def drop_dynamic_shapes(quantized: Any, source: Any) -> None:
    """Make a quantized `ModelT` static where its float `source` is: a quantizer may mark dimensions as dynamic."""
    if not any(-1 in t.signature_shape for view in flatbuffer.graphs(source) for t in view.tensors):
        _static_shapes(quantized)
