"""Metadata of a Core ML package: the fields that Xcode shows, and its preview type.

A package's model is a protocol buffer (Model.proto of coremltools). Only the description is read and written again,
field by field on the wire, so that coremltools is not needed and no weight moves. The preview types and their
parameters are those of coremltools' guide (Xcode Model Preview Types).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge.errors import ArtifactError
from edge.postprocess import Postprocess

MODEL = "Data/com.apple.CoreML/model.mlmodel"
_DESCRIPTION = 2  # Model.description
_INPUT, _OUTPUT, _METADATA = 1, 10, 100  # ModelDescription
_SHORT, _VERSION, _AUTHOR, _LICENCE, _USER = 1, 2, 3, 4, 100  # Metadata
_PREVIEW = "com.apple.coreml.model.preview."
# Colours of the classes in Xcode's preview: well apart, and repeated where there are more classes.
_COLOURS = (
    "#000000",
    "#E6194B",
    "#3CB44B",
    "#FFE119",
    "#4363D8",
    "#F58231",
    "#911EB4",
    "#46F0F0",
    "#F032E6",
    "#BCF60C",
)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is written; empty texts leave what the package has. `features` maps a feature's name to its description."""

    description: str = ""
    version: str = ""
    author: str = ""
    licence: str = ""
    features: Mapping[str, str]
    user: Mapping[str, str]


def preview(post: Postprocess, labels: Sequence[str], *, classifier: bool, image: bool) -> dict[str, str]:
    """Return the user-defined fields of Xcode's preview, which feeds images to a classifier or a segmentation.

    `classifier` says whether the package gives a label and scores by label, `image` whether it takes an image.
    """
    if image and post.kind == "classification" and classifier:
        return {f"{_PREVIEW}type": "imageClassifier"}
    if not image or post.kind != "segmentation" or post.class_axis == 3:
        return {}
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(labels))]
    parameters = json.dumps({"labels": list(labels), "colors": colours})
    return {f"{_PREVIEW}type": "imageSegmenter"} | ({f"{_PREVIEW}parameters": parameters} if labels else {})


def describe(model: bytes, about: Described) -> bytes:
    """Return the model with these fields; raise ArtifactError where it is no protocol buffer of a Core ML model."""
    parts = list(_fields(model))
    if not any(number == _DESCRIPTION for number, _, _ in parts):
        raise ArtifactError("The Core ML package has no description of its model.", hint="Build the artifact again.")
    return b"".join(_field(n, _described(body, about)) if n == _DESCRIPTION else raw for n, raw, body in parts)


def _described(description: bytes, about: Described) -> bytes:
    made, held = [], b""
    for number, raw, body in _fields(description):
        if number == _METADATA:
            held += body
        elif number in (_INPUT, _OUTPUT):
            made.append(_field(number, _feature(body, about.features)))
        else:
            made.append(raw)
    return b"".join([*made, _field(_METADATA, _metadata(held, about))])


def _feature(body: bytes, descriptions: Mapping[str, str]) -> bytes:
    """Return a FeatureDescription (name 1, shortDescription 2) with its text."""
    name = next((part for number, _, part in _fields(body) if number == 1), b"").decode("utf-8", "replace")
    if not descriptions.get(name):
        return body
    others = b"".join(raw for number, raw, _ in _fields(body) if number != 2)
    return others + _field(2, descriptions[name].encode())


def _metadata(held: bytes, about: Described) -> bytes:
    texts = {_SHORT: about.description, _VERSION: about.version, _AUTHOR: about.author, _LICENCE: about.licence}
    keys = {key.encode() for key in about.user}
    kept = []
    for number, raw, body in _fields(held):
        replaced = texts.get(number) if number != _USER else _key(body) in keys
        if not replaced:
            kept.append(raw)
    added = [_field(number, text.encode()) for number, text in texts.items() if text]
    for key, value in sorted(about.user.items()):
        added.append(_field(_USER, _field(1, key.encode()) + _field(2, value.encode())))
    return b"".join([*kept, *added])


def _key(entry: bytes) -> bytes:
    return next((body for number, _, body in _fields(entry) if number == 1), b"")


# --- the wire format of protocol buffers ----------------------------------------------------------


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, whole bytes and content (of a length-delimited field) of each field; raise ArtifactError."""
    place = 0
    try:
        while place < len(data):
            start = place
            tag, place = _varint(data, place)
            body = b""
            if tag & 7 == 0:
                _, place = _varint(data, place)
            elif tag & 7 == 2:
                size, place = _varint(data, place)
                body = data[place : place + size]
                place += size
            else:
                place += {1: 8, 5: 4}[tag & 7]
            if place > len(data):
                raise IndexError
            yield tag >> 3, data[start:place], body
    except (IndexError, KeyError) as error:
        raise ArtifactError("The Core ML package's model is damaged.", hint="Build the artifact again.") from error


def _field(number: int, body: bytes) -> bytes:
    """Return a length-delimited field."""
    return _number(number << 3 | 2) + _number(len(body)) + body


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
