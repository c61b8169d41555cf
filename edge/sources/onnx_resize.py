"""ONNX Resize and Upsample, in PyTorch: as the builtin resize where that is the same, else by indices or a matrix.

Along one axis, output index i reads the source at a coordinate x(i) that `coordinate_transformation_mode` gives; the
kernel (nearest, linear, cubic) turns it into weights (ONNX specification of Resize, opsets 10 to 19).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.sources.onnx_node import Node, UnsupportedError, converter

_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
}


@dataclass(frozen=True, kw_only=True)
class _Axis:
    size: int
    target: int
    scale: float


@converter("Resize", "Upsample")
def _resize(n: Node) -> Any:
    x = n[0]
    axes = [_axis(n, i, x.shape) for i in range(x.dim())]
    changed = [i for i, a in enumerate(axes) if a.target != a.size]
    if not changed:
        return x
    mode = n.attribute("mode", "nearest")
    if mode == "nearest":
        return _nearest(n, x, axes, changed)
    if mode in ("linear", "bilinear", "trilinear", "cubic"):
        return _weighted(n, x, axes, changed)
    raise UnsupportedError(f"the mode {mode!r}")


def _axis(n: Node, position: int, shape: Any) -> _Axis:
    """Return one axis with its output size; `axes` of the operator may leave it alone."""
    size, scales, sizes = int(shape[position]), _scales(n), None
    if n.kind == "Resize" and scales is None:
        sizes = n.constant(3, "sizes")
    chosen = [int(a) % len(shape) for a in n.attribute("axes") or range(len(shape))]
    if position not in chosen:
        return _Axis(size=size, target=size, scale=1.0)
    at = chosen.index(position)
    if n.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("keep_aspect_ratio_policy is set")
    if scales is not None:
        return _Axis(size=size, target=int(np.floor(size * scales[at])), scale=float(scales[at]))
    if sizes is None:
        raise UnsupportedError("it has neither scales nor sizes")
    return _Axis(size=size, target=int(sizes[at]), scale=int(sizes[at]) / size)


def _scales(n: Node) -> list[float] | None:
    if "scales" in n.attributes:
        return list(n.attributes["scales"])
    position = 1 if n.kind == "Upsample" or n.opset < 11 else 2
    found = n.constant(position, "scales")
    return None if found is None or found.size == 0 else [float(v) for v in found.ravel()]


def _coordinates(n: Node, axis: _Axis) -> NDArray[np.float32]:
    # In float32, as onnxruntime computes them: at a tie nearest would fall on the other side.
    i, scale, half = np.arange(axis.target, dtype=np.float32), np.float32(axis.scale), np.float32(0.5)
    mode = n.attribute("coordinate_transformation_mode", "half_pixel")
    if n.kind == "Upsample" or n.opset < 11:
        mode = "asymmetric"
    if mode == "asymmetric":
        return np.asarray(i / scale)
    if mode == "align_corners":
        return np.asarray(i * np.float32(axis.size - 1) / np.float32(max(axis.target - 1, 1)))
    if mode == "pytorch_half_pixel" and axis.target == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.asarray((i + half) / scale - half)
    if mode == "half_pixel_symmetric":
        adjusted = np.float32(axis.target) / (scale * np.float32(axis.size))
        return np.asarray(np.float32(axis.size / 2) * (1 - adjusted) + (i + half) / scale - half)
    raise UnsupportedError(f"the coordinate_transformation_mode {mode!r}")


def _indices(n: Node, axis: _Axis) -> NDArray[np.int64]:
    x = _coordinates(n, axis)
    mode = n.attribute("nearest_mode", "round_prefer_floor")
    if n.kind == "Upsample" or n.opset < 11:
        mode = "floor"
    if mode not in _ROUNDINGS:
        raise UnsupportedError(f"the nearest_mode {mode!r}")
    rounded = np.clip(_ROUNDINGS[mode](x), 0, axis.size - 1)
    return np.asarray(rounded, np.int64)


def _nearest(n: Node, x: Any, axes: list[_Axis], changed: list[int]) -> Any:
    import torch

    indices = {i: _indices(n, axes[i]) for i in changed}
    builtin = all(
        np.array_equal(index, np.arange(axes[i].target) * axes[i].size // axes[i].target)
        for i, index in indices.items()
    )
    if builtin and x.dim() == 4 and min(changed) >= 2:
        return torch.nn.functional.interpolate(x, size=[axes[2].target, axes[3].target], mode="nearest")
    for i, index in indices.items():
        x = torch.index_select(x, i, torch.from_numpy(index))
    return x


def _matrix(n: Node, axis: _Axis) -> NDArray[np.float32]:
    """Return the weights [target, size] of linear or cubic interpolation along one axis."""
    if n.attribute("antialias", 0) and axis.target < axis.size:
        raise UnsupportedError("antialias is set")
    x = _coordinates(n, axis).astype(np.float64)
    cubic = n.attribute("mode") == "cubic"
    base = np.floor(x).astype(np.int64)
    weights = np.zeros((axis.target, axis.size))
    for offset in range(-1, 3) if cubic else range(2):
        share = _kernel(n, np.abs(x - (base + offset)), cubic=cubic)
        place = base + offset
        if n.attribute("exclude_outside", 0):
            share = np.where((place < 0) | (place >= axis.size), 0.0, share)
        np.add.at(weights, (np.arange(axis.target), np.clip(place, 0, axis.size - 1)), share)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _kernel(n: Node, distance: NDArray[np.float64], *, cubic: bool) -> NDArray[np.float64]:
    if not cubic:
        return np.asarray(np.maximum(0.0, 1.0 - distance))
    a = float(n.attribute("cubic_coeff_a", -0.75))  # Keys 1981, equation 4
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.asarray(np.where(distance <= 1, near, np.where(distance < 2, far, 0.0)))


def _weighted(n: Node, x: Any, axes: list[_Axis], changed: list[int]) -> Any:
    import torch

    matrices = {i: _matrix(n, axes[i]) for i in changed}
    linear = n.attribute("mode") != "cubic" and x.dim() == 4 and min(changed) >= 2
    for corners in (False, True) if linear else ():
        if all(np.allclose(m, _builtin(axes[i], corners=corners), atol=1e-5) for i, m in matrices.items()):
            size = [axes[2].target, axes[3].target]
            return torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=corners)
    for i, matrix in matrices.items():
        x = torch.movedim(torch.matmul(torch.movedim(x, i, -1), torch.from_numpy(matrix.T.copy())), -1, i)
    return x


def _builtin(axis: _Axis, *, corners: bool) -> NDArray[np.float32]:
    i = np.arange(axis.target, dtype=np.float64)
    if corners:
        x = i * ((axis.size - 1) / max(axis.target - 1, 1))
    else:
        x = np.maximum((i + 0.5) * (axis.size / axis.target) - 0.5, 0.0)
    base = np.minimum(np.floor(x).astype(np.int64), axis.size - 1)
    weights = np.zeros((axis.target, axis.size))
    rows = np.arange(axis.target)
    np.add.at(weights, (rows, base), 1 - (x - base))
    np.add.at(weights, (rows, np.minimum(base + 1, axis.size - 1)), x - base)
    return weights.astype(np.float32)
