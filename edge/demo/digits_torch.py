"""The demo's network: `edgekit build digits_torch.py:make_digits --target coral --calibration digits.npz`."""

from __future__ import annotations

from pathlib import Path

import torch  # noqa: TID253 - this file is the user's model
from torch import nn  # noqa: TID253


class Digits(nn.Module):  # type: ignore[misc]
    """Images float32[N, 1, 8, 8] in 0..16 -> logits float32[N, 10]; depthwise-separable, 8,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        features = self.pool(self.pointwise(self.depthwise(self.stem(image / 16.0))))
        logits: torch.Tensor = self.classifier(self.head(features).mean((2, 3)))
        return logits


def make_digits() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the trained network and an example of its input, as edgekit wants it."""
    network = Digits()
    network.load_state_dict(torch.load(Path(__file__).with_name("digits_torch.pt"), weights_only=True))
    return network, (torch.zeros(1, 1, 8, 8),)
