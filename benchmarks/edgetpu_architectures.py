"""Architectures of the published Edge TPU latency table as int8 graphs: shapes and options only, no weights.

Sources are the papers and the reference code they link: MobileNet (arXiv 1704.04861), Inception v1 (1409.4842,
with the 3x3 in place of the 5x5 as in TF-slim) and v4 (1602.07261), DenseNet-121 (1608.06993), ResNet v2 (1603.05027),
SqueezeNet 1.0 (1602.07360), VGG (1409.1556), MobileNet v2 (1801.04381), DeepLab V3 on MobileNet v2 (1706.05587).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.signature import Quantization
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph, Op, Tensor

_CLASSES = 1000
# Operator versions of int8 models of the published table's time; 2 where not listed.
_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "RESHAPE": 1}


class Net:
    """A graph under construction. Methods take and return tensor indices; all activations are NHWC int8."""

    def __init__(self, *, size: int) -> None:
        self._tensors: list[Tensor] = []
        self._buffers: list[NDArray[np.uint8] | None] = [None]
        self._ops: list[Op] = []
        self.input = self._activation("input", (1, size, size, 3))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._tensors[tensor].shape

    def _add(self, name: str, shape: Sequence[int], dtype: str, quantization: Quantization | None, buffer: int) -> int:
        size = tuple(int(d) for d in shape)
        index = len(self._tensors)
        self._tensors.append(Tensor(index, name, size, size, dtype, quantization, buffer > 0, False, buffer))
        return index

    def _activation(self, name: str, shape: Sequence[int], dtype: str = "int8") -> int:
        return self._add(name, shape, dtype, Quantization(scale=(0.05,), zero_point=(0,)), 0)

    def _constant(self, data: NDArray[Any], quantization: Quantization | None = None) -> int:
        self._buffers.append(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        buffer = len(self._buffers) - 1
        return self._add(f"constant_{buffer}", data.shape, str(data.dtype), quantization, buffer)

    def _weights(self, shape: tuple[int, ...], axis: int) -> int:
        """Add a weight of zeros that takes no memory; scales per channel."""
        count = shape[axis]
        self._buffers.append(np.broadcast_to(np.uint8(0), (int(np.prod(shape)),)))
        per_channel = Quantization(scale=(0.01,) * count, zero_point=(0,) * count, axis=axis)
        return self._add("weights", shape, "int8", per_channel, len(self._buffers) - 1)

    def _bias(self, count: int) -> int:
        values = np.arange(count, dtype=np.int32)
        return self._constant(values, Quantization(scale=(0.0005,), zero_point=(0,)))

    def _op(
        self, name: str, inputs: list[int], shape: Sequence[int], options: dict[str, Any], dtype: str = "int8"
    ) -> int:
        out = self._activation(f"{name.lower()}_{len(self._ops)}", shape, dtype)
        kind = options.pop("kind", None)
        value = getattr(flatbuffer.schema(), f"{kind}T")() if kind else None
        for key, field in options.items():
            setattr(value, key, field)
        self._ops.append(Op(len(self._ops), name, _VERSIONS.get(name, 2), tuple(inputs), (out,), value))
        return out

    def conv(
        self, x: int, co: int, k: int | tuple[int, int], s: int = 1, *, valid: bool = False, dilate: int = 1
    ) -> int:
        """Convolve with a `k` kernel into `co` channels; a ReLU is fused."""
        kh, kw = (k, k) if isinstance(k, int) else k
        n, h, w, ci = self.shape(x)
        shape = (n, _out(h, kh, s, valid), _out(w, kw, s, valid), co)
        options = {"kind": "Conv2DOptions", **_window(s, valid), "dilationHFactor": dilate, "dilationWFactor": dilate}
        return self._op("CONV_2D", [x, self._weights((co, kh, kw, ci), 0), self._bias(co)], shape, options)

    def depthwise(self, x: int, k: int = 3, s: int = 1, *, dilate: int = 1) -> int:
        """Convolve each channel on its own with a `k` x `k` kernel."""
        n, h, w, c = self.shape(x)
        options = {
            "kind": "DepthwiseConv2DOptions",
            **_window(s, False),
            "dilationHFactor": dilate,
            "dilationWFactor": dilate,
            "depthMultiplier": 1,
        }
        shape = (n, _out(h, k, s, False), _out(w, k, s, False), c)
        return self._op("DEPTHWISE_CONV_2D", [x, self._weights((1, k, k, c), 3), self._bias(c)], shape, options)

    def pool(self, x: int, k: int, s: int, *, valid: bool = False, average: bool = False) -> int:
        """Take the maximum or the average over a `k` x `k` window."""
        n, h, w, c = self.shape(x)
        options = {"kind": "Pool2DOptions", **_window(s, valid), "filterHeight": k, "filterWidth": k}
        name = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
        return self._op(name, [x], (n, _out(h, k, s, valid), _out(w, k, s, valid), c), options)

    def mean(self, x: int) -> int:
        """Average over height and width."""
        n, _, _, c = self.shape(x)
        axes = self._constant(np.array([1, 2], np.int32))
        return self._op("MEAN", [x, axes], (n, c), {"kind": "ReducerOptions", "keepDims": False})

    def add(self, a: int, b: int) -> int:
        """Add two activations."""
        return self._op("ADD", [a, b], self.shape(a), {"kind": "AddOptions"})

    def normalise(self, x: int) -> int:
        """Apply a batch normalisation that no convolution can absorb: a MUL and an ADD by channel."""
        q = Quantization(scale=(0.01,), zero_point=(0,))
        for name in ("MUL", "ADD"):
            c = self._constant(np.zeros((1, 1, 1, self.shape(x)[-1]), np.int8), q)
            x = self._op(name, [x, c], self.shape(x), {"kind": f"{name.title()}Options"})
        return x

    def concat(self, *xs: int) -> int:
        """Join activations along the channels."""
        *head, _ = self.shape(xs[0])
        channels = sum(self.shape(x)[-1] for x in xs)
        return self._op("CONCATENATION", list(xs), (*head, channels), {"kind": "ConcatenationOptions", "axis": 3})

    def dense(self, x: int, units: int) -> int:
        """Connect a 2-D activation to `units` outputs."""
        n, ci = self.shape(x)
        inputs = [x, self._weights((units, ci), 0), self._bias(units)]
        return self._op("FULLY_CONNECTED", inputs, (n, units), {"kind": "FullyConnectedOptions"})

    def flatten(self, x: int) -> int:
        """Reshape to [batch, elements]."""
        n, *rest = self.shape(x)
        target = (n, int(np.prod(rest)))
        return self._op("RESHAPE", [x, self._constant(np.array(target, np.int32))], target, {"kind": "ReshapeOptions"})

    def softmax(self, x: int) -> int:
        """Normalise the last axis to probabilities."""
        return self._op("SOFTMAX", [x], self.shape(x), {"kind": "SoftmaxOptions", "beta": 1.0})

    def resize(self, x: int, size: int) -> int:
        """Resize bilinearly to `size` x `size`."""
        n, _, _, c = self.shape(x)
        inputs = [x, self._constant(np.array([size, size], np.int32))]
        options = {"kind": "ResizeBilinearOptions", "alignCorners": True}
        return self._op("RESIZE_BILINEAR", inputs, (n, size, size, c), options)

    def argmax(self, x: int) -> int:
        """Take the index of the largest channel."""
        axis = self._constant(np.array(3, np.int32))
        return self._op("ARG_MAX", [x, axis], self.shape(x)[:-1], {"kind": "ArgMaxOptions"}, "int64")

    def graph(self, output: int) -> Graph:
        """Return the finished graph."""
        return Graph(
            tensors=tuple(self._tensors),
            ops=tuple(self._ops),
            inputs=(self.input,),
            outputs=(output,),
            name="main",
            _buffers=tuple(self._buffers),
        )


def _out(size: int, k: int, s: int, valid: bool) -> int:
    return (size - k) // s + 1 if valid else -(-size // s)


def _window(s: int, valid: bool) -> dict[str, int]:
    return {"strideH": s, "strideW": s, "padding": int(valid)}


def mobilenet_v1(size: int = 224) -> Graph:
    """MobileNet v1, width 1.0."""
    net = Net(size=size)
    x = net.conv(net.input, 32, 3, 2)
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for co, s in blocks:
        x = net.conv(net.depthwise(x, 3, s), co, 1)
    return net.graph(net.softmax(net.dense(net.mean(x), _CLASSES + 1)))


def _inverted(net: Net, x: int, co: int, s: int, expand: int, dilate: int = 1) -> int:
    ci = net.shape(x)[-1]
    y = x if expand == 1 else net.conv(x, ci * expand, 1)
    y = net.conv(net.depthwise(y, 3, s, dilate=dilate), co, 1)
    return net.add(x, y) if s == 1 and ci == co else y


# (channels, repeats, stride) of the stages after the first block (arXiv 1801.04381, table 2).
_V2_STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def _mobilenet_v2_body(net: Net, stages: Sequence[tuple[int, int, int]], dilate_last: int = 0) -> int:
    x = _inverted(net, net.conv(net.input, 32, 3, 2), 16, 1, 1)
    for number, (co, repeats, stride) in enumerate(stages):
        dilate = 2 if dilate_last and number >= len(stages) - dilate_last else 1
        for i in range(repeats):
            x = _inverted(net, x, co, 1 if i or dilate > 1 else stride, 6, dilate)
    return x


def mobilenet_v2(size: int = 224) -> Graph:
    """MobileNet v2, width 1.0."""
    net = Net(size=size)
    x = net.conv(_mobilenet_v2_body(net, _V2_STAGES), 1280, 1)
    return net.graph(net.softmax(net.dense(net.mean(x), _CLASSES + 1)))


def deeplab_v3(size: int = 513) -> Graph:
    """DeepLab V3 on MobileNet v2 with output stride 16 and 21 classes, as in Google's Coral model zoo."""
    net = Net(size=size)
    x = _mobilenet_v2_body(net, _V2_STAGES, dilate_last=2)
    side = net.shape(x)[1]
    pooled = net.resize(net.conv(net.pool(x, side, side, valid=True, average=True), 256, 1), side)
    x = net.conv(net.conv(net.concat(pooled, net.conv(x, 256, 1)), 256, 1), 21, 1)
    return net.graph(net.argmax(net.resize(net.resize(x, side), size)))


def _inception_v1_block(net: Net, x: int, widths: tuple[int, int, int, int, int, int]) -> int:
    a, b1, b2, c1, c2, d = widths
    return net.concat(
        net.conv(x, a, 1),
        net.conv(net.conv(x, b1, 1), b2, 3),
        net.conv(net.conv(x, c1, 1), c2, 3),
        net.conv(net.pool(x, 3, 1), d, 1),
    )


def inception_v1(size: int = 224) -> Graph:
    """Inception v1 (GoogLeNet) as TF-slim has it."""
    net = Net(size=size)
    x = net.pool(net.conv(net.input, 64, 7, 2), 3, 2)
    x = net.pool(net.conv(net.conv(x, 64, 1), 192, 3), 3, 2)
    for widths in ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)):
        x = _inception_v1_block(net, x, widths)
    x = net.pool(x, 3, 2)
    middle = (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    )
    for widths in middle:
        x = _inception_v1_block(net, x, widths)
    x = net.pool(x, 2, 2)
    for widths in ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)):
        x = _inception_v1_block(net, x, widths)
    return net.graph(net.softmax(net.dense(net.mean(x), _CLASSES + 1)))


_Path = tuple[tuple[int, int | tuple[int, int]], ...]


def _path(net: Net, x: int, steps: _Path) -> int:
    for co, k in steps:
        x = net.conv(x, co, k)
    return x


def _inception_v4_stem(net: Net) -> int:
    x = net.conv(net.conv(net.input, 32, 3, 2, valid=True), 32, 3, valid=True)
    x = net.conv(x, 64, 3)
    x = net.concat(net.pool(x, 3, 2, valid=True), net.conv(x, 96, 3, 2, valid=True))
    left = net.conv(net.conv(x, 64, 1), 96, 3, valid=True)
    right = net.conv(_path(net, x, ((64, 1), (64, (1, 7)), (64, (7, 1)))), 96, 3, valid=True)
    x = net.concat(left, right)
    return net.concat(net.conv(x, 192, 3, 2, valid=True), net.pool(x, 3, 2, valid=True))


def _inception_v4_block(net: Net, x: int, pooled: int, paths: tuple[_Path, ...]) -> int:
    branches = [_path(net, x, steps) for steps in paths]
    return net.concat(*branches, net.conv(net.pool(x, 3, 1, average=True), pooled, 1))


def _inception_v4_c(net: Net, x: int) -> int:
    middle = net.conv(x, 384, 1)
    deep = _path(net, x, ((384, 1), (448, (1, 3)), (512, (3, 1))))
    return net.concat(
        net.conv(x, 256, 1),
        *(net.conv(y, 256, k) for y in (middle, deep) for k in ((1, 3), (3, 1))),
        net.conv(net.pool(x, 3, 1, average=True), 256, 1),
    )


def inception_v4(size: int = 299) -> Graph:
    """Inception v4."""
    net = Net(size=size)
    x = _inception_v4_stem(net)
    for _ in range(4):
        x = _inception_v4_block(net, x, 96, (((96, 1),), ((64, 1), (96, 3)), ((64, 1), (96, 3), (96, 3))))
    deep = net.conv(_path(net, x, ((192, 1), (224, 3))), 256, 3, 2, valid=True)
    x = net.concat(net.pool(x, 3, 2, valid=True), net.conv(x, 384, 3, 2, valid=True), deep)
    short: _Path = ((192, 1), (224, (1, 7)), (256, (7, 1)))
    long: _Path = ((192, 1), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1)))
    for _ in range(7):
        x = _inception_v4_block(net, x, 128, (((384, 1),), short, long))
    left = net.conv(net.conv(x, 192, 1), 192, 3, 2, valid=True)
    right = net.conv(_path(net, x, ((256, 1), (256, (1, 7)), (320, (7, 1)))), 320, 3, 2, valid=True)
    x = net.concat(net.pool(x, 3, 2, valid=True), left, right)
    for _ in range(3):
        x = _inception_v4_c(net, x)
    return net.graph(net.softmax(net.dense(net.mean(x), _CLASSES + 1)))


def densenet121(size: int = 224) -> Graph:
    """DenseNet-121."""
    net = Net(size=size)
    x = net.pool(net.conv(net.input, 64, 7, 2), 3, 2)
    for stage, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            x = net.concat(x, net.conv(net.conv(net.normalise(x), 128, 1), 32, 3))
        if stage < 3:
            x = net.pool(net.conv(net.normalise(x), net.shape(x)[-1] // 2, 1), 2, 2, average=True)
    return net.graph(net.softmax(net.dense(net.mean(net.normalise(x)), _CLASSES)))


def resnet_v2(layers: tuple[int, ...], size: int = 299) -> Graph:
    """Return a ResNet v2 with bottlenecks, stride in the last block of a stage (`layers`: blocks by stage)."""
    net = Net(size=size)
    x = net.pool(net.conv(net.input, 64, 7, 2), 3, 2)
    for stage, blocks in enumerate(layers):
        width = 64 << stage
        for block in range(blocks):
            s = 2 if block == blocks - 1 and stage < len(layers) - 1 else 1
            y = net.normalise(x)
            shortcut = net.conv(y, 4 * width, 1) if block == 0 else x if s == 1 else net.pool(x, 1, s)
            y = net.conv(net.conv(net.conv(y, width, 1), width, 3, s), 4 * width, 1)
            x = net.add(shortcut, y)
    return net.graph(net.softmax(net.dense(net.mean(net.normalise(x)), _CLASSES)))


def squeezenet(size: int = 224) -> Graph:
    """SqueezeNet 1.0."""
    net = Net(size=size)
    x = net.conv(net.input, 96, 7, 2)
    pools = {0, 3, 7}
    for number, (squeeze, expand) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        if number in pools:
            x = net.pool(x, 3, 2, valid=True)
        x = net.conv(x, squeeze, 1)
        x = net.concat(net.conv(x, expand, 1), net.conv(x, expand, 3))
    return net.graph(net.softmax(net.mean(net.conv(x, _CLASSES, 1))))


def vgg(layers: tuple[int, ...], size: int = 224) -> Graph:
    """Return a VGG network (`layers`: 3x3 convolutions by stage)."""
    net = Net(size=size)
    x = net.input
    for count, co in zip(layers, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            x = net.conv(x, co, 3)
        x = net.pool(x, 2, 2, valid=True)
    return net.graph(net.softmax(net.dense(net.dense(net.dense(net.flatten(x), 4096), 4096), _CLASSES)))


ARCHITECTURES: dict[str, Callable[[int], Graph]] = {
    "MobileNet v1": mobilenet_v1,
    "Inception v1": inception_v1,
    "Inception v4": inception_v4,
    "DenseNet": densenet121,
    "DeepLab V3": deeplab_v3,
    "ResNet-50 V2": partial(resnet_v2, (3, 4, 6, 3)),
    "SqueezeNet": squeezenet,
    "VGG16": partial(vgg, (2, 2, 3, 3, 3)),
    "MobileNet v2": mobilenet_v2,
    "ResNet-152 V2": partial(resnet_v2, (3, 8, 36, 3)),
    "VGG19": partial(vgg, (2, 2, 4, 4, 4)),
}
