"""Small PyTorch architectures that tests and benchmarks share: random weights, lively batch statistics.

Import it inside a test function: it needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253 - whoever imports the zoo wants torch
from torch import nn  # noqa: TID253
from torch.nn import functional as F  # noqa: N812, TID253


def _unit(inputs: int, outputs: int, kernel: int, act: Any, *, stride: int = 1, groups: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act)


class Inverted(nn.Module):  # type: ignore[misc]
    """Inverted residual: expand, depthwise, project; with `squeeze`, a channel gate after the depthwise part."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Any, *, squeeze: bool = False) -> None:
        super().__init__()
        wide = 3 * inputs
        self.expand = _unit(inputs, wide, 1, act())
        self.depth = _unit(wide, wide, 3, act(), stride=stride, groups=wide)
        gate = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.ReLU(), nn.Conv2d(8, wide, 1), nn.Hardsigmoid())
        self.gate = nn.Sequential(*gate) if squeeze else None
        self.project = _unit(wide, outputs, 1, nn.Identity())
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        y = self.depth(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


class MobileV2(nn.Module):  # type: ignore[misc]
    """Classifier of inverted residuals with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 8, 3, nn.ReLU6(), stride=2)
        shape = ((8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 24, 2))
        self.blocks = nn.Sequential(*(Inverted(i, o, s, nn.ReLU6) for i, o, s in shape))
        self.head = _unit(24, 64, 1, nn.ReLU6())
        self.classify = nn.Linear(64, 10)

    def forward(self, image: Any) -> Any:
        return self.classify(self.head(self.blocks(self.stem(image))).mean((2, 3)))


class MobileV3(nn.Module):  # type: ignore[misc]
    """Classifier with hard swish and squeeze-and-excite gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 8, 3, nn.Hardswish(), stride=2)
        shape = ((8, 8, 1), (8, 16, 2), (16, 16, 1))
        self.blocks = nn.Sequential(*(Inverted(i, o, s, nn.Hardswish, squeeze=True) for i, o, s in shape))
        self.classify = nn.Sequential(nn.Linear(16, 32), nn.Hardswish(), nn.Linear(32, 10))

    def forward(self, image: Any) -> Any:
        return self.classify(F.adaptive_avg_pool2d(self.blocks(self.stem(image)), 1).flatten(1))


class UNet(nn.Module):  # type: ignore[misc]
    """Segmentation: two levels down, one up by a transposed convolution, one by bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_unit(3, 8, 3, nn.ReLU()), _unit(8, 16, 3, nn.ReLU()), _unit(16, 32, 3, nn.ReLU())])
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join = nn.ModuleList([_unit(32, 16, 3, nn.ReLU()), _unit(24, 8, 3, nn.ReLU())])
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, image: Any) -> Any:
        a = self.down[0](image)
        b = self.down[1](F.max_pool2d(a, 2, 2))
        c = self.down[2](F.max_pool2d(b, 2, 2))
        d = self.join[0](torch.cat([self.up(c), b], 1))
        e = F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(self.join[1](torch.cat([e, a], 1)))


class Recurrent(nn.Module):  # type: ignore[misc]
    """A recurrent layer over [1, time, 12] and a classifier of its last step."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layer = kind(12, 24, batch_first=True)
        self.classify = nn.Linear(24, 5)

    def forward(self, sequence: Any) -> Any:
        return self.classify(self.layer(sequence)[0][:, -1])


class GatedState(nn.Module):  # type: ignore[misc]
    """A GRU whose state is an input and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(12, 24, batch_first=True)
        self.classify = nn.Linear(24, 5)

    def forward(self, sequence: Any, state: Any) -> dict[str, Any]:
        steps, last = self.layer(sequence, state)
        return {"scores": self.classify(steps[:, -1]), "state": last}


class Attention(nn.Module):  # type: ignore[misc]
    """A transformer block of 4 heads, normalised before each part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Any) -> Any:
        batch, count, width = x.shape
        heads = self.mix(self.norms[0](x)).reshape(batch, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(y.transpose(1, 2).reshape(batch, count, width))
        return x + self.feed(self.norms[1](x))


class ViT(nn.Module):  # type: ignore[misc]
    """A vision transformer: 8-pixel patches, two blocks, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, 32))
        self.blocks = nn.Sequential(Attention(32), Attention(32))
        self.classify = nn.Linear(32, 10)

    def forward(self, image: Any) -> Any:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.classify(self.blocks(tokens).mean(1))


class Detector(nn.Module):  # type: ignore[misc]
    """Detection head of two scales with SiLU and nearest upsampling; returns boxes and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_unit(3, 8, 3, nn.SiLU(), stride=2), _unit(8, 16, 3, nn.SiLU(), stride=2))
        self.deep = _unit(16, 32, 3, nn.SiLU(), stride=2)
        self.join = _unit(48, 16, 3, nn.SiLU())
        self.heads = nn.ModuleList([nn.Conv2d(16, 7, 1), nn.Conv2d(32, 7, 1)])

    def forward(self, image: Any) -> dict[str, Any]:
        a = self.stem(image)
        b = self.deep(a)
        a = self.join(torch.cat([F.interpolate(b, scale_factor=2.0, mode="nearest"), a], 1))
        found = torch.cat([self.heads[0](a).flatten(2), self.heads[1](b).flatten(2)], 2)
        return {"boxes": found[:, :4], "scores": found[:, 4:].sigmoid()}


class Audio(nn.Module):  # type: ignore[misc]
    """Keyword spotter: depthwise separable convolutions over a spectrogram [1, 1, 49, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, (10, 4), 2, (4, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU())
        pairs = (_unit(32, 32, 3, nn.ReLU(), groups=32), _unit(32, 32, 1, nn.ReLU()))
        self.blocks = nn.Sequential(*pairs, _unit(32, 32, 3, nn.ReLU(), groups=32), _unit(32, 32, 1, nn.ReLU()))
        self.classify = nn.Linear(32, 12)

    def forward(self, spectrogram: Any) -> Any:
        return self.classify(F.adaptive_avg_pool2d(self.blocks(self.stem(spectrogram)), 1).flatten(1))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How to make one architecture, the shapes of its inputs, and whether convolutions do most of its work."""

    make: Callable[[], Any]
    inputs: Mapping[str, tuple[int, ...]]
    convolutional: bool = False


_IMAGE = {"image": (1, 3, 32, 32)}
_SEQUENCE = {"sequence": (1, 8, 12)}
ZOO: dict[str, Entry] = {
    "mobile-v2": Entry(make=MobileV2, inputs=_IMAGE, convolutional=True),
    "mobile-v3": Entry(make=MobileV3, inputs=_IMAGE, convolutional=True),
    "unet": Entry(make=UNet, inputs=_IMAGE, convolutional=True),
    "lstm": Entry(make=lambda: Recurrent(nn.LSTM), inputs=_SEQUENCE),
    "gru": Entry(make=GatedState, inputs={**_SEQUENCE, "state": (1, 1, 24)}),
    "vit": Entry(make=ViT, inputs=_IMAGE),
    "detector": Entry(make=Detector, inputs=_IMAGE, convolutional=True),
    "audio": Entry(make=Audio, inputs={"spectrogram": (1, 1, 49, 10)}, convolutional=True),
}


def make(name: str) -> tuple[Any, tuple[Any, ...]]:
    """Return a module in evaluation mode and example inputs, the same at every call."""
    torch.manual_seed(0)
    entry = ZOO[name]
    module = entry.make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return module.eval(), tuple(torch.randn(shape) for shape in entry.inputs.values())
