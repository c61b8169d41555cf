"""Dense layers as 1x1 convolutions, before quantizing: the Edge TPU compiler knows one scale per dense weight tensor.

Its convolutions have a scale per output channel. The rewrite is made in the float program, so that the int8 program
that is measured and the one that is compiled are the same. Networks whose classifier is a 1x1 convolution over one
pixel (MobileNet) are mapped throughout by the compiler, reshapes included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.signature import Signature
from edge.targets.edgetpu.normalize_edit import Editor
from edge.targets.litert import flatbuffer, prepare

FILE = "dense-as-convolutions.tflite"
# One scale for all channels costs log2 of this factor in bits; below it the layer stays as it is.
_SPREAD = 1.5
# Rows of the input are pixels of an image one wide; more of them than this no ground truth shows.
_MOST_ROWS = 512


def rewritten(carrier: Path, signature: Signature, folder: Path) -> Path:
    """Return the carrier, or a copy in `folder` with uneven dense layers as convolutions where it has any."""
    model = flatbuffer.load(carrier)
    prepare.canonical(model, signature)  # fixes the batch, which the convolutions' shapes take up
    if not as_convolutions(model):
        return carrier
    path = folder / FILE
    path.write_bytes(flatbuffer.dump(model))
    return path


def as_convolutions(model: Any) -> int:
    """Rewrite the uneven dense layers of a checked float `ModelT` of one subgraph in place; return how many.

    Uneven: the largest weights of two output channels differ by more than 1.5 times.
    """
    if len(model.subgraphs) > 1:
        return 0
    editor = Editor(model)
    done = [op for op in editor.operators("FULLY_CONNECTED", inputs=2) if _rewrite(editor, op)]
    if done:
        editor.remove_dead_operators()
        editor.compact()
    return len(done)


def _rewrite(editor: Editor, op: Any) -> bool:
    weights = editor.constant(op.inputs[1])
    if weights is None or weights.dtype != np.float32 or weights.ndim != 2 or op.builtinOptions.weightsFormat:
        return False
    if editor.scales(op.inputs[1]):
        return False  # learned with fake quantization
    peaks = np.abs(weights).max(axis=1)
    elements, depth = int(np.prod(editor.shape(op.inputs[0]), dtype=np.int64)), weights.shape[1]
    if elements % depth or not 0 < elements // depth <= _MOST_ROWS or peaks.max() <= _SPREAD * peaks.min():
        return False
    rows, made = elements // depth, editor.shape(op.outputs[0])
    image = _reshaped(editor, op, op.inputs[0], [1, rows, 1, depth])
    result = editor.add_activation([1, rows, 1, len(weights)], like=op.outputs[0])
    kernel = editor.add_constant(np.ascontiguousarray(weights[:, None, None, :]), like=op.inputs[1])
    bias = int(op.inputs[2]) if len(op.inputs) > 2 else -1
    if bias < 0:
        bias = editor.add_constant(np.zeros(len(weights), np.float32), name=f"bias{kernel}")
    convolution = flatbuffer.schema().Conv2DOptionsT()
    convolution.strideW = convolution.strideH = convolution.dilationWFactor = convolution.dilationHFactor = 1
    convolution.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
    editor.insert_before(op, "CONV_2D", [image, kernel, bias], [result], convolution)
    options, op.inputs = _reshape(editor, result, made)
    editor.become(op, "RESHAPE", options)
    return True


def _reshaped(editor: Editor, op: Any, source: int, shape: list[int]) -> int:
    """Insert a RESHAPE before an operator and return its output; one that undoes another reads what that one reads."""
    for other in editor.operators("RESHAPE", options=False):
        if int(other.outputs[0]) == source and editor.shape(other.inputs[0]) == shape:
            return int(other.inputs[0])
    image = editor.add_activation(shape, like=source)
    options, inputs = _reshape(editor, source, shape)
    editor.insert_before(op, "RESHAPE", inputs, [image], options)
    return image


def _reshape(editor: Editor, source: int, shape: list[int]) -> tuple[Any, list[int]]:
    options = flatbuffer.schema().ReshapeOptionsT()
    options.newShape = shape
    return options, [source, editor.add_constant(np.array(shape, np.int32), name=f"shape{len(editor.graph.tensors)}")]
