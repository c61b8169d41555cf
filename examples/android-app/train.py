"""Train a small Keras network on scikit-learn's digits; write digits.keras and digits.npz."""

from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
HELD_OUT = 500


def main() -> None:
    keras.utils.set_random_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = pixels[order].astype(np.float32).reshape(-1, 8, 8, 1), labels[order]
    np.savez(
        HERE / "digits.npz",
        x_train=x[HELD_OUT:], y_train=y[HELD_OUT:], x_test=x[:HELD_OUT], y_test=y[:HELD_OUT],
    )  # fmt: skip
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, activation="softmax", name="digit"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(x[HELD_OUT:] / 16, y[HELD_OUT:], epochs=12, batch_size=64, verbose=0)
    model.save(HERE / "digits.keras")
    print("Wrote digits.keras and digits.npz")


if __name__ == "__main__":
    main()
