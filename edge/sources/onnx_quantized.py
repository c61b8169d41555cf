"""ONNX QuantizeLinear and DequantizeLinear: the scales that a quantization-aware export (QDQ) brings, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge.sources.onnx_node import Node, UnsupportedError, converter
from edge.targets import torch_fake_quant

# What a network of integers keeps as such when it is read: weights with a scale. Folding them would lose it.
KEPT = frozenset({"DequantizeLinear", "QuantizeLinear"})
_WIDTHS = ("int8", "uint8")


def keeps(kind: str, stored: Any) -> bool:
    """Tell whether an operator on constants stays in the graph: a dequantized weight, not an int32 bias or a scalar.

    A scalar is exact on any scale, and converters mistake a pair around it for a tensor with a layout.
    """
    if kind != "DequantizeLinear":
        return kind in KEPT
    values = np.asarray(stored)
    return values.size > 1 and str(values.dtype) in _WIDTHS


def folded(values: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Return what DequantizeLinear makes of known integers, such as an int32 bias; float32 of their shape."""
    stored, scale = np.asarray(values[0]), np.asarray(values[1], np.float64)
    zero = np.asarray(values[2] if len(values) > 2 and values[2] is not None else 0, np.float64)
    if scale.size > 1:
        shape = [1] * stored.ndim
        shape[int(attributes.get("axis", 1)) % stored.ndim] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return ((stored.astype(np.float64) - zero) * scale).astype(np.float32)


def signed(constants: Sequence[Any]) -> tuple[Any, ...]:
    """Return the inputs of a kept DequantizeLinear with stored uint8 as int8, integers and zero point moved by 128.

    The converters behind PyTorch know no constants of unsigned integers.
    """
    stored, scale, *rest = constants
    if str(getattr(stored, "dtype", "")) != "uint8":
        return tuple(constants)
    zero = np.asarray(rest[0] if rest and rest[0] is not None else np.zeros(np.shape(scale)), np.int16)
    return (np.asarray(stored, np.int16) - 128).astype(np.int8), scale, (zero - 128).astype(np.int8)


def _settings(n: Node) -> tuple[Any, Any, int | None]:
    """Return scale [1] or [C] float32, zero point as int8 of the same shape, and channel axis (None: one scale)."""
    scale, zero = (n.constants[i] if i < len(n.constants) else None for i in (1, 2))
    if scale is None:
        raise UnsupportedError("its scale depends on the data; a program has fixed scales")
    # Without a zero point the integers' own dtype says it; ONNX makes uint8 of floats then.
    stored = n.constants[0] if n.kind == "DequantizeLinear" else None
    known = stored if zero is None else zero
    kind = "uint8" if known is None else str(known.dtype)
    if kind not in _WIDTHS or n.attribute("block_size", 0):
        raise UnsupportedError(f"it stores {kind}; scales of int8 and uint8 are kept")
    scales = np.array(scale, np.float32).reshape(-1)
    zeros = np.zeros(scales.shape, np.int64) if zero is None else np.array(zero, np.int64).reshape(-1)
    axis = int(n.attribute("axis", 1)) % max(1, n[0].dim()) if scales.size > 1 else None
    return scales, zeros - (128 if kind == "uint8" else 0), axis


def _called(n: Node, one: Any, channels: Any) -> Any:
    import torch

    scale, zero, axis = _settings(n)
    if axis is None:
        return one.default(n[0], float(scale[0]), int(zero[0]), -128, 127, torch.int8)
    return channels.default(n[0], torch.from_numpy(scale), torch.from_numpy(zero), axis, -128, 127, torch.int8)


@converter("QuantizeLinear")
def _quantize(n: Node) -> Any:
    q = torch_fake_quant.operators()
    return _called(n, q.quantize_per_tensor, q.quantize_per_channel)


@converter("DequantizeLinear")
def _dequantize(n: Node) -> Any:
    q = torch_fake_quant.operators()
    return _called(n, q.dequantize_per_tensor, q.dequantize_per_channel)
