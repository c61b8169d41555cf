"""What the zoo is trained for: a task per architecture, with its data, its loss and its metric.

Data is real where it is small and free to have (scikit-learn's digits), and made by a known rule elsewhere, so that
nothing is downloaded. Training takes seconds to a minute with two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - whoever imports the tasks wants torch
from torch.nn import functional as F  # noqa: N812, TID253

from tests import zoo

Inputs = Mapping[str, np.ndarray[Any, Any]]
Outputs = Mapping[str, np.ndarray[Any, Any]]

# Drawn shapes per image side, and how many cells the detector's fine grid has per side.
_SIDE, _GRID = 32, 8
_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples by input name, dimension 0 counting them, and one target per sample."""

    inputs: Inputs
    targets: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, indices: Any) -> Data:
        """Return some of the samples."""
        return Data(inputs={n: v[indices] for n, v in self.inputs.items()}, targets=self.targets[indices])

    def sample(self, index: int) -> Inputs:
        """Return one sample as a program takes it."""
        return {n: v[index : index + 1] for n, v in self.inputs.items()}


@dataclass(frozen=True, kw_only=True)
class Task:
    """`data` draws all samples; `loss` takes the module's outputs as tensors, `score` (0 to 1) those of one sample."""

    data: Callable[[], Data]
    loss: Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
    score: Callable[[Sequence[np.ndarray[Any, Any]], np.ndarray[Any, Any]], float]
    metric: str = "top-1"
    epochs: int = 10
    test: int = 400


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained module in evaluation mode, and the samples for calibration and test, which it has not seen."""

    module: Any
    calibration: Data
    test: Data
    task: Task


def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return scikit-learn's handwritten digits [1797, 8, 8], 0 to 1, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target.astype(np.int64)


def _digit_images() -> Data:
    images, labels = digits()
    random = np.random.default_rng(0)
    big = np.kron(images, np.ones((4, 4), np.float32))
    tint = random.uniform(0.5, 1.0, (len(big), 3, 1, 1)).astype(np.float32)
    noise = random.normal(0, 0.05, (len(big), 3, _SIDE, _SIDE)).astype(np.float32)
    return Data(inputs={"image": big[:, None] * tint + noise}, targets=labels)


def _digit_rows() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the digits 0 to 4 as sequences of 8 rows with 8 values and 4 sums of their parts."""
    images, labels = digits()
    few = labels < 5
    rows, labels = images[few], labels[few]
    sums = rows.reshape(len(rows), 8, 4, 2).sum(3) / 2
    return np.concatenate([rows, sums], 2).astype(np.float32), labels


def _sequences() -> Data:
    rows, labels = _digit_rows()
    return Data(inputs={"sequence": rows}, targets=labels)


def _streams() -> Data:
    """Return sequences with the state that an untrained GRU has after another sequence: states are never all 0."""
    rows, labels = _digit_rows()
    before = np.random.default_rng(1).permutation(len(rows))
    module, _ = zoo.make("gru")
    with torch.no_grad():
        _, state = module.layer(torch.from_numpy(rows[before]))
    return Data(inputs={"sequence": rows, "state": state[0][:, None, None].numpy()}, targets=labels)


def _drawn(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images with one rectangle of a pure colour each, and rows of (class, x0, y0, x1, y1) in pixels."""
    random = np.random.default_rng(seed)
    images = random.uniform(0, 0.4, (count, 3, _SIDE, _SIDE)).astype(np.float32)
    found = np.zeros((count, 5), np.float32)
    for image, row in zip(images, found, strict=True):
        wide, high = random.integers(6, 15, 2)
        x, y = random.integers(0, _SIDE - wide), random.integers(0, _SIDE - high)
        kind = random.integers(0, 3)
        image[kind, y : y + high, x : x + wide] += 0.6
        row[:] = kind, x, y, x + wide, y + high
    return images, found


def _scenes() -> Data:
    images, found = _drawn(1600, 2)
    masks = np.zeros((len(images), _SIDE, _SIDE), np.int64)
    # Classes of pixels: background, the upper half of a rectangle, its lower half.
    for mask, (_, x0, y0, x1, y1) in zip(masks, found.astype(int), strict=True):
        middle = (y0 + y1) // 2
        mask[y0:middle, x0:x1], mask[middle:y1, x0:x1] = 1, 2
    return Data(inputs={"image": images}, targets=masks)


def _rectangles() -> Data:
    images, found = _drawn(2400, 3)
    return Data(inputs={"image": images}, targets=found)


def _spoken() -> Data:
    """Return spectrograms of 12 made-up words: three bands each, rising or falling at their own speed, in noise."""
    shape = np.random.default_rng(4)
    starts, slopes = shape.uniform(0, 10, (_WORDS, 3)), shape.uniform(-0.15, 0.15, (_WORDS, 3))
    random = np.random.default_rng(5)
    labels = random.integers(0, _WORDS, 2400)
    time, band = np.arange(49)[:, None, None], np.arange(10)[None, :, None]
    sounds = np.empty((len(labels), 1, 49, 10), np.float32)
    for sound, label in zip(sounds, labels, strict=True):
        shift, stretch = random.integers(-6, 7), random.uniform(0.85, 1.15)
        centre = (starts[label] + slopes[label] * stretch * (time - shift)) % 10
        sound[0] = np.exp(-((band - centre) ** 2)).sum(2) + random.normal(0, 0.35, (49, 10))
    return Data(inputs={"spectrogram": sounds}, targets=labels.astype(np.int64))


def _cross_entropy(outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs[0], targets)


def _top1(outputs: Sequence[np.ndarray[Any, Any]], target: np.ndarray[Any, Any]) -> float:
    return float(outputs[0][0].argmax() == target)


def _pixels(outputs: Sequence[np.ndarray[Any, Any]], target: np.ndarray[Any, Any]) -> float:
    return float((outputs[0][0].argmax(0) == target).mean())


def _cell(found: torch.Tensor) -> torch.Tensor:
    """Return the cell of the fine grid in which each rectangle's centre lies."""
    centre = ((found[:, 1:3] + found[:, 3:5]) / 2 / _SIDE * _GRID).long()
    return centre[:, 1] * _GRID + centre[:, 0]


def _detection(outputs: Sequence[torch.Tensor], found: torch.Tensor) -> torch.Tensor:
    boxes, scores = outputs
    cell, rows = _cell(found), torch.arange(len(found))
    wanted = torch.zeros_like(scores)
    wanted[rows, found[:, 0].long(), cell] = 1
    # One cell of 80 is the right one: it weighs as much as the others together.
    weight = 1 + 40 * wanted
    certain = F.binary_cross_entropy(scores.clamp(1e-6, 1 - 1e-6), wanted, weight=weight)
    x, y = _centres(cell)
    edges = torch.stack([x - found[:, 1], y - found[:, 2], found[:, 3] - x, found[:, 4] - y], 1)
    return certain + F.smooth_l1_loss(boxes[rows, :, cell], edges / _GRID)


def _centres(cell: Any) -> tuple[Any, Any]:
    """Return where cells of the fine grid (0 to 63) and of the coarse one (64 to 79) have their centres, in pixels."""
    fine = cell < _GRID * _GRID
    inside = cell - (cell >= _GRID * _GRID) * _GRID * _GRID
    across = _GRID - (1 - fine * 1) * (_GRID // 2)
    return (inside % across + 0.5) * (_SIDE / across), (inside // across + 0.5) * (_SIDE / across)


def _detected(outputs: Sequence[np.ndarray[Any, Any]], found: np.ndarray[Any, Any]) -> float:
    """Return 1 where the best score has the right class and its box overlaps by half at least."""
    boxes, scores = outputs[0][0], outputs[1][0]
    kind, cell = np.unravel_index(scores.argmax(), scores.shape)
    x, y = _centres(cell)
    left, top, right, bottom = boxes[:, cell] * _GRID
    x0, y0, x1, y1 = x - left, y - top, x + right, y + bottom
    wide = max(0.0, min(x1, found[3]) - max(x0, found[1]))
    high = max(0.0, min(y1, found[4]) - max(y0, found[2]))
    union = (x1 - x0) * (y1 - y0) + (found[3] - found[1]) * (found[4] - found[2]) - wide * high
    return float(kind == found[0] and wide * high >= 0.5 * union)


TASKS: Mapping[str, Task] = {
    "mobile-v2": Task(data=_digit_images, loss=_cross_entropy, score=_top1, epochs=12),
    "mobile-v3": Task(data=_digit_images, loss=_cross_entropy, score=_top1, epochs=16),
    "unet": Task(data=_scenes, loss=_cross_entropy, score=_pixels, metric="pixels", epochs=6),
    "lstm": Task(data=_sequences, loss=_cross_entropy, score=_top1, epochs=60, test=300),
    "gru": Task(data=_streams, loss=_cross_entropy, score=_top1, epochs=60, test=300),
    "vit": Task(data=_digit_images, loss=_cross_entropy, score=_top1, epochs=40),
    "detector": Task(data=_rectangles, loss=_detection, score=_detected, metric="found", epochs=24),
    "audio": Task(data=_spoken, loss=_cross_entropy, score=_top1, epochs=8),
}
_CALIBRATION, _BATCH = 100, 32


def train(name: str, *, epochs: int | None = None) -> Trained:
    """Train one architecture of the zoo, the same at every call."""
    task = TASKS[name]
    everything = task.data()
    order = np.random.default_rng(7).permutation(len(everything))
    test, rest = everything.part(order[: task.test]), everything.part(order[task.test :])
    module, _ = zoo.make(name)
    _fit(module, rest, task, task.epochs if epochs is None else epochs)
    return Trained(module=module.eval(), calibration=rest.part(slice(0, _CALIBRATION)), test=test, task=task)


def _fit(module: Any, data: Data, task: Task, epochs: int) -> None:
    torch.manual_seed(0)
    steps = epochs * (len(data) // _BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        order = torch.randperm(len(data)).numpy()
        for at in range(0, len(order) - _BATCH + 1, _BATCH):
            batch = data.part(order[at : at + _BATCH])
            outputs = forward(module, batch.inputs)
            optimizer.zero_grad()
            task.loss(outputs, torch.from_numpy(batch.targets)).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def forward(module: Any, inputs: Inputs) -> list[torch.Tensor]:
    """Return a module's outputs in order; a state's dimension 0 is not the batch."""
    given = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in inputs.items()}
    if "state" in given:
        given["state"] = given["state"][:, 0].transpose(0, 1).contiguous()
    found = module(**given)
    return list(found.values()) if isinstance(found, dict) else [found]


def score(trained: Trained, run: Callable[[Inputs], Outputs]) -> float:
    """Return the metric, 0 to 1, of whatever `run` runs, over the test samples one by one."""
    total = 0.0
    for i in range(len(trained.test)):
        found = run(sample(trained.test, i))
        total += trained.task.score(list(found.values()), trained.test.targets[i])
    return total / len(trained.test)


def sample(data: Data, index: int) -> Inputs:
    """Return one sample in the shapes of the zoo's inputs."""
    return {n: v[0] if n == "state" else v for n, v in data.sample(index).items()}
