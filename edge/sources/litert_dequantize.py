"""An integer `.tflite` as a float model again, where its user asks for that: each stored value becomes its real one."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.errors import SourceError
from edge.findings import Finding
from edge.sources.carrier import prune, replace_tensor
from edge.sources.litert_fold import real_value
from edge.targets.litert import edit
from edge.targets.litert import flatbuffer as fb

_INTEGERS = ("int4", "int8", "uint8", "int16", "int32", "int64")
# Their integer form has steps of its own (gates at other scales) that their float form has not.
_OWN_ARITHMETIC = {"UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "SVDF"}


def dequantize(model: Any, where: str) -> tuple[Finding, ...]:
    """Turn the integer tensors of the main graph that have a scale into float32; QUANTIZE and DEQUANTIZE go.

    real = scale * (stored - zero_point), also for int32 biases. Inputs and outputs become float32. What rounding took
    from the weights stays lost. Raises SourceError for operators whose integer form is not their float one.
    """
    graph = fb.graph(model)
    scaled = [t for t in graph.tensors if t.quantization is not None and t.dtype in _INTEGERS]
    if all(t.is_constant for t in scaled):
        return ()
    if odd := sorted({op.name for op in graph.ops} & _OWN_ARITHMETIC):
        raise SourceError(
            f"{where} has an integer {', '.join(odd)}, which has no float form with the same steps.",
            hint="Give the float model that it was made of.",
        )
    main = model.subgraphs[0]
    for tensor in scaled:
        target = main.tensors[tensor.index]
        if tensor.is_constant:
            edit.set_constant(model, target, real_value(model, graph, tensor, where))
        target.type, target.quantization = fb.dtype_code("float32"), None
    _remove_steps(model, graph)
    prune(model)
    return (
        Finding(
            rule="DEQUANTIZED",
            severity="warning",
            message=f"The file is quantized already: {len(scaled)} tensors were brought back to float32, with the "
            "rounding that they have.",
            fix="The float model that the file was made of is more exact.",
        ),
    )


def _remove_steps(model: Any, graph: fb.Graph) -> None:
    """Let the readers of each QUANTIZE and DEQUANTIZE read its input."""
    dead = [op.index for op in graph.ops if op.name in ("QUANTIZE", "DEQUANTIZE")]
    main = model.subgraphs[0]
    for index in dead:
        op = main.operators[index]
        replace_tensor(model, int(op.outputs[0]), int(op.inputs[0]))
    main.operators = [op for i, op in enumerate(main.operators) if i not in dead]
    for op in main.operators:
        op.intermediates = None
    for name, value in (("inputs", main.inputs), ("outputs", main.outputs)):
        setattr(main, name, np.asarray(value, np.int32))
