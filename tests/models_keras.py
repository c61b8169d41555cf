"""Small Keras models for the tests of edge.sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.sources.keras import import_keras


def classifier() -> Any:
    """A convolutional network with two outputs in a dict, out of alphabetical order."""
    keras = import_keras()
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(image)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dropout(0.5)(keras.layers.DepthwiseConv2D(3, padding="same")(x))
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, {"kind": keras.layers.Dense(4)(pooled), "angle": keras.layers.Dense(2)(pooled)})
    return randomized(model)


def two_ends() -> Any:
    """Two inputs, two outputs, in lists out of alphabetical order."""
    keras = import_keras()
    left, right = keras.Input((6,), name="right_hand"), keras.Input((6,), name="left_hand")
    both = keras.layers.Concatenate()([left, right])
    outputs = [keras.layers.Dense(3, name="second")(both), keras.layers.Dense(2, name="first")(right)]
    return randomized(keras.Model([left, right], outputs))


def recurrent(layer: str, steps: int | None = 6) -> Any:
    """A stack of two recurrent layers, the second one in both directions."""
    keras = import_keras()
    cell = getattr(keras.layers, layer)
    x = keras.Input((steps, 4), name="series")
    y = keras.layers.Bidirectional(cell(5))(cell(5, return_sequences=True)(x))
    return randomized(keras.Model(x, keras.layers.Dense(2, name="level")(y)))


def randomized(model: Any) -> Any:
    """Give all weights of a model reproducible random values, variances above 0."""
    random = np.random.default_rng(1)
    model.set_weights(
        [random.uniform(0.1, 0.9, w.shape).astype(w.dtype) - 0.4 * (w.ndim > 1) for w in model.get_weights()]
    )
    return model


def saved(model: Any, path: Path) -> str:
    """Save a model and return the location."""
    model.save(path)
    return str(path)
