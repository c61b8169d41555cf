"""The demo's stages, each in a child process: write the data, train with Keras, train with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge.isolate import Progress

SEED = 7
EPOCHS = 12
BATCH = 64
DATA = "digits.npz"
_HELD_OUT = 500


def write_data(request: dict[str, Any], _progress: Progress) -> dict[str, Any]:
    """Write `digits.npz`: x float32[N, 8, 8, 1] in 0..16, y int64[N], 500 of 1,797 held out by a fixed shuffle."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    x = images[order].astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels[order].astype(np.int64)
    np.savez(
        Path(request["folder"]) / DATA,
        x_train=x[_HELD_OUT:],
        y_train=y[_HELD_OUT:],
        x_test=x[:_HELD_OUT],
        y_test=y[:_HELD_OUT],
    )
    return {}


def _training_set(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with np.load(folder / DATA) as data:
        x, y = data["x_train"], data["y_train"]
    # Small shifts: the network learns the digits and not their place.
    shifted = [np.roll(x, shift, axis) for axis in (1, 2) for shift in (-1, 1)]
    return np.concatenate([x, *shifted]), np.concatenate([y] * 5)


def keras(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Train the network with Keras and write `digits.keras`."""
    import keras as k

    folder = Path(request["folder"])
    x, y = _training_set(folder)
    k.utils.set_random_seed(SEED)
    layers = k.layers
    stages = [
        k.Input((8, 8, 1), name="image"),
        layers.Rescaling(1 / 16),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.Conv2D(64, 1, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 1, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, name="logits"),
    ]
    model = k.Sequential(stages, name="digits")
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = EPOCHS * -(-len(x) // BATCH)
    rate = k.optimizers.schedules.CosineDecay(4e-3, steps)
    model.compile(optimizer=k.optimizers.Adam(rate), loss=loss)
    report = k.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: progress("epochs", (epoch + 1) / EPOCHS))
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[report])
    model.save(folder / "digits.keras")
    return {}


def torch(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Train the network with PyTorch and write `digits_torch.pt`, the weights that digits_torch.py loads."""
    import torch as t

    from edge.demo.digits_torch import Digits

    folder = Path(request["folder"])
    x, y = _training_set(folder)
    t.manual_seed(SEED)
    inputs, labels = t.from_numpy(x.transpose(0, 3, 1, 2).copy()), t.from_numpy(y)
    network = Digits()
    optimizer = t.optim.Adam(network.parameters(), lr=4e-3)
    batches = -(-len(y) // BATCH)
    schedule = t.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for epoch in range(EPOCHS):
        for chosen in t.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            t.nn.functional.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        progress("epochs", (epoch + 1) / EPOCHS)
    t.save(network.eval().state_dict(), folder / "digits_torch.pt")
    return {}
