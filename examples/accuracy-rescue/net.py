"""A network whose channels differ a thousandfold: exact in float, and a loss in int8."""

from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    """Images float32[N, 1, 8, 8] in 0..1 -> logits float32[N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 32, 3, padding=1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(image)), 2)
        return self.classifier(torch.relu(self.second(x)).mean((2, 3)))

    def unbalance(self) -> None:
        """Make channels up to a thousand times larger and the weights that read them smaller: nothing else changes."""
        factors = torch.logspace(0, 3, self.first.out_channels)
        with torch.no_grad():
            self.first.weight *= factors[:, None, None, None]
            self.first.bias *= factors
            self.second.weight /= factors[None, :, None, None]


def make_net() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the trained network and an example of its input."""
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("net.pt"), weights_only=True))
    return net, (torch.zeros(1, 1, 8, 8),)
