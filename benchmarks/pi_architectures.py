"""Architectures of published Raspberry Pi latencies as graphs: shapes and options only, no weights.

Sources are the papers: MobileNet v3 (arXiv 1905.02244, tables 1 and 2), EfficientNet (1905.11946, table 1; the lite
variants drop squeeze-and-excitation and do not scale stem and head), EfficientDet (1911.09070, section 4; the lite
variants sum features without weights and use widths that are multiples of 8, as the published models of google/automl).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from edgetpu_architectures import _V2_STAGES, Net, _inverted, _mobilenet_v2_body, mobilenet_v1, mobilenet_v2

from edge.targets.litert.flatbuffer import Graph


class PiNet(Net):
    """Adds what MobileNet v3 and EfficientDet need."""

    def multiply(self, a: int, b: int) -> int:
        """Multiply two activations, the second by channel."""
        return self._op("MUL", [a, b], self.shape(a), {"kind": "MulOptions"})

    def swish(self, x: int) -> int:
        """Apply hard-swish."""
        return self._op("HARD_SWISH", [x], self.shape(x), {})

    def nearest(self, x: int, size: int) -> int:
        """Resize to `size` x `size` by repetition."""
        n, _, _, c = self.shape(x)
        inputs = [x, self._constant(np.array([size, size], np.int32))]
        return self._op("RESIZE_NEAREST_NEIGHBOR", inputs, (n, size, size, c), {})

    def excite(self, x: int) -> int:
        """Squeeze and excite: a gate by channel from the mean over the map."""
        c = self.shape(x)[-1]
        hidden = -(-c // 32) * 8
        gate = self.dense(self.dense(self.mean(x), hidden), c)
        return self.multiply(x, gate)

    def separable(self, x: int, co: int) -> int:
        """Convolve with 3x3 by channel, then 1x1."""
        return self.conv(self.depthwise(x, 3), co, 1)


def as_float(graph: Graph) -> Graph:
    """Return the graph with float32 in place of all integers of parameters and activations."""
    tensors = tuple(
        replace(t, dtype="float32", quantization=None) if t.dtype == "int8" or t.name.startswith("constant") else t
        for t in graph.tensors
    )
    return replace(graph, tensors=tensors)


# kernel, expansion, channels, squeeze-and-excitation, hard-swish, stride.
_LARGE = (
    *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1)),
    *((5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
    *((3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2)),
    *((5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
)
_SMALL = (
    *((3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1)),
    *((5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2)),
    *((5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
)


def mobilenet_v3(blocks: tuple[tuple[int, ...], ...], hidden: int, size: int = 224) -> Graph:
    """Return a MobileNet v3 of width 1.0."""
    net = PiNet(size=size)
    x = net.swish(net.conv(net.input, 16, 3, 2))
    for kernel, expanded, co, excite, swish, stride in blocks:
        act: Callable[[int], int] = net.swish if swish else lambda y: y
        ci = net.shape(x)[-1]
        y = act(net.conv(x, expanded, 1)) if expanded != ci else x
        y = act(net.depthwise(y, kernel, stride))
        y = net.conv(net.excite(y) if excite else y, co, 1)
        x = net.add(x, y) if stride == 1 and ci == co else y
    x = net.swish(net.conv(x, net.shape(x)[-1] * 6, 1))
    return net.graph(net.softmax(net.dense(net.dense(net.mean(x), hidden), 1001)))


# repeats, kernel, stride, expansion, channels (EfficientNet-B0).
_STAGES = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)


def _rounded(channels: float) -> int:
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


def _backbone(net: PiNet, width: float, depth: float) -> list[int]:
    """Return the maps of strides 8, 16 and 32."""
    x, found = net.conv(net.input, 32, 3, 2), []
    for number, (repeats, kernel, stride, expand, channels) in enumerate(_STAGES):
        co = _rounded(channels * width)
        ends = number in (0, len(_STAGES) - 1)
        for i in range(repeats if ends else math.ceil(repeats * depth)):
            ci, s = net.shape(x)[-1], 1 if i else stride
            y = x if expand == 1 else net.conv(x, ci * expand, 1)
            y = net.conv(net.depthwise(y, kernel, s), co, 1)
            x = net.add(x, y) if s == 1 and ci == co else y
        if number in (2, 4, 6):
            found.append(x)
    return found


def _fitted(net: PiNet, x: int, size: int, channels: int) -> int:
    """Bring a map to another size and number of channels."""
    if net.shape(x)[-1] != channels:
        x = net.conv(x, channels, 1)
    if net.shape(x)[1] > size:
        return net.pool(x, 3, 2)
    return net.nearest(x, size) if net.shape(x)[1] < size else x


def _fused(net: PiNet, maps: list[int], size: int, channels: int) -> int:
    first, *rest = [_fitted(net, m, size, channels) for m in maps]
    for other in rest:
        first = net.add(first, other)
    return net.separable(first, channels)


def _bifpn(net: PiNet, levels: list[int], channels: int) -> list[int]:
    """Return the five maps after one bidirectional pyramid: down to the finest, then up again."""
    sizes = [net.shape(x)[1] for x in levels]
    down = [levels[-1]]
    for x, size in zip(levels[-2::-1], sizes[-2::-1], strict=True):
        down.insert(0, _fused(net, [x, down[0]], size, channels))
    up = [down[0]]
    for number in range(1, len(levels)):
        own = [levels[number]] if number == len(levels) - 1 else [levels[number], down[number]]
        up.append(_fused(net, [*own, up[-1]], sizes[number], channels))
    return up


def efficientdet_lite(width: float, depth: float, channels: int, cells: int, repeats: int, size: int = 320) -> Graph:
    """Return an EfficientDet-Lite for 90 classes and 9 anchors, without the final suppression of boxes."""
    net = PiNet(size=size)
    levels = _backbone(net, width, depth)
    for _ in range(2):
        side = -(-net.shape(levels[-1])[1] // 2)
        levels.append(_fitted(net, levels[-1], side, channels))
    for _ in range(cells):
        levels = _bifpn(net, levels, channels)
    ends = []
    for outputs in (9 * 90, 9 * 4):
        for x in levels:
            y = x
            for _ in range(repeats):
                y = net.separable(y, channels)
            ends.append(net.flatten(net.separable(y, outputs)))
    return net.graph(ends[0])


def ssdlite_mobilenet_v2(size: int = 300) -> Graph:
    """Return SSDLite on MobileNet v2 for 91 classes, without the final suppression of boxes (arXiv 1801.04381)."""
    net = PiNet(size=size)
    x = _mobilenet_v2_body(net, _V2_STAGES[:4])
    maps = [net.conv(x, 576, 1)]
    x = _inverted(net, x, 160, 2, 6)
    for _ in range(2):
        x = _inverted(net, x, 160, 1, 6)
    x = net.conv(_inverted(net, x, 320, 1, 6), 1280, 1)
    maps.append(x)
    for co in (512, 256, 256, 128):
        x = net.conv(net.depthwise(net.conv(x, co // 2, 1), 3, 2), co, 1)
        maps.append(x)
    ends = []
    for number, m in enumerate(maps):
        anchors = 6 if number else 3
        ends += [net.flatten(net.separable(m, anchors * outputs)) for outputs in (4, 91)]
    return net.graph(ends[0])


ARCHITECTURES: dict[str, Callable[[int], Graph]] = {
    "MobileNet v1": mobilenet_v1,
    "MobileNet v2": mobilenet_v2,
    "MobileNet v3 large": partial(mobilenet_v3, _LARGE, 1280),
    "MobileNet v3 small": partial(mobilenet_v3, _SMALL, 1024),
    "EfficientDet-Lite0": partial(efficientdet_lite, 1.0, 1.0, 64, 3, 3),
    "EfficientDet-Lite1": partial(efficientdet_lite, 1.0, 1.1, 88, 4, 3),
    "EfficientDet-Lite2": partial(efficientdet_lite, 1.1, 1.2, 112, 5, 3),
    "EfficientDet-Lite3": partial(efficientdet_lite, 1.2, 1.4, 160, 6, 4),
    "EfficientDet-Lite4": partial(efficientdet_lite, 1.4, 1.8, 224, 7, 4),
    "SSDLite MobileNet v2": ssdlite_mobilenet_v2,
}
