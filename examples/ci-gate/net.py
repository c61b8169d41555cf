"""The network, and how edgekit gets it: `net.py:make_net`."""

from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    """Images float32[N, 1, 8, 8] in 0..1 -> logits float32[N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU6(),
        )  # fmt: skip
        self.classifier = nn.Linear(48, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def make_net() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the trained network and an example of its input."""
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("net.pt"), weights_only=True))
    return net, (torch.zeros(1, 1, 8, 8),)
