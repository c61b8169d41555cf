"""The anchors of a detector: generated from a few numbers, or read from a file.

An anchor is (centre y, centre x, height, width), in shares of the input or, where the boxes are, in its pixels. All are
rounded to float32, so that every language computes with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import ConfigError, blaming

# More are no detector's; a contract with them could not be read by people.
_MOST = 200_000


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Anchors at every place of feature maps, as MediaPipe's SsdAnchorsCalculator describes them.

    One map per stride of ceil(input / stride) places. The scale of map k of n is `min_scale` to `max_scale` in equal
    steps (their mean where n is 1). A place has one anchor per aspect ratio r = width / height, height scale / sqrt(r),
    and one more of `interpolated_ratio` (0: none) with the geometric mean of this map's scale and the next one's (after
    the last: 1). Maps of equal strides that follow each other share their places. `reduced_lowest` gives the first map
    the ratios 1, 2, 1/2 with the scales 0.1, s, s. `fixed_size` makes all of height and width 1.
    """

    strides: tuple[int, ...]
    min_scale: float = 0.2
    max_scale: float = 0.95
    ratios: tuple[float, ...] = (1.0,)
    interpolated_ratio: float = 1.0
    reduced_lowest: bool = False
    fixed_size: bool = False
    offset: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        numbers = (self.min_scale, self.max_scale, *self.ratios, *self.offset, self.interpolated_ratio)
        if not self.strides or any(s < 1 for s in self.strides) or not all(math.isfinite(n) for n in numbers):
            raise ValueError("a grid of anchors needs strides from 1 on, and finite numbers")
        if min(self.min_scale, self.max_scale, *self.ratios) <= 0 or self.interpolated_ratio < 0:
            raise ValueError("scales and ratios of anchors are above 0")

    def scale(self, layer: int) -> float:
        """Return the scale of a feature map."""
        if len(self.strides) == 1:
            return (self.min_scale + self.max_scale) / 2
        return self.min_scale + (self.max_scale - self.min_scale) * layer / (len(self.strides) - 1)

    def shapes(self, layer: int) -> list[tuple[float, float]]:
        """Return (height, width) of a map's anchors, in order."""
        scale = self.scale(layer)
        if layer == 0 and self.reduced_lowest:
            pairs = [(1.0, 0.1), (2.0, scale), (0.5, scale)]
        else:
            pairs = [(ratio, scale) for ratio in self.ratios]
            if self.interpolated_ratio > 0:
                following = 1.0 if layer == len(self.strides) - 1 else self.scale(layer + 1)
                pairs.append((self.interpolated_ratio, math.sqrt(scale * following)))
        if self.fixed_size:
            return [(1.0, 1.0)] * len(pairs)
        return [(s / math.sqrt(ratio), s * math.sqrt(ratio)) for ratio, s in pairs]


def generate(grid: Grid, height: int, width: int) -> tuple[float, ...]:
    """Return the anchors of an input of that size, four numbers each, in the order of the model's boxes."""
    return _rounded(value for anchor in _places(grid, height, width) for value in anchor)


def _places(grid: Grid, height: int, width: int) -> Iterator[tuple[float, float, float, float]]:
    layer = 0
    while layer < len(grid.strides):
        stride, shapes = grid.strides[layer], []
        while layer < len(grid.strides) and grid.strides[layer] == stride:
            shapes += grid.shapes(layer)
            layer += 1
        rows, columns = -(-height // stride), -(-width // stride)
        for y in range(rows):
            for x in range(columns):
                for tall, wide in shapes:
                    yield (y + grid.offset[0]) / rows, (x + grid.offset[1]) / columns, tall, wide


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.fromiter(values, np.float32))


def read_table(value: Mapping[str, Any]) -> Grid:
    """Return the Grid of a table with its fields as keys; raise ValueError."""
    known = Grid.__dataclass_fields__
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"no such key {', '.join(unknown)} of anchors ({', '.join(known)})")
    if "strides" not in value:
        raise ValueError("anchors need their strides, such as strides = [8, 16, 16, 16]")
    from pydantic import ValidationError

    from edge import codec

    try:
        return codec.from_json(Grid, {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()})
    except ValidationError as error:
        raise ValueError(
            "; ".join(f"anchors.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        ) from None


def read_file(path: Path) -> tuple[float, ...]:
    """Return the anchors of a `.npy` array [N, 4] or of a text with four numbers per line; raise ConfigError."""
    with blaming(ConfigError, f"{path} cannot be read as anchors", hint=_ACCEPTED):
        if not path.is_file():
            raise ConfigError(f"{path} cannot be read as anchors: there is no such file.", hint=_ACCEPTED)
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = np.loadtxt(path, delimiter="," if "," in path.read_text(encoding="utf-8") else None, ndmin=2)
        values = np.asarray(found, np.float32)
    if values.ndim != 2 or values.shape[1] != 4 or not 0 < len(values) <= _MOST or not np.isfinite(values).all():
        raise ConfigError(f"{path} holds {list(values.shape)} numbers, or some that are not finite.", hint=_ACCEPTED)
    return _rounded(values.ravel())


_ACCEPTED = "Accepted: .npy [N, 4], or lines of centre y, centre x, height, width."
