"""Small int8 models for the tests of the Edge TPU modules."""

from __future__ import annotations

import numpy as np

from edge.signature import Quantization
from tests.tflite_builder import GraphBuilder

Q = Quantization(scale=(0.05,), zero_point=(3,))
UNIT = Quantization(scale=(1 / 256,), zero_point=(-128,))


def chain(activations: tuple[str, ...] = ("RELU", "LOGISTIC", "RELU"), *, signature: bool = True) -> bytes:
    """Return an int8 model: ADD of the input to itself, then one unary operator after the other."""
    b = GraphBuilder()
    x = b.input("x", (1, 4, 4, 8), "int8", Q)
    y = b.op("ADD", [x, x], (1, 4, 4, 8), name="doubled", dtype="int8", quantization=Q, version=2)
    for i, name in enumerate(activations):
        q = UNIT if name in ("LOGISTIC", "SOFTMAX") else Q
        y = b.op(name, [y], (1, 4, 4, 8), name=f"step_{i}", dtype="int8", quantization=q, version=2)
    b.output(y, "y")
    return b.build(signature=signature)


def classifier(classes: int = 5, *, signature: bool = True) -> bytes:
    """Return an int8 classifier: CONV_2D, MEAN over the map, FULLY_CONNECTED, SOFTMAX."""
    random = np.random.default_rng(0)
    weights = Quantization(scale=(0.02,), zero_point=(0,))
    accumulator = Quantization(scale=(0.05 * 0.02,), zero_point=(0,))
    b = GraphBuilder()
    x = b.input("image", (1, 8, 8, 3), "int8", Q)
    kernel = b.const("kernel", random.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8), weights)
    bias = b.const("bias", np.zeros(16, np.int32), accumulator)
    y = b.op("CONV_2D", [x, kernel, bias], (1, 8, 8, 16), dtype="int8", quantization=Q, version=3)
    axes = b.const("axes", np.array([1, 2], np.int32))
    y = b.op("MEAN", [y, axes], (1, 16), dtype="int8", quantization=Q, version=2)
    dense = b.const("dense", random.integers(-127, 128, (classes, 16)).astype(np.int8), weights)
    offset = b.const("offset", np.zeros(classes, np.int32), accumulator)
    y = b.op("FULLY_CONNECTED", [y, dense, offset], (1, classes), dtype="int8", quantization=Q, version=4)
    y = b.op("SOFTMAX", [y], (1, classes), dtype="int8", quantization=UNIT, version=2)
    b.output(y, "scores")
    return b.build(signature=signature)
