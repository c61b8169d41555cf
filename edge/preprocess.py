"""From one raw sample to the model's input, in arithmetic that another language can repeat bit for bit.

The steps, in this order. All divisions of integers written // round down; sizes are (height, width).

1. Fit (images only, see `place`): which part of the raw image is scaled, to what size, and where it is put.
2. Kernel, on uint8 with integer weights; along an axis of `n` raw pixels and `m` result pixels, for result pixel `d`:
   * nearest: raw pixel ((2d + 1) * n) // (2m).
   * bilinear (half-pixel centres, two taps, no antialiasing): p = (2d + 1) * n - m, i = p // (2m),
     w = ((p - 2m * i) * 2048 + m) // (2m); taps i (weight 2048 - w) and i + 1 (weight w), both clamped to [0, n - 1].
     Value = (sum over both axes of wy * wx * pixel + 2^21) >> 22: rounded once.
   * area: weight of raw pixel i = overlap of [i * m, (i + 1) * m) with [d * n, (d + 1) * n), which sum to n.
     With S = sum of wy * wx * pixel and N = raw height * raw width: value = (2 * S + N) // (2 * N).
   * antialias (the triangle filter of Pillow's `BILINEAR`, bit-identical): a_i = max(0, 2 * max(n, m) -
     |(2i + 1) * m - (2d + 1) * n|), A = sum of a_i, weight_i = (a_i * 2^23 + A) // (2 * A). The horizontal pass comes
     first (Pillow 13 turns the passes round where the height shrinks much more than the width, which can change a
     value by 1); after each pass value = (sum of weight * pixel + 2^21) >> 22.
   All intermediate values of nearest, bilinear and antialias fit int32, those of area int64.
3. Colour: raw colour images are RGB. Gray = (19595 * R + 38470 * G + 7471 * B + 32768) >> 16 (Pillow's `L`). An input
   of one channel takes gray whatever is declared; an input of three takes gray three times where `colour` is gray or
   the raw image is gray.
4. Numbers: x = float32(raw), x = x * float32(scale), x = x - float32(mean), x = x / float32(std), each step rounded to
   float32 (no fused multiply-add). An integer input takes the result only if it is whole and in the dtype's range;
   with the identity its integers never pass through float32.
5. Layout: channels last or first, as the input's layout says; a batch dimension of 1 in front.

Worked number: raw 200, scale 1/127.5, mean 1 -> 200 * 0.007843138 - 1 = 0.5686275.
A dequantization real = s * (q - z) is scale = s, mean = s * z: s 0.5847029 and z 83 give mean 48.5303407.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConfigError, DataError
from edge.signature import Colour, Fit, Preprocess, Resize, TensorSpec

Array = NDArray[Any]

_LUMA = np.array([19595, 38470, 7471], np.int32)
_BILINEAR_ONE = 1 << 11
_FIXED_BITS = 22
_HALF = 1 << (_FIXED_BITS - 1)


# --- fit ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a raw image lies in the input.

    `box` (top, left, height, width) of the raw image, in raw pixels, is scaled to `size` (height, width) and put at
    `offset` (top, left) of the input. A raw y maps to (y - box top) * size height / box height + offset top.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)


def place(raw: tuple[int, int], size: tuple[int, int], fit: Fit) -> Placement:
    """Return where an image of `raw` (height, width) lies in an input of `size` (height, width).

    `crop` takes the largest centred box of the input's aspect ratio; `letterbox` keeps the whole image, centred;
    `corner` keeps it too, at the top left.
    Lengths are rounded half up and at least 1; an odd pixel of margin falls to the bottom or right.
    """
    (h, w), (height, width) = raw, size
    wide = w * height > h * width
    if fit == "crop":
        crop_h = h if wide else _ratio(w, height, width)
        crop_w = _ratio(h, width, height) if wide else w
        return Placement(box=((h - crop_h) // 2, (w - crop_w) // 2, crop_h, crop_w), size=size)
    if fit in ("letterbox", "corner"):
        inner_h = _ratio(h, width, w) if wide else height
        inner_w = width if wide else _ratio(w, height, h)
        offset = ((height - inner_h) // 2, (width - inner_w) // 2) if fit == "letterbox" else (0, 0)
        return Placement(box=(0, 0, h, w), size=(inner_h, inner_w), offset=offset)
    return Placement(box=(0, 0, h, w), size=size)


def _ratio(length: int, numerator: int, denominator: int) -> int:
    return max(1, (2 * length * numerator + denominator) // (2 * denominator))


# --- kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taps:
    """Raw pixels and integer weights of each result pixel along one axis; both arrays are [result, taps]."""

    index: NDArray[np.int64]
    weight: Array


@functools.lru_cache(maxsize=256)
def _nearest_index(n: int, m: int) -> NDArray[np.int64]:
    return ((2 * np.arange(m, dtype=np.int64) + 1) * n) // (2 * m)


@functools.lru_cache(maxsize=256)
def _bilinear_taps(n: int, m: int) -> _Taps:
    position = (2 * np.arange(m, dtype=np.int64) + 1) * n - m
    first = position // (2 * m)
    weight = ((position - 2 * m * first) * _BILINEAR_ONE + m) // (2 * m)
    index = np.clip(np.stack([first, first + 1], axis=1), 0, n - 1)
    return _Taps(index=index, weight=np.stack([_BILINEAR_ONE - weight, weight], axis=1).astype(np.int32))


@functools.lru_cache(maxsize=256)
def _area_taps(n: int, m: int) -> _Taps:
    d = np.arange(m, dtype=np.int64)[:, None]
    index = (d * n) // m + np.arange(-(-n // m) + 1)
    overlap = np.minimum((index + 1) * m, (d + 1) * n) - np.maximum(index * m, d * n)
    return _Taps(index=np.minimum(index, n - 1), weight=np.maximum(overlap, 0))


@functools.lru_cache(maxsize=256)
def _antialias_taps(n: int, m: int) -> _Taps:
    reach = 2 * max(n, m)
    centre = ((2 * np.arange(m, dtype=np.int64) + 1) * n)[:, None]
    first = np.maximum((centre - reach - m) // (2 * m) + 1, 0)
    index = first + np.arange(-(-reach // m) + 1)
    raw = np.where(index < n, np.maximum(reach - np.abs((2 * index + 1) * m - centre), 0), 0)
    total = raw.sum(axis=1, keepdims=True)
    weight = ((raw << (_FIXED_BITS + 1)) + total) // (2 * total)
    return _Taps(index=np.minimum(index, n - 1), weight=weight.astype(np.int32))


def _weighted(image: Array, taps: _Taps, axis: int) -> Array:
    """Return the weighted sums along an axis of an HWC image, in the weights' dtype."""
    shape = [1, 1, 1]
    shape[axis] = -1
    total: Array | None = None
    for k in range(taps.index.shape[1]):
        part = np.take(image, taps.index[:, k], axis=axis) * taps.weight[:, k].reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def _nearest(image: Array, size: tuple[int, int]) -> Array:
    rows: Array = image[_nearest_index(image.shape[0], size[0])]
    return rows[:, _nearest_index(image.shape[1], size[1])]


def _bilinear(image: Array, size: tuple[int, int]) -> Array:
    rows = _weighted(image, _bilinear_taps(image.shape[1], size[1]), 1)
    sums = _weighted(rows, _bilinear_taps(image.shape[0], size[0]), 0)
    result: Array = (sums + _HALF) >> _FIXED_BITS
    return result


def _area(image: Array, size: tuple[int, int]) -> Array:
    count = image.shape[0] * image.shape[1]
    rows = _weighted(image, _area_taps(image.shape[1], size[1]), 1)
    sums: Array = 2 * _weighted(rows, _area_taps(image.shape[0], size[0]), 0)
    result: Array = (sums + count) // (2 * count)
    return result


def _antialias(image: Array, size: tuple[int, int]) -> Array:
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            sums = _weighted(image, _antialias_taps(image.shape[axis], size[axis]), axis)
            image = ((sums + _HALF) >> _FIXED_BITS).astype(np.uint8)
    return image


_KERNELS: Mapping[str, Callable[[Array, tuple[int, int]], Array]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "area": _area,
    "antialias": _antialias,
}


def resize(image: Array, size: tuple[int, int], kernel: Resize) -> NDArray[np.uint8]:
    """Scale a uint8[H, W, C] image to `size` (height, width) with a kernel of step 2 other than `none`."""
    if image.shape[:2] == size:
        return image.astype(np.uint8)
    return _KERNELS[kernel](image, size).astype(np.uint8)


def luma(image: Array) -> NDArray[np.uint8]:
    """Return the gray uint8[H, W, 1] of an RGB uint8[H, W, 3] image (step 3)."""
    return ((image.astype(np.int32) @ _LUMA + 32768) >> 16).astype(np.uint8)[..., None]


# --- one sample -----------------------------------------------------------------------------------


def apply(raw: Array, spec: TensorSpec, pre: Preprocess, *, sample: str = "sample") -> Array:
    """Return the model's input for one raw sample: the shape of `spec` with batch 1 and its dtype, a fresh array.

    `raw` has no batch dimension (one of 1 is tolerated). uint8[H, W], [H, W, 1] and [H, W, 3] (RGB), or channels first,
    for an input with an image layout of 1 or 3 channels are images and take all steps; other arrays take steps 4 and 5,
    and channels are reversed for `bgr`. Arrays may differ from the input's shape by dimensions of 1, and by channels
    first against last where only one reading fits; a shape that fits as it stands is never transposed.
    `sample` names the sample in messages. Raises DataError, and ConfigError where `pre` does not suit the input.
    """
    raw = np.asarray(raw)
    _refuse_unusable(raw, sample, spec)
    geometry = _image_geometry(spec, pre)
    image = _as_image(raw, geometry) if geometry else None
    if geometry and image is not None:
        values = _apply_image(image, geometry, spec, pre, sample)
    else:
        values = _apply_array(raw, geometry, spec, pre, sample)
    return _as_dtype(_numbers(values, spec, pre), spec, sample)


def _refuse_unusable(raw: Array, sample: str, spec: TensorSpec) -> None:
    if raw.dtype.kind not in "biuf":
        raise DataError(
            f"{sample}: input {spec.name!r} received dtype {raw.dtype}; accepted: integers, floats, booleans"
        )
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        kind = "NaN" if np.isnan(raw).any() else "an infinity"
        raise DataError(
            f"{sample}: the values for input {spec.name!r} contain {kind}", hint="Repair or drop the sample."
        )


def _image_geometry(spec: TensorSpec, pre: Preprocess) -> tuple[int, int, int] | None:
    """Return (height, width, channels) of an input that takes images; -1 is dynamic."""
    if spec.layout == "NHWC":
        _, height, width, channels = spec.shape
    elif spec.layout == "NCHW":
        _, channels, height, width = spec.shape
    elif spec.layout == "other" and len(spec.shape) == 3 and pre.colour == "gray":
        (_, height, width), channels = spec.shape, 1
    else:
        return None
    return (height, width, channels) if channels in (1, 3) else None


def _as_image(raw: Array, geometry: tuple[int, int, int]) -> Array | None:
    """Return `raw` as uint8[H, W, 1 or 3], or None where it is no image."""
    if raw.dtype != np.uint8:
        return None
    if raw.ndim == 4 and raw.shape[0] == 1:
        raw = raw[0]
    if raw.ndim == 2:
        return raw[..., None]
    if raw.ndim != 3 or 0 in raw.shape:
        return None
    first, last = (raw.shape[axis] in (1, 3) for axis in (0, 2))
    if first and (not last or _same(raw.shape, (geometry[2], *geometry[:2]))):
        return raw.transpose(1, 2, 0)
    return raw if last else None


def _apply_image(image: Array, geometry: tuple[int, int, int], spec: TensorSpec, pre: Preprocess, sample: str) -> Array:
    height, width = (own if wanted == -1 else wanted for own, wanted in zip(image.shape, geometry[:2], strict=False))
    if image.shape[:2] != (height, width):
        if pre.resize == "none":
            raise DataError(
                f"{sample}: the image is {image.shape[0]} x {image.shape[1]} (height x width); "
                f"input {spec.name!r} takes {height} x {width} and its preprocessing has resize=none",
                hint=f"Declare how to resize, such as resize=antialias; accepted: {', '.join(_KERNELS)}.",
            )
        image = _fitted(image, (height, width), pre)
    image = _coloured(image, pre.colour, geometry[2])
    if spec.layout == "NCHW":
        image = image.transpose(2, 0, 1)
    return image.reshape((1, height, width) if spec.layout == "other" else (1, *image.shape))


def _fitted(image: Array, size: tuple[int, int], pre: Preprocess) -> Array:
    placement = place((image.shape[0], image.shape[1]), size, pre.fit)
    top, left, height, width = placement.box
    scaled = resize(image[top : top + height, left : left + width], placement.size, pre.resize)
    if placement.size == size:
        return scaled
    canvas = np.full((*size, image.shape[2]), _pad_byte(pre), np.uint8)
    (top, left), (height, width) = placement.offset, placement.size
    canvas[top : top + height, left : left + width] = scaled
    return canvas


def _pad_byte(pre: Preprocess) -> int:
    if pre.pad_value != int(pre.pad_value) or not 0 <= pre.pad_value <= 255:
        raise ConfigError(f"pad_value is {pre.pad_value:g}; accepted for images: a whole number from 0 to 255")
    return int(pre.pad_value)


def _coloured(image: Array, colour: Colour, channels: int) -> Array:
    if colour == "gray" or channels == 1:
        image = luma(image) if image.shape[2] == 3 else image
    if image.shape[2] != channels:
        image = np.repeat(image, channels, axis=2)
    return image[..., ::-1] if colour == "bgr" and channels == 3 else image


def _apply_array(
    raw: Array, geometry: tuple[int, int, int] | None, spec: TensorSpec, pre: Preprocess, sample: str
) -> Array:
    values = _shaped(raw, spec)
    if values is None:
        hint = _shape_hint(raw, geometry, spec, pre)
        received = f"{raw.dtype}{_brackets(raw.shape)}"
        accepted = _brackets(tuple(1 if not axis and size == -1 else size for axis, size in enumerate(spec.shape)))
        raise DataError(f"{sample}: input {spec.name!r} received {received}; accepted: {accepted}", hint=hint)
    if geometry and geometry[2] == 3 and pre.colour == "bgr":
        values = np.flip(values, axis=_channel_axis(spec))
    return values


def _brackets(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('any' if size == -1 else str(size) for size in shape)}]"


def _shape_hint(raw: Array, geometry: tuple[int, int, int] | None, spec: TensorSpec, pre: Preprocess) -> str | None:
    if raw.ndim == len(spec.shape) > 1 and raw.shape[0] > 1 and _same(raw.shape[1:], spec.shape[1:]):
        return f"This is a batch of {raw.shape[0]}: give one sample at a time."
    if math.prod(raw.shape) == abs(math.prod(spec.shape)):
        return "The number of values agrees, but not their arrangement: reshape the data as the model takes it."
    if geometry and raw.dtype != np.uint8 and raw.ndim in (2, 3):
        return "Only uint8 images of 1 or 3 channels are resized and recoloured: give the image as uint8."
    if pre.resize != "none" and not geometry:
        return "Images need layout NHWC or NCHW and 1 or 3 channels, or [1, height, width] and colour=gray: declare it."
    return None


def _same(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


def _shaped(raw: Array, spec: TensorSpec) -> Array | None:
    """Return `raw` in the input's shape with batch 1 by the first reading that fits, or None."""
    if 0 in raw.shape:
        return None
    wanted = (1, *spec.shape[1:]) if spec.shape else ()
    if _same(raw.shape, wanted) or raw.shape == spec.shape:
        return raw
    if _same(raw.shape, wanted[1:]):
        return raw[None]
    if (turned := _channels_moved(raw, spec, wanted)) is not None:
        return turned
    return _with_ones(raw, wanted)


def _channels_moved(raw: Array, spec: TensorSpec, wanted: tuple[int, ...]) -> Array | None:
    """Return a channels-last array for a channels-first input, or the other way about."""
    if spec.layout == "other":
        return None
    bare = raw[0] if raw.ndim == len(wanted) and raw.shape[0] == 1 else raw
    if bare.ndim != len(wanted) - 1:
        return None
    turned = np.moveaxis(bare, 0, -1) if spec.layout in ("NHWC", "NLC") else np.moveaxis(bare, -1, 0)
    return turned[None] if _same(turned.shape, wanted[1:]) else None


def _with_ones(raw: Array, wanted: tuple[int, ...]) -> Array | None:
    """Return `raw` with dimensions of 1 inserted or removed."""
    sizes = [size for size in raw.shape if size != 1]
    slots = [axis for axis, size in enumerate(wanted) if size != 1]
    if not _same(tuple(sizes), tuple(wanted[axis] for axis in slots)):
        return None
    shape = [1] * len(wanted)
    for axis, size in zip(slots, sizes, strict=True):
        shape[axis] = size
    return raw.reshape(shape)


def _channel_axis(spec: TensorSpec) -> int:
    return 1 if spec.layout in ("NCHW", "NCL") else -1


def _per_channel(name: str, values: tuple[float, ...], shape: tuple[int, ...], spec: TensorSpec) -> Array:
    array = np.array(values, np.float32)
    axis = _channel_axis(spec)
    channels = shape[axis] if shape else 1
    if array.size not in (1, channels):
        raise ConfigError(
            f"{name} has {array.size} values; input {spec.name!r} has {channels} channels: give 1 or {channels}"
        )
    if array.size == 1 or axis == -1:
        return array[0] if array.size == 1 else array
    return array.reshape(-1, *[1] * (len(shape) - 2))


def _numbers(values: Array, spec: TensorSpec, pre: Preprocess) -> Array:
    """Return (values * scale - mean) / std in float32, or the values themselves for the identity."""
    mean = _per_channel("mean", pre.mean, values.shape, spec)
    std = _per_channel("std", pre.std, values.shape, spec)
    if pre.is_identity:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: Array = values.astype(np.float32) * np.float32(pre.scale)
        quotient: Array = (scaled - mean) / std
    return quotient


def _as_dtype(values: Array, spec: TensorSpec, sample: str) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            result = np.array(values, dtype, order="C")
        if not np.isfinite(result).all():
            raise DataError(f"{sample}: values for input {spec.name!r} are beyond the range of {dtype}")
        return result
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        example = values[values != np.rint(values)].flat[0]
        raise DataError(
            f"{sample}: input {spec.name!r} takes {dtype}; received {example:g}, which is not a whole number"
        )
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    least, most = values.min(), values.max()
    if least < low or most > high:
        raise DataError(
            f"{sample}: input {spec.name!r} takes {dtype}, from {low} to {high}; received values from {least} to {most}"
        )
    return np.array(values, dtype, order="C")


# --- text -----------------------------------------------------------------------------------------

_CHOICES: Mapping[str, tuple[str, ...]] = {"resize": get_args(Resize), "fit": get_args(Fit), "colour": get_args(Colour)}
_SPELLINGS = {"color": "colour", "pad": "pad_value"}
_KEYS = tuple(f.name for f in fields(Preprocess))
_EXAMPLE = "Example: resize=bilinear,fit=crop,colour=bgr,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"


def parse_preprocess(text: str) -> Preprocess:
    """Read `key=value` pairs separated by commas, such as `scale=1/127.5,mean=1`; `identity` stands for none.

    Keys are the fields of `Preprocess`; a number may be a fraction `a/b`; values per channel are separated by colons.
    Raises ConfigError, which lists every problem.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for pair in [] if text.strip() == "identity" else text.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        key = _SPELLINGS.get(key, key)
        if not equals or key not in _KEYS:
            problems.append(f"{pair.strip()!r} is not one of {', '.join(f'{k}=' for k in _KEYS)}")
        elif key in values:
            problems.append(f"{key} is given twice")
        else:
            values[key] = _parse_value(key, value, problems)
    try:
        if not problems:
            return Preprocess(**values)
    except ValueError as error:
        problems.append(str(error))
    raise ConfigError(f"preprocessing {text!r}: {'; '.join(problems)}", hint=_EXAMPLE)


def _parse_value(key: str, text: str, problems: list[str]) -> object:
    if key in _CHOICES:
        if text not in _CHOICES[key]:
            problems.append(f"{key} is {text!r}; accepted: {', '.join(_CHOICES[key])}")
        return text
    try:
        numbers = tuple(_number(part) for part in text.split(":"))
        if key in ("mean", "std"):
            return numbers
        (number,) = numbers
    except (ValueError, ZeroDivisionError):
        many = ", or several separated by colons" if key in ("mean", "std") else ""
        problems.append(f"{key} is {text!r}; accepted: a finite number or a fraction such as 1/255{many}")
        return None
    return number


def _number(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    value = float(numerator) / float(denominator) if slash else float(numerator)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def describe(pre: Preprocess) -> str:
    """Return what differs from the identity in one line that `parse_preprocess` reads back to the same value."""
    parts = []
    for f in fields(Preprocess):
        value = getattr(pre, f.name)
        if value == f.default:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        parts.append(f"{f.name}=" + (value if isinstance(value, str) else ":".join(map(_number_text, numbers))))
    return ",".join(parts) or "identity"


def _number_text(value: float) -> str:
    """Return the shortest text that reads back to the value: `1/255` rather than 0.00392156862745098."""
    plain = f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    if len(plain) > 9 and 0 < abs(value) < 1:
        below = f"{1 / value:g}"
        if 1 / float(below) == value:
            return f"1/{below}"
    return plain
