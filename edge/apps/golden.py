"""Golden vectors for apps: what goes in, what comes out, and what preprocessing makes of test images, in one file.

The file is a list of named byte arrays that any language reads in a few lines: the eight bytes `EKGOLD01`, a uint32
count, and per entry uint32 name length, name (ASCII), uint32 data length, data. All numbers are little-endian.

    input/I/V     stored bytes of input I in vector V          output/O/V   stored bytes of output O
    result/V      the postprocessed outputs, float32, as edge.postprocess.flat lays them out
    image/K       int32 height, width, channels, then the pixels       image/K/I    the stored bytes of input I for it
    values/I      float32 samples for input I                          values/I/stored   the stored bytes for them
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import postprocess, preprocess
from edge.apps.contract import TensorContract
from edge.calibration import affine
from edge.errors import ArtifactError, DataError
from edge.postprocess import Postprocess

Array = NDArray[Any]
MAGIC = b"EKGOLD01"
# Sizes that are no multiple of anything, wide and tall, smaller and larger than usual inputs.
_SIZES = ((37, 53), (61, 29), (7, 5), (131, 97))


def pack(entries: Mapping[str, bytes]) -> bytes:
    """Return the file's bytes."""
    parts = [MAGIC, struct.pack("<I", len(entries))]
    for name, data in entries.items():
        encoded = name.encode("ascii")
        parts += [struct.pack("<I", len(encoded)), encoded, struct.pack("<I", len(data)), data]
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the entries of a file; raise DataError where it is none."""
    if data[:8] != MAGIC:
        raise DataError("This is no file of golden vectors for apps.")
    (count,), place = struct.unpack_from("<I", data, 8), 12
    found = {}
    for _ in range(count):
        parts = []
        for _ in range(2):
            (length,) = struct.unpack_from("<I", data, place)
            parts.append(data[place + 4 : place + 4 + length])
            place += 4 + length
        found[parts[0].decode("ascii")] = parts[1]
    return found


def stored(values: Array, tensor: TensorContract) -> Array:
    """Return preprocessed values in the program's dtype."""
    if tensor.quantize:
        assert tensor.quantization is not None
        return affine.quantize(values, tensor.quantization, tensor.dtype)
    return np.asarray(values).astype(tensor.dtype)


def real(values: Array, tensor: TensorContract) -> NDArray[np.float32]:
    """Return a program's output as float32."""
    if tensor.quantization is not None and tensor.dtype != "float32":
        return affine.dequantize(values, tensor.quantization)
    return values.astype(np.float32)


def entries(
    vectors: Mapping[str, Mapping[str, Array]],
    inputs: Sequence[TensorContract],
    outputs: Sequence[TensorContract],
    post: Postprocess,
) -> dict[str, bytes]:
    """Return all entries; `vectors` is what edge.stages.checking.read_golden returns. Raises ArtifactError."""
    made: dict[str, bytes] = {}
    count = len(next(iter(vectors["in"].values()), ()))
    if not count:
        raise ArtifactError("The artifact has no golden vectors.", hint="Build it again with --evaluation DATA.")
    for v in range(count):
        for i, tensor in enumerate(inputs):
            made[f"input/{i}/{v}"] = _bytes(vectors["in"][tensor.name][v], tensor)
        reals = []
        for o, tensor in enumerate(outputs):
            array = vectors["out"][tensor.name][v]
            made[f"output/{o}/{v}"] = _bytes(array, tensor)
            reals.append(real(array, tensor).reshape(tensor.shape))
        made[f"result/{v}"] = postprocess.flat(reals, post).astype("<f4").tobytes()
    return made | image_entries(inputs) | _value_entries(inputs)


def _bytes(array: Array, tensor: TensorContract) -> bytes:
    if array.size != int(np.prod(tensor.shape)) or str(array.dtype) != tensor.dtype:
        raise ArtifactError(
            f"The golden vectors of {tensor.name[:60]!r} are {array.dtype}{list(array.shape)}; "
            f"its contract says {tensor.dtype}{list(tensor.shape)}.",
            hint="Build the artifact again.",
        )
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_images(inputs: Sequence[TensorContract]) -> list[Array]:
    """Return uint8 images that all image inputs accept, of several sizes where they are resized."""
    images = [t for t in inputs if t.image]
    if not images:
        return []
    sizes = {_size(t) for t in images if t.preprocess.resize == "none"}
    if len(sizes) > 1:
        return []
    rng = np.random.default_rng(8)
    chosen = [*sizes] or [*_SIZES, _size(images[0])]
    return [_picture(rng, size, 1 if k == 2 else 3) for k, size in enumerate(chosen)]


def _size(tensor: TensorContract) -> tuple[int, int]:
    if tensor.layout == "NCHW":
        return tensor.shape[2], tensor.shape[3]
    return tensor.shape[1], tensor.shape[2]


def _picture(rng: np.random.Generator, size: tuple[int, int], channels: int) -> Array:
    """Return noise over a slope: every value occurs, and neighbours differ."""
    slope = np.linspace(0, 255, size[0] * size[1] * channels).reshape(*size, channels)
    noise = rng.integers(0, 256, (*size, channels))
    return ((slope + noise) / 2).astype(np.uint8)


def image_entries(inputs: Sequence[TensorContract], images: Sequence[Array] | None = None) -> dict[str, bytes]:
    """Return the entries of test images, or of the given uint8[H, W, C] ones, for those inputs that take images."""
    made = {}
    for k, image in enumerate(test_images(inputs) if images is None else images):
        made[f"image/{k}"] = struct.pack("<3i", *image.shape) + image.tobytes()
        for i, tensor in enumerate(inputs):
            if tensor.image:
                values = preprocess.apply(image, tensor.spec(), tensor.preprocess)
                made[f"image/{k}/{i}"] = stored(values, tensor).tobytes()
    return made


def _value_entries(inputs: Sequence[TensorContract]) -> dict[str, bytes]:
    made = {}
    rng = np.random.default_rng(9)
    for i, tensor in enumerate(inputs):
        values = _sample_values(rng, tensor)
        try:
            ready = preprocess.apply(values, tensor.spec(), tensor.preprocess)
        except DataError:
            # An integer input with a scale takes few values: the golden inputs show it.
            continue
        made[f"values/{i}"] = values.astype("<f4").tobytes()
        made[f"values/{i}/stored"] = stored(ready, tensor).tobytes()
    return made


def _sample_values(rng: np.random.Generator, tensor: TensorContract) -> NDArray[np.float32]:
    if tensor.sample_dtype == "float32":
        pre, scale = tensor.preprocess, tensor.quantization.scale[0] if tensor.quantization else 0.02
        spread = 100 * scale * abs(pre.std[0] / pre.scale)
        return (rng.standard_normal(tensor.shape) * spread + pre.mean[0] / pre.scale).astype(np.float32)
    high = 2 if tensor.sample_dtype == "bool" else 100
    return rng.integers(0, high, tensor.shape).astype(np.float32)
