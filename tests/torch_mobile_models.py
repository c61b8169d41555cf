"""Small PyTorch networks of the kinds that phones run, and how tests export and feed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - only tests with torch import this module
from numpy.typing import NDArray
from torch import nn  # noqa: TID253
from torch.nn import functional as F  # noqa: N812, TID253

from edge.calibration.data import Sample
from edge.signature import Signature, TensorSpec
from edge.targets.base import Model, Session, Target
from edge.targets.torch_common import quiet, save_exported

PHONE = Target(name="phone", title="a phone", family="android", runtimes=("torch_mobile", "coreml"), io="float32")


def block(i: int, o: int, act: type[nn.Module], **conv: Any) -> nn.Sequential:
    """Return convolution, normalization with set statistics, activation."""
    norm = nn.BatchNorm2d(o)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.normal_(norm.running_mean, 0, 0.2)
    return nn.Sequential(nn.Conv2d(i, o, bias=False, **conv), norm, act())


class MobileV2(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, nn.ReLU6, kernel_size=3, stride=2, padding=1)
        self.expand = block(16, 48, nn.ReLU6, kernel_size=1)
        self.depthwise = block(48, 48, nn.ReLU6, kernel_size=3, padding=1, groups=48)
        self.project = block(48, 16, nn.Identity, kernel_size=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x * 8)  # wide enough for ReLU6 to saturate
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class MobileV3(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, nn.Hardswish, kernel_size=3, stride=2, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x * F.hardsigmoid(self.gate(x))
        return self.head(F.hardswish(x).mean((2, 3)))


class UNet(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.down = block(3, 8, nn.ReLU, kernel_size=3, padding=1)
        self.deep = block(8, 16, nn.ReLU, kernel_size=3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Any) -> Any:
        a = self.down(x)
        b = self.deep(F.max_pool2d(a, 2))
        mask = self.out(torch.cat([self.up(b), a], 1))
        return F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False)


class Lstm(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 32, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][:, -1])


class Gru(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Any, state: Any) -> Any:
        y, state = self.rnn(x, state)
        return self.head(y[:, -1]), state


class ViT(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.norm, self.qkv, self.mix = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = (t.reshape(1, 16, 4, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 16, 32))
        return self.head((x + self.mlp(x)).mean(1))


class Detector(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.near = block(3, 16, nn.SiLU, kernel_size=3, stride=2, padding=1)
        self.far = block(16, 32, nn.SiLU, kernel_size=3, stride=2, padding=1)
        self.join = block(48, 16, nn.SiLU, kernel_size=3, padding=1)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: Any) -> Any:
        near = self.near(x)
        far = F.interpolate(self.far(near), scale_factor=2, mode="nearest")
        boxes, scores = self.head(self.join(torch.cat([near, far], 1))).flatten(2).split([4, 4], 1)
        return {"boxes": boxes.permute(0, 2, 1), "scores": scores.sigmoid().permute(0, 2, 1)}


class Audio(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16, nn.ReLU, kernel_size=(10, 4), stride=2, padding=(5, 1))
        self.depthwise = block(16, 16, nn.ReLU, kernel_size=3, padding=1, groups=16)
        self.pointwise = block(16, 32, nn.ReLU, kernel_size=1)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Any) -> Any:
        return self.head(F.dropout(self.pointwise(self.depthwise(self.stem(x))), training=False).mean((2, 3))).softmax(
            -1
        )


class Cond(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, self.a, self.b, (x,))


class Loop(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        from torch._higher_order_ops.while_loop import while_loop

        halved = while_loop(lambda v: v.abs().max() > 0.1, lambda v: (v * 0.5,), (x,))
        return self.a(halved[0])


NETS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "mobile_v2": (MobileV2, ((1, 3, 32, 32),)),
    "mobile_v3": (MobileV3, ((1, 3, 32, 32),)),
    "unet": (UNet, ((1, 3, 16, 16),)),
    "lstm": (Lstm, ((1, 10, 16),)),
    "gru": (Gru, ((1, 10, 16), (1, 1, 32))),
    "vit": (ViT, ((1, 3, 32, 32),)),
    "detector": (Detector, ((1, 3, 16, 16),)),
    "audio": (Audio, ((1, 1, 49, 10),)),
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Twelve samples of normal noise in the shapes of a signature, the same at each iteration."""

    signature: Signature
    kind: str = "noise"
    labelled: bool = False
    count: int = 12
    findings: Any = field(default=tuple)

    def __iter__(self) -> Iterator[Sample]:
        random = np.random.default_rng(5)
        for number in range(self.count):
            inputs = {t.name: random.standard_normal(t.shape).astype(t.dtype) for t in self.signature.inputs}
            yield Sample(id=str(number), inputs=inputs)


def carrier(module: nn.Module, shapes: tuple[tuple[int, ...], ...], folder: Path, **signature: Any) -> Model:
    """Export a module in evaluation mode and return the model; outputs are named y0, y1, …."""
    inputs = tuple(torch.zeros(s) for s in shapes)
    with quiet(), torch.no_grad():
        module.eval()
        count = len(torch.utils._pytree.tree_leaves(module(*inputs)))
        program = torch.export.export(module, inputs)
        layouts = ["NCHW" if len(s) == 4 else "other" for s in shapes]
        specs = [
            TensorSpec(name=f"x{i}", shape=s, layout=v)  # type: ignore[arg-type]
            for i, (s, v) in enumerate(zip(shapes, layouts, strict=True))
        ]
        # Shapes of outputs are settled on reading.
        outputs = tuple(TensorSpec(name=f"y{i}", shape=()) for i in range(count))
        contract = Signature(inputs=tuple(specs), outputs=outputs, **signature)
        path = folder / "carrier.pt2"
        save_exported(program, contract, path)
    return Model(carrier="exported", path=path, signature=contract)


def run(session: Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session once."""
    return dict(session.run(inputs))


def network(name: str, folder: Path) -> Model:
    """Return the carrier of one of `NETS`, with the same weights each time."""
    torch.manual_seed(0)
    cls, shapes = NETS[name]
    return carrier(cls(), shapes, folder)
