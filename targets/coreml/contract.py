"""What a Core ML package says of itself beyond Apple's fields: the signature, its features, its image inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.errors import SourceError
from edge.signature import Colour, Preprocess, Signature, TensorSpec
from edge.targets.torch_common import CONTRACT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

PROBABILITIES = "classLabel_probs"
# Words of the model's language; coremltools would rename what is called so.
_RESERVED = frozenset(
    [
        "any",
        "bool",
        "program",
        "func",
        "tensor",
        "list",
        "dict",
        "tuple",
        "true",
        "false",
        "string",
        "bf16",
        "fp16",
        "fp32",
        "fp64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "state",
    ]
)
_CHANNELS: dict[int, tuple[Colour, ...]] = {1: ("gray",), 3: ("rgb", "bgr")}
_DTYPES = {"int64": "int32", "int16": "int32", "int8": "int32", "uint8": "int32", "bool": "int32", "float16": "float32"}


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image input: value = raw * scale + bias per channel, raw in 0…255."""

    scale: float
    bias: tuple[float, ...]
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The signature of the model, the Core ML feature of each name, image inputs by name, and the classifier's output.

    The arrays of a session are those of `signature`: an image input takes preprocessed floats there too.
    """

    signature: Signature
    features: Mapping[str, str]
    images: Mapping[str, Image] = field(default_factory=dict)
    classifier: str | None = None


def contract_of(signature: Signature) -> tuple[Contract, tuple[str, ...]]:
    """Return the contract of a package for this signature, and the inputs whose preprocessing does not fit an image."""
    signature = signature.with_tensors(_narrowed(signature.inputs), _narrowed(signature.outputs))
    images = {t.name: image for t in signature.inputs if (image := _image(t, signature.preprocess.get(t.name)))}
    declared = [t.name for t in signature.inputs if t.name in signature.preprocess]
    classifier = _classifier(signature)
    features = {t.name: _feature(t.name) for t in (*signature.inputs, *signature.outputs)}
    made = Contract(signature=signature, features=features, images=images, classifier=classifier)
    return made, tuple(n for n in declared if n not in images)


def _narrowed(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    from dataclasses import replace

    return tuple(replace(t, dtype=_DTYPES.get(t.dtype, t.dtype)) for t in specs)


def _feature(name: str) -> str:
    """Return the name as Core ML's language takes it."""
    plain = re.sub(r"\W", "_", name)
    if plain in _RESERVED:
        return f"{plain}_"
    return f"_{plain}" if plain[:1].isdigit() else plain


def _image(spec: TensorSpec, preprocess: Preprocess | None) -> Image | None:
    """Return scale and bias of (raw * s - mean) / std where one scale for all channels exists.

    Worked number: s 1/127.5, mean 1, std 1 -> scale 1/127.5, bias -1.
    """
    if preprocess is None or spec.layout not in ("NCHW", "NHWC") or spec.shape[0] != 1 or spec.dtype != "float32":
        return None
    channels = spec.shape[1 if spec.layout == "NCHW" else 3]
    if len(set(preprocess.std)) != 1 or preprocess.colour not in _CHANNELS.get(channels, ()):
        return None
    std = preprocess.std[0]
    mean = preprocess.mean * channels if len(preprocess.mean) == 1 else preprocess.mean
    return Image(scale=preprocess.scale / std, bias=tuple(-m / std for m in mean), colour=preprocess.colour)


def _classifier(signature: Signature) -> str | None:
    """Return the only output of a classification whose labels are complete and distinct."""
    labels = signature.labels
    if signature.task != "classification" or len(signature.outputs) != 1 or len(set(labels)) != len(labels):
        return None
    output = signature.outputs[0]
    return output.name if labels and output.shape == (1, len(labels)) else None


def pixels(spec: TensorSpec, image: Image, values: Array) -> NDArray[np.uint8]:
    """Return the raw image [height, width, channels] (gray: [height, width]) of preprocessed values, batch 1.

    raw = round((value - bias) / scale), clipped to 0…255.
    """
    plain = np.asarray(values, np.float64)[0]
    last = plain if spec.layout == "NHWC" else np.moveaxis(plain, 0, -1)
    raw = np.clip(np.rint((last - np.asarray(image.bias)) / image.scale), 0, 255).astype(np.uint8)
    # A Pillow image is always RGB; Core ML swaps for a model that wants BGR.
    if image.colour == "gray":
        return np.ascontiguousarray(raw[..., 0])
    return np.ascontiguousarray(raw[..., ::-1] if image.colour == "bgr" else raw)


def dump(contract: Contract) -> str:
    """Return the contract as JSON text."""
    return codec.dumps(codec.to_json(contract))


def load(metadata: Mapping[str, Any], name: str) -> Contract:
    """Return the contract in a package's user-defined metadata. Raises SourceError."""
    if CONTRACT not in metadata:
        raise SourceError(f"{name} was not written by edgekit: its inputs have no contract.", hint="Build it again.")
    try:
        return codec.from_json(Contract, json.loads(metadata[CONTRACT]))
    except ValueError as error:
        raise SourceError(f"{name} has a damaged contract: {str(error)[:200]}", hint="Build it again.") from error
