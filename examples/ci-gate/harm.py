"""Disturb the weights of net.pt: a network of the same form that is worse."""

from pathlib import Path

import torch

PATH = Path(__file__).with_name("net.pt")

torch.manual_seed(0)
weights = torch.load(PATH, weights_only=True)
for name, value in weights.items():
    if name.endswith("weight") and value.ndim > 1:
        weights[name] = value + 0.4 * value.std() * torch.randn_like(value)
torch.save(weights, PATH)
