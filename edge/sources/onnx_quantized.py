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
    """Tell whether an operator on constants stays in the graph: a dequantized weight, not an int32 bias."""
    return kind in KEPT and (kind == "QuantizeLinear" or str(np.asarray(stored).dtype) in _WIDTHS)


def folded(values: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Return what DequantizeLinear makes of known integers, such as an int32 bias; float32 of their shape."""
    stored, scale = np.asarray(values[0]), np.asarray(values[1], np.float64)
    zero = np.asarray(values[2] if len(values) > 2 and values[2] is not None else 0, np.float64)
    if scale.size > 1:
        shape = [1] * stored.ndim
        shape[int(attributes.get("axis", 1)) % stored.ndim] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return ((stored.astype(np.float64) - zero) * scale).astype(np.float32)


def _settings(n: Node) -> tuple[Any, Any, int | None, int]:
    """Return scale, zero point as int8, channel axis (None: one scale), and what was taken from the zero point."""
    import torch

    scale, zero = n.constant(1, "the scale"), n.constant(2, "the zero point")
    if scale is None:
        raise UnsupportedError("the scale is missing")
    kind = "uint8" if zero is None and n.kind == "QuantizeLinear" else str(zero.dtype) if zero is not None else None
    if kind is None:
        kind = "int8" if n.constants[0] is not None and n.constants[0].dtype == np.int8 else "uint8"
    if kind not in _WIDTHS or n.attribute("block_size", 0):
        raise UnsupportedError(f"it stores {kind}; scales of int8 and uint8 are kept")
    shift = 128 if kind == "uint8" else 0
    scales = torch.from_numpy(np.asarray(scale, np.float32).reshape(-1).copy())
    zeros = np.zeros(scales.shape, np.int64) if zero is None else np.asarray(zero, np.int64).reshape(-1)
    axis = int(n.attribute("axis", 1)) % max(1, n[0].dim()) if scales.numel() > 1 else None
    return scales, torch.from_numpy(zeros - shift), axis, shift


@converter("QuantizeLinear")
def _quantize(n: Node) -> Any:
    import torch

    scale, zero, axis, _ = _settings(n)
    q = torch_fake_quant.operators()
    if axis is None:
        return q.quantize_per_tensor.default(n[0], float(scale[0]), int(zero[0]), -128, 127, torch.int8)
    return q.quantize_per_channel.default(n[0], scale, zero, axis, -128, 127, torch.int8)


@converter("DequantizeLinear")
def _dequantize(n: Node) -> Any:
    import torch

    scale, zero, axis, shift = _settings(n)
    stored = n[0] if n.constants[0] is None else (n[0].to(torch.int16) - shift).to(torch.int8)
    q = torch_fake_quant.operators()
    if axis is None:
        return q.dequantize_per_tensor.default(stored, float(scale[0]), int(zero[0]), -128, 127, torch.int8)
    return q.dequantize_per_channel.default(stored, scale, zero, axis, -128, 127, torch.int8)
