"""TensorFlow Lite metadata: what the task libraries and Android's generated wrappers read from a `.tflite` file.

The format is public: a flatbuffer `M001` in the model's buffer named `TFLITE_METADATA` (metadata_schema.fbs, version
1.5) and, behind the model's own bytes, a zip archive of stored files that it names, here the labels. Runtimes do not
look at either. Fields are written by the schema's slots, so that nothing but `flatbuffers` is needed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.apps.contract import TensorContract
from edge.postprocess import Postprocess
from edge.preprocess import describe
from edge.targets.litert import contract as litert_contract
from edge.targets.litert import flatbuffer

ENTRY = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
_IDENTIFIER = b"M001"
# All that is written is in the schema's first version.
_PARSER = "1.0.0"
_RGB, _GRAY = 1, 2
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_DETECTION_NAMES = {
    "boxes": "location",
    "classes": "category",
    "scores": "score",
    "count": "number of detections",
}


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the metadata say of a model as a whole."""

    name: str
    description: str
    version: str
    author: str
    licence: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Number:
    kind: Literal["byte", "uint", "int", "float"]
    value: float


@dataclass(frozen=True)
class _Vector:
    kind: Literal["uint", "float"]
    values: tuple[float, ...]


# One table: slot to text, number, vector, table, or tables; None is left out.
_Table = dict[int, Any]


def embed(
    program: bytes,
    about: Described,
    inputs: Sequence[TensorContract],
    outputs: Sequence[TensorContract],
    post: Postprocess,
) -> bytes:
    """Return the program with metadata; the same arguments give the same bytes. Raises SourceError for no `.tflite`."""
    model = flatbuffer.load(program)
    schema = flatbuffer.schema()
    found = litert_contract.contract_of(model)
    graph = model.subgraphs[found.subgraph]
    metadata = _model(
        about,
        _in_order(graph.inputs, found.inputs, [(t.name, _input(t)) for t in inputs]),
        _in_order(
            graph.outputs, found.outputs, [(t.name, _output(i, t, post, about.labels)) for i, t in enumerate(outputs)]
        ),
    )
    model.metadata = [m for m in model.metadata or () if flatbuffer.text(m.name) != ENTRY]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = _packed(metadata)
    entry.name, entry.buffer = ENTRY.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    made = flatbuffer.dump(model)
    return made + _archive(made, about.labels)


def _in_order(tensors: Sequence[int], names: Mapping[str, int], tables: list[tuple[str, _Table]]) -> list[_Table]:
    """Return the tables in the order of the graph's tensors, an empty one where the contract has none."""
    by_index = {names[name]: table for name, table in tables}
    return [by_index.get(int(tensor), {}) for tensor in tensors]


def label_lines(labels: Sequence[str]) -> bytes:
    """Return one label per line; a line break within a label becomes a space, as the format has no other way."""
    return "".join(" ".join(label.splitlines() or [""]) + "\n" for label in labels).encode()


def _archive(program: bytes, labels: Sequence[str]) -> bytes:
    """Return the zip that follows the program: offsets in it count from the program's first byte."""
    if not labels:
        return b""
    stream = io.BytesIO(program)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, (1980, 1, 1, 0, 0, 0)), label_lines(labels))
    return stream.getvalue()[len(program) :]


# --- tables of the schema, by slot ----------------------------------------------------------------


def _model(about: Described, inputs: list[_Table], outputs: list[_Table]) -> _Table:
    subgraph: _Table = {0: about.name, 2: inputs, 3: outputs}
    return {
        0: about.name,
        1: about.description,
        2: about.version,
        3: [subgraph],
        4: about.author,
        5: about.licence,
        7: _PARSER,
    }


def _tensor(name: str, description: str, content: _Table, units: Sequence[_Table] = (), **other: Any) -> _Table:
    made: _Table = {0: name, 1: description, 3: content}
    if units:
        made[4] = list(units)
    return made | {5: other.get("stats"), 6: other.get("files")}


def _content(kind: int, properties: _Table, axes: tuple[int, int] | None = None) -> _Table:
    made: _Table = {0: _Number("byte", kind), 1: properties}
    if axes is not None:
        made[2] = {0: _Number("int", axes[0]), 1: _Number("int", axes[1])}
    return made


def _feature(axes: tuple[int, int] | None = None) -> _Table:
    return _content(1, {}, axes)


def _labels_file(labels: Sequence[str], kind: int) -> list[_Table] | None:
    text = "The label of each class, one per line."
    return [{0: LABELS_FILE, 1: text, 2: _Number("byte", kind)}] if labels else None


def _input(spec: TensorContract) -> _Table:
    """Return an input's table: (x - mean) / std of raw values, from (x * scale - mean) / std."""
    pre = spec.preprocess
    means, stds = (tuple(v / pre.scale for v in values) for values in (pre.mean, pre.std))
    channels = max(len(means), len(stds))
    unit: _Table = {0: _Number("byte", 1), 1: {0: _Vector("float", means), 1: _Vector("float", stds)}}
    if not (spec.image and spec.layout == "NHWC"):
        units = [] if pre.is_identity else [unit]
        return _tensor(spec.name, describe(pre), _feature(), units)
    _, height, width, depth = spec.shape
    # The libraries know RGB and gray only: what wants BGR is left unknown, which they refuse, rather than be wrong.
    colour = _GRAY if depth == 1 or pre.colour == "gray" else _RGB if pre.colour == "rgb" else 0
    size: _Table = {0: _Number("uint", width), 1: _Number("uint", height)}
    limits = [
        tuple((raw - means[c % len(means)]) / stds[c % len(stds)] for c in range(channels)) for raw in (255.0, 0.0)
    ]
    content = _content(2, {0: _Number("byte", colour), 1: size})
    return _tensor(
        spec.name, describe(pre), content, [unit], stats={k: _Vector("float", v) for k, v in enumerate(limits)}
    )


def _output(place: int, spec: TensorContract, post: Postprocess, labels: Sequence[str]) -> _Table:
    if post.kind == "detection":
        return _detection_output(place, spec, post, labels)
    chosen = place == post.output and post.kind in ("classification", "segmentation")
    files = _labels_file(labels, _AXIS_LABELS) if chosen else None
    if chosen and post.kind == "segmentation" and post.class_axis == 3:
        return _tensor(
            spec.name, "Scores of the classes per pixel.", _content(2, {0: _Number("byte", _GRAY)}, (1, 2)), files=files
        )
    return _tensor(spec.name, "Scores of the classes." if chosen else "", _feature(), files=files)


def _detection_output(place: int, spec: TensorContract, post: Postprocess, labels: Sequence[str]) -> _Table:
    role = next((r for r in _DETECTION_NAMES if getattr(post, r) == place), "")
    finished = post.classes >= 0 and post.count >= 0 and not post.anchors
    name = _DETECTION_NAMES[role] if finished and role else spec.name
    if role == "boxes" and post.boxes != post.scores:
        # Offsets from anchors are no boxes yet.
        return _tensor(name, "Boxes.", _feature() if post.anchors else _content(3, _box_order(post), (2, 2)))
    if role == "classes":
        return _tensor(name, "Classes of the boxes.", _feature((2, 2)), files=_labels_file(labels, _VALUE_LABELS))
    if role in ("scores", "boxes"):
        files = None if post.classes >= 0 else _labels_file(labels, _AXIS_LABELS)
        threshold: _Table = {0: _Number("byte", 3), 1: {0: _Number("float", post.score_threshold)}}
        return _tensor(name, "Scores of the boxes.", _feature((2, 2)), [threshold], files=files)
    return _tensor(name, "", _feature())


def _box_order(post: Postprocess) -> _Table:
    """Return BoundingBoxProperties: where left, top, right, bottom (or centre x, y, width, height) stand."""
    order = {"yxyx": (1, 0, 3, 2), "xyxy": (0, 1, 2, 3), "cxcywh": (0, 1, 2, 3)}[post.box_format]
    return {
        0: _Vector("uint", order),
        1: _Number("byte", 3 if post.box_format == "cxcywh" else 1),
        2: _Number("byte", int(post.box_pixels)),
    }


# --- flatbuffers ----------------------------------------------------------------------------------


def _packed(table: _Table) -> Any:
    import flatbuffers
    import numpy as np

    builder = flatbuffers.Builder(1 << 10)
    builder.Finish(_write(builder, table), _IDENTIFIER)
    return np.frombuffer(bytes(builder.Output()), np.uint8)


def _write(builder: Any, table: _Table) -> int:
    """Write a table after all that it refers to; return its offset."""
    ready = {slot: _child(builder, value) for slot, value in table.items() if value is not None}
    builder.StartObject(max(ready, default=-1) + 1)
    for slot, value in ready.items():
        if isinstance(value, _Number):
            add = {"byte": "Int8", "uint": "Uint32", "int": "Int32", "float": "Float32"}[value.kind]
            number = value.value if value.kind == "float" else int(value.value)
            getattr(builder, f"Prepend{add}Slot")(slot, number, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    return int(builder.EndObject())


def _child(builder: Any, value: Any) -> Any:
    """Return a number as it is, else the offset of what was written."""
    if isinstance(value, _Number):
        return value
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, dict):
        return _write(builder, value)
    if isinstance(value, _Vector):
        import numpy as np

        return builder.CreateNumpyVector(np.asarray(value.values, np.float32 if value.kind == "float" else np.uint32))
    offsets = [_write(builder, table) for table in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
