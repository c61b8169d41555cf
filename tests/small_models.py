"""A small trained classifier as a float flatbuffer, made without any framework, and its data."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tflite_builder import GraphBuilder

SAMPLES = 400
_FEATURES, _HIDDEN, _CLASSES = 16, 24, 4


def _clusters() -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    centres = random.normal(0, 1.2, (_CLASSES, _FEATURES))
    labels = random.integers(0, _CLASSES, 2 * SAMPLES)
    x = (centres[labels] + random.normal(0, 1.0, (2 * SAMPLES, _FEATURES))).astype(np.float32)
    return x, labels.astype(np.int64)


def labelled_data() -> dict[str, Any]:
    """Return `x` float32[400, 16] and `y` int64[400] that the classifier was not trained on."""
    x, y = _clusters()
    return {"x": x[SAMPLES:], "y": y[SAMPLES:]}


def _train() -> tuple[Any, ...]:
    """Fit 16 -> ReLU(24) -> 4 by plain gradient descent on the other half of the clusters."""
    x, y = (part[:SAMPLES] for part in _clusters())
    random = np.random.default_rng(5)
    w1, w2 = random.normal(0, 0.3, (_HIDDEN, _FEATURES)), random.normal(0, 0.3, (_CLASSES, _HIDDEN))
    b1, b2 = np.zeros(_HIDDEN), np.zeros(_CLASSES)
    onehot = np.eye(_CLASSES)[y]
    for _ in range(300):
        hidden = np.maximum(x @ w1.T + b1, 0)
        logits = hidden @ w2.T + b2
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - onehot) / SAMPLES
        back = (error @ w2) * (hidden > 0)
        w2, b2 = w2 - error.T @ hidden, b2 - error.sum(0)
        w1, b1 = w1 - back.T @ x, b1 - back.sum(0)
    return w1, b1, w2, b2


def classifier(*, disturbed: float = 0.0) -> bytes:
    """Return the trained classifier: x float32[1, 16] -> y float32[1, 4] (softmax), as a LiteRT flatbuffer.

    `disturbed` adds noise of that standard deviation to its weights: a worse classifier of the same form.
    """
    random = np.random.default_rng(7)
    w1, b1, w2, b2 = (np.asarray(v + disturbed * random.normal(size=v.shape), np.float32) for v in _train())
    builder = GraphBuilder()
    x = builder.input("x", (1, _FEATURES))
    hidden = builder.fully_connected(x, w1, b1, name="hidden", fusedActivationFunction=1)
    logits = builder.fully_connected(hidden, w2, b2, name="logits")
    builder.output(builder.op("SOFTMAX", [logits], (1, _CLASSES), name="y"), "y")
    return builder.build()
