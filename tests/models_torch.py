"""PyTorch factories for the tests of edge.sources: each is loaded as a user's file, `models_torch.py:name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253 - this is a user's file
from torch import nn  # noqa: TID253

Made = tuple[nn.Module, Any]


class MobileNet(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, image: Any) -> Any:
        x = self.stem(image)
        x = x + self.point(self.depthwise(x))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, image: Any) -> dict[str, Any]:
        x = torch.relu(self.down(image))
        y = torch.relu(self.deep(x))
        return {"mask": self.out(torch.cat([x, self.up(y)], 1)), "score": y.mean((2, 3))}


@dataclass
class Detections:
    boxes: Any
    scores: Any
    debug: Any = None


class Detector(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, image: Any) -> Detections:
        x = self.body(image).flatten(2).transpose(1, 2)
        return Detections(boxes=x[..., :4], scores=x[..., 4].sigmoid())


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Any, state: Any) -> Any:
        return self.cell(x, state)


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.query = nn.Linear(8, 8)

    def forward(self, image: Any) -> tuple[Any, Any]:
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        query = self.query(tokens).view(1, 4, 2, 4).transpose(1, 2)
        weights = (query @ query.transpose(-1, -2)).softmax(-1)
        return tokens.mean(1), weights


class Viewed(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 8, 3)
        self.head = nn.Linear(8 * 3 * 3, 4)

    def forward(self, image: Any) -> Any:
        x = torch.max_pool2d(torch.relu(self.body(image)), 2)
        return self.head(x.view(x.size(0), -1))


class Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)

    def forward(self, tokens: Any, padding: Any) -> Any:
        return self.layers(tokens, src_key_padding_mask=padding)


class Counter(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        self.total.add_(x[0])
        return x + self.total


class Cached(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        self.table = torch.arange(4.0)
        return x + self.table


class History(nn.Module):  # type: ignore[misc]
    last: Any = 0.0

    def forward(self, x: Any) -> Any:
        result = x + self.last
        self.last = x
        return result


class Branch(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        if x.sum() > 0:  # the line that the message names
            return x + 1
        return x


class Mask(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x[x > 0.5]


class Noise(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(x)


class Ids(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Any, unused: Any) -> tuple[Any, Any]:
        return self.table(ids).mean(1), ids * 2


class Text(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> dict[str, Any]:
        return {"sum": x + 1, "name": "hello"}


class Nested(nn.Module):  # type: ignore[misc]
    def forward(self, frame: dict[str, Any], scale: float = 2.0) -> dict[str, Any]:
        return {"out": [frame["left"] * scale, frame["right"] + frame["left"]]}


def image() -> Any:
    return torch.rand(1, 3, 16, 16)


def mobilenet() -> Made:
    return MobileNet(), (image(),)


def mobilenet_half() -> Made:
    return MobileNet().half(), (image().half(),)


def mobilenet_double() -> Made:
    return MobileNet().double(), (image().double(),)


def mobilenet_alone() -> nn.Module:
    return MobileNet()


class Series(nn.Module):  # type: ignore[misc]
    """1-D convolutions over a series of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv1d(3, 8, 5, padding=2),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 2, 3, padding=1),
        )

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(torch.relu(self.norm(self.first(signal))))
        return made


def series() -> Made:
    return Series(), (torch.rand(1, 3, 32),)


def unet() -> Made:
    return UNet(), {"image": image()}


def lenet() -> Made:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, 4)]
    return nn.Sequential(*layers), image()


def flat() -> Made:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), [image()]


def viewed() -> Made:
    return Viewed(3), torch.rand(1, 3, 8, 8)


def viewed_gray() -> Made:
    return Viewed(1), torch.rand(1, 1, 8, 8)


def encoder() -> Made:
    return Encoder(), (torch.rand(1, 5, 8), torch.tensor([[False, False, False, True, True]]))


def detector() -> Made:
    return Detector(), (image(),)


def recurrent() -> Made:
    return Recurrent(), (torch.rand(1, 5, 4), torch.rand(1, 1, 6))


def attention() -> Made:
    return Attention(), (torch.rand(1, 3, 8, 8),)


def counter() -> Made:
    return Counter(), torch.rand(1, 4)


def cached() -> Made:
    return Cached(), torch.rand(1, 4)


def history() -> Made:
    return History(), torch.rand(1, 4)


def branch() -> Made:
    return Branch(), torch.rand(1, 4)


def mask() -> Made:
    return Mask(), torch.rand(2, 4)


def noise() -> Made:
    return Noise(), torch.rand(1, 4)


def ids() -> Made:
    return Ids(), (torch.tensor([[1, 2, 3]]), torch.rand(1, 2))


def text() -> Made:
    return Text(), torch.rand(1, 4)


def nested() -> Made:
    return Nested(), ({"left": torch.rand(1, 4), "right": torch.rand(1, 4)},)


def empty() -> Made:
    return nn.ReLU(), torch.rand(1, 0, 4)


def failing() -> Made:
    raise ValueError("the weights are not there")


def number() -> int:
    return 7
