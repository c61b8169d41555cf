"""The networks of benchmarks/pte_prediction.py, as factories of a user's file: a module and its examples from each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this is a user's file
from torch import nn  # noqa: TID253

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the zoo is among the tests

from tests import zoo

Made = tuple[nn.Module, Any]


def _made(module: nn.Module, *shape: int) -> Made:
    torch.manual_seed(0)
    return module.eval(), (torch.randn(1, *shape),)


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.body(x))


def residual() -> Made:
    """Dense 3 x 3 convolutions of 16, 32 and 64 channels: 40 million MACs."""
    blocks = [nn.Conv2d(3, 16, 3, 2, 1), _Residual(16), nn.Conv2d(16, 32, 3, 2, 1), _Residual(32)]
    blocks += [nn.Conv2d(32, 64, 3, 2, 1), _Residual(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return _made(nn.Sequential(*blocks), 3, 96, 96)


def layers() -> Made:
    """Three dense layers: parameters that travel once for each inference."""
    return _made(
        nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 16)), 512
    )


def mobile_v2() -> Made:
    """Inverted residuals with ReLU6."""
    return _made(zoo.MobileV2(), 3, 128, 128)


def mobile_v3() -> Made:
    """Hard swish, squeeze and excite."""
    return _made(zoo.MobileV3(), 3, 128, 128)


def unet() -> Made:
    """Transposed convolution, resizing, concatenation."""
    return _made(zoo.UNet(), 3, 96, 96)


def detector() -> Made:
    """Two scales, SiLU, nearest upsampling."""
    return _made(zoo.Detector(), 3, 128, 128)


def audio() -> Made:
    """Depthwise separable convolutions over a spectrogram."""
    return _made(zoo.Audio(), 1, 49, 10)


def transformer() -> Made:
    """Two blocks of attention over 16 patches."""
    return _made(zoo.ViT(), 3, 32, 32)


NETWORKS = ("residual", "layers", "mobile_v2", "mobile_v3", "unet", "detector", "audio", "transformer")
