"""Fake quantization for Keras models, in TensorFlow and in PyTorch: what a quantization-aware fine-tune inserts.

Activations: int8, one asymmetric scale per tensor, its range a moving average. Weights: int8, symmetric, one scale per
output channel (or one), range the largest magnitude. Method: Jacob et al. 2017, arXiv 1712.05877.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOMENTUM = 0.01
# Axis of the output channels in the kernel of each layer; a depthwise kernel has two that count together.
_CHANNELS: dict[str, tuple[int, ...]] = {
    "Dense": (-1,),
    "Conv1D": (-1,),
    "Conv2D": (-1,),
    "DepthwiseConv2D": (-2, -1),
    "Conv2DTranspose": (-2,),
}
WEIGHTED = frozenset(_CHANNELS)
_observing = [False]


@contextmanager
def observing() -> Iterator[None]:
    """Let all layers of this process widen their ranges to what they see, and pass it on unchanged."""
    _observing[0] = True
    try:
        yield
    finally:
        _observing[0] = False


@functools.cache
def layers() -> tuple[Any, Any]:  # noqa: C901 - two classes whose bases are imported here
    """Return the classes FakeQuant and FakeQuantWeights, registered with Keras so that saved models load."""
    import keras

    register = keras.saving.register_keras_serializable(package="edgekit")

    @register
    class FakeQuant(keras.layers.Layer):  # type: ignore[misc]
        """Of an activation: limits that move while training, fixed in inference and once `settled`."""

        def build(self, _: Any) -> None:
            self.low = self.add_weight(name="low", shape=(), initializer="zeros", trainable=False)
            self.high = self.add_weight(name="high", shape=(), initializer="zeros", trainable=False)
            self.settled = self.add_weight(name="settled", shape=(), initializer="zeros", trainable=False)
            self.built = True

        def call(self, values: Any, training: bool | None = None) -> Any:
            ops = keras.ops
            if _observing[0]:
                self.low.assign(ops.minimum(self.low, ops.min(values)))
                self.high.assign(ops.maximum(self.high, ops.max(values)))
                return values
            if training:
                step = _MOMENTUM * (1.0 - self.settled)
                self.low.assign(self.low + step * (ops.minimum(ops.min(values), 0.0) - self.low))
                self.high.assign(self.high + step * (ops.maximum(ops.max(values), 0.0) - self.high))
            low = ops.convert_to_tensor(self.low)
            return _activation(values, low, ops.maximum(self.high, low + 1e-6))

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    @register
    class FakeQuantWeights(keras.layers.Wrapper):  # type: ignore[misc]
        """A layer whose kernel is fake-quantized whenever it runs."""

        def __init__(self, layer: Any, per_tensor: bool = False, **kwargs: Any) -> None:
            super().__init__(layer, **kwargs)
            self.per_tensor = per_tensor

        def call(self, values: Any) -> Any:
            if _observing[0]:
                return self.layer(values)
            name = next(n for n in ("_kernel", "kernel", "depthwise_kernel") if n in vars(self.layer))
            kernel = vars(self.layer)[name]
            object.__setattr__(self.layer, name, _weights(kernel, type(self.layer).__name__, self.per_tensor))
            try:
                return self.layer.call(values)
            finally:
                object.__setattr__(self.layer, name, kernel)

        def compute_output_shape(self, input_shape: Any) -> Any:
            return self.layer.compute_output_shape(input_shape)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "per_tensor": self.per_tensor}

    return FakeQuant, FakeQuantWeights


def _activation(values: Any, low: Any, high: Any) -> Any:
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.quantization.fake_quant_with_min_max_vars(values, low, high)
    import torch

    # TensorFlow moves the range so that 0 is exact; the same here, so that both carriers have the same scales.
    scale = (high - low) / 255
    zero = torch.floor(torch.clamp(-low / scale, 0, 255) + 0.5).to(torch.int32) - 128
    return torch.fake_quantize_per_tensor_affine(values, scale.reshape(1), zero.reshape(1), -128, 127)


def _weights(kernel: Any, kind: str, per_tensor: bool) -> Any:
    import keras

    ops = keras.ops
    value = ops.convert_to_tensor(kernel)
    rank = len(value.shape)
    channel = [a % rank for a in _CHANNELS[kind]]
    order = [a for a in range(rank) if a not in channel] + channel
    turned = ops.transpose(value, order)
    flat = ops.reshape(turned, (-1, 1 if per_tensor else _count(value.shape, channel)))
    made = _rounded(flat)
    back = [order.index(a) for a in range(rank)]
    return ops.transpose(ops.reshape(made, turned.shape), back)


def _count(shape: Any, axes: list[int]) -> int:
    total = 1
    for axis in axes:
        total *= int(shape[axis])
    return total


def _rounded(flat: Any) -> Any:
    """Return a matrix [N, C] on the grid of its columns' symmetric scales, max |w| / 127; gradients pass through."""
    import keras

    ops = keras.ops
    peak = ops.maximum(ops.max(ops.abs(flat), axis=0), 1e-9)
    peak = keras.ops.stop_gradient(peak)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.quantization.fake_quant_with_min_max_vars_per_channel(flat, -peak, peak, narrow_range=True)
    import torch

    scale = (peak * 2 / 254).detach()
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(flat, scale, zero, 1, -127, 127)
