"""Networks for benchmarks/accuracy.py: trained in seconds on scikit-learn's digits, and built to quantize badly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 11
_EPOCHS = 25
HEAD = "box and score head"
_PIXELS = 40.0
_HELD_OUT = 600


def digits() -> tuple[Any, Any]:
    """Return images float32[1797, 8, 8, 1] in 0 to 1 and labels, shuffled."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(y))
    return (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), y[order].astype(np.int64)


def write_data(folder: Path) -> Path:
    """Write digits.npz with x_train, y_train, x_test and y_test."""
    x, y = digits()
    path = folder / "digits.npz"
    np.savez(path, x_train=x[_HELD_OUT:], y_train=y[_HELD_OUT:], x_test=x[:_HELD_OUT], y_test=y[:_HELD_OUT])
    return path


def _network(body: Callable[[Any, Any], Any]) -> Any:
    import keras as k

    k.utils.set_random_seed(SEED)
    image = k.Input((8, 8, 1), name="image")
    x = body(k, image)
    if body is _boxes:
        scores = k.layers.Dense(10, activation="softmax")(x)
        return k.Model(image, k.layers.Concatenate(name="detection")([k.layers.Dense(4)(x) * _PIXELS, scores]))
    return k.Model(image, k.layers.Dense(10, activation="softmax", name="digit")(x))


def _plain(k: Any, x: Any) -> Any:
    x = k.layers.Conv2D(24, 3, padding="same", activation="relu", name="first")(x)
    x = k.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name="second")(x)
    return k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(32, 3, activation="relu")(x))


def _depthwise(k: Any, x: Any) -> Any:
    x = k.layers.Conv2D(24, 3, padding="same", activation="relu6")(x)
    for _ in range(3):
        x = k.layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
        x = k.layers.Conv2D(32, 1, activation="relu6")(x)
    return k.layers.GlobalAveragePooling2D()(x)


def _squeeze_excite(k: Any, x: Any) -> Any:
    layers = k.layers
    for width in (16, 24, 32):
        x = layers.Conv2D(width, 3, padding="same")(x)
        x = layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1 / 6)])
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(width, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(gate))
        x = layers.Multiply()([x, gate])
    return layers.GlobalAveragePooling2D()(x)


def _transformer(k: Any, x: Any) -> Any:
    layers = k.layers
    x = layers.Dense(24)(layers.Reshape((8, 8))(x))
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 12)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(24)(layers.Dense(48, activation="gelu")(x)))
    return layers.GlobalAveragePooling1D()(x)


def _recurrent(k: Any, x: Any) -> Any:
    return k.layers.LSTM(32, unroll=True)(k.layers.Reshape((8, 8))(x))


def _sharp(k: Any, x: Any) -> Any:
    """Logits of hundreds, as in networks trained without regularization on inputs of any size."""
    x = k.layers.Dense(48, activation="relu")(k.layers.Flatten()(x) * 20.0)
    return k.layers.Dense(24, activation="relu")(x) * 5.0


def _boxes(k: Any, x: Any) -> Any:
    """The features of a detector's head; `train` gives it boxes in pixels beside scores below 1."""
    return k.layers.Dense(32, activation="relu")(_plain(k, x))


BODIES: dict[str, Callable[[Any, Any], Any]] = {
    "plain cnn": _plain,
    HEAD: _boxes,
    "outlier channels": _plain,
    "depthwise, no batch norm": _depthwise,
    "hardswish, squeeze-excite": _squeeze_excite,
    "transformer block": _transformer,
    "lstm": _recurrent,
    "sharp logits": _sharp,
}


def train(name: str, data: Path, folder: Path) -> Path:
    """Train one network of `BODIES` and write it as .keras; "outlier channels" is rescaled after training."""
    model = _network(BODIES[name])
    with np.load(data) as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    if name == HEAD:
        y = np.concatenate([_corners(x), np.eye(10)[y]], axis=1).astype(np.float32)
    model.compile(optimizer="adam", loss=_detection_loss if name == HEAD else "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=_EPOCHS, batch_size=32, verbose=0)
    if name == "outlier channels":
        _make_outliers(model)
    path = folder / f"{name.replace(' ', '-').replace(',', '')}.keras"
    model.compile()  # without the loss, which another program could not load
    model.save(path)
    return path


def _corners(images: Any) -> Any:
    """Return the box around the ink of each image, [N, 4] in pixels of a 320 x 320 picture."""
    found = []
    for ink in images[..., 0] > 0.3:
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        found.append([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    return np.asarray(found, np.float32) * _PIXELS


def _detection_loss(wanted: Any, found: Any) -> Any:
    import keras as k

    distance = k.ops.mean(((wanted[:, :4] - found[:, :4]) / _PIXELS) ** 2, axis=-1)
    return k.losses.categorical_crossentropy(wanted[:, 4:], found[:, 4:]) + 0.1 * distance


def _make_outliers(model: Any) -> None:
    """Scale two channels of the first layer by 256 and back in the second: the float function stays the same."""
    first, second = model.get_layer("first"), model.get_layer("second")
    scales = np.ones(24, np.float32)
    scales[[3, 17]] = 256.0
    kernel, bias = first.get_weights()
    first.set_weights([kernel * scales, bias * scales])
    kernel, bias = second.get_weights()
    second.set_weights([kernel / scales[:, None], bias])
