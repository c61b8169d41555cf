"""The same network written in PyTorch and in Keras gives the same int8 program for Coral."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge import pipeline, project
from edge.targets.litert import flatbuffer

pytestmark = [pytest.mark.frameworks, pytest.mark.slow]

TORCH = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(8, 12, 1)
        self.classifier = nn.Linear(12, 5)

    def forward(self, image):
        x = self.pool(self.depthwise(self.stem(image)))
        return self.classifier(torch.relu(self.head(x)).mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Net(), (torch.zeros(1, 1, 12, 12),)
"""


def keras_model(path: Path) -> None:
    import keras
    from keras import layers

    stages = [
        keras.Input((12, 12, 1), name="image"),
        layers.Conv2D(8, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(2),
        layers.Conv2D(12, 1, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
    ]
    keras.Sequential(stages).save(path)


def build(source: str, data: Path, output: Path) -> list[tuple[str, int, tuple[str, ...]]]:
    settings = {"source": source, "targets": ["coral"], "calibration": str(data), "output": str(output)}
    (made,) = pipeline.build(project.resolve({**settings, "latency": "none"}))
    graph = flatbuffer.graph(flatbuffer.load(made.program))
    assert made.manifest.details["placement"]["mapped"] == len(graph.ops)
    return [(op.name, op.version, tuple(graph.tensors[t].dtype for t in (*op.inputs, *op.outputs))) for op in graph.ops]


def test_operator_lists_are_equal(tmp_path: Path) -> None:
    """Operators, versions and dtypes are the same, without TRANSPOSE, float or an extra QUANTIZE; all are mapped."""
    (tmp_path / "net.py").write_text(TORCH)
    keras_model(tmp_path / "net.keras")
    x = np.random.default_rng(0).normal(size=(40, 12, 12, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    lists = [
        build(str(tmp_path / source), tmp_path / "data.npz", tmp_path / "out")
        for source in ("net.py:make", "net.keras")
    ]
    assert lists[0] == lists[1]
    names = [name for name, _, _ in lists[0]]
    assert names == ["CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert not any("float32" in dtypes for _, _, dtypes in lists[0])
