"""One form for what converters write in two: the same network from Keras and from PyTorch gives the same operators.

All rewrites are of float programs and change no value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.targets.litert import edit, flatbuffer


def canonical_operators(model: Any) -> None:
    """Edit a checked float `ModelT` in place."""
    for number, graph in enumerate(model.subgraphs):
        view = flatbuffer.graph(model, number)
        for raw, op in zip(graph.operators or (), view.ops, strict=True):
            if op.name == "DEPTHWISE_CONV_2D":
                _depthwise_of_one_channel(model, graph, raw, view, op)
            elif op.name == "FULLY_CONNECTED":
                _plain_fully_connected(model, raw, view, op)


def _depthwise_of_one_channel(model: Any, graph: Any, raw: Any, view: flatbuffer.Graph, op: flatbuffer.Op) -> None:
    """A depthwise convolution of one input channel is an ordinary one: [1, h, w, C] -> [C, h, w, 1] weights."""
    image, weights = view.tensors[op.inputs[0]], view.tensors[op.inputs[1]]
    values = view.data(weights.index)
    if image.shape[-1] != 1 or values is None or weights.dtype != "float32" or values.ndim != 4:
        return
    turned = np.ascontiguousarray(values.transpose(3, 1, 2, 0))
    inputs = [int(t) for t in op.inputs]
    inputs[1] = edit.add_constant(model, graph, weights.name, turned)
    raw.inputs = np.asarray(inputs, np.int32)
    schema = flatbuffer.schema()
    options = schema.Conv2DOptionsT()
    for field in ("padding", "strideW", "strideH", "fusedActivationFunction", "dilationWFactor", "dilationHFactor"):
        setattr(options, field, getattr(op.options, field))
    raw.builtinOptions, raw.builtinOptionsType = options, schema.BuiltinOptions.Conv2DOptions
    raw.opcodeIndex = edit.code_index(model, "CONV_2D")


def _plain_fully_connected(model: Any, raw: Any, view: flatbuffer.Graph, op: flatbuffer.Op) -> None:
    """Keeping the number of dimensions means nothing between matrices, but needs a newer operator version."""
    ranks = {len(view.tensors[t].shape) for t in (op.inputs[0], op.outputs[0])}
    if op.option("keepNumDims") and ranks == {2}:
        raw.builtinOptions.keepNumDims = False
        raw.opcodeIndex = edit.code_index(model, "FULLY_CONNECTED")
