"""Read what the XNNPACK delegate of a `.pte` computes: the graph that its payload carries as a flatbuffer.

The schema and the compiler that decodes it, flatc, come with the package executorch. The layout of the payload is that
of `XNNHeader` there: `XH00` at byte 4, then little-endian the header's length (2 bytes), offset and size of the
flatbuffer (4 bytes each).
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = slice(4, 8)
# Bytes of one element by XNNPACK's name of the type; what is not listed has one byte.
_BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "qint32": 4.0,
    "qcint32": 4.0,
    "int32": 4.0,
    "qcint4": 0.5,
    "qbint4": 0.5,
}
_ABSENT = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor: XNNPACK's name of its type without the prefix (`fp32`, `qint8`, `qcint8`, `qdint8`), and its shape."""

    type: str
    shape: tuple[int, ...]
    constant: bool

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.ceil(self.elements * _BYTES.get(self.type, 1.0))


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator: XNNPACK's name (`Conv2d`), its values in and out, and its own fields."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DelegateGraph:
    """The operators of one delegated subgraph, in order, and its tensors by id."""

    nodes: tuple[Node, ...]
    values: Mapping[int, Value]
    ends: frozenset[int]


def read(payload: bytes) -> DelegateGraph:
    """Return the graph of a delegate's payload. Raises ValueError where it cannot be read."""
    if payload[_MAGIC] != b"XH00":
        raise ValueError("the delegate's payload has no header XH00")
    start, size = (int.from_bytes(payload[at : at + 4], "little") for at in (10, 14))
    made = _decoded(payload[start : start + size])
    try:
        values = dict(map(_value, made["xvalues"]))
        nodes = tuple(map(_node, made["xnodes"]))
        ends = frozenset(map(int, [*made["input_ids"], *made["output_ids"]]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the delegate's graph is of another version: {error!r}") from error
    if unknown := {i for n in nodes for i in (*n.inputs, *n.outputs)} - set(values):
        raise ValueError(f"the delegate's graph names the unknown value {min(unknown)}")
    return DelegateGraph(nodes=nodes, values=values, ends=ends)


def _decoded(flatbuffer: bytes) -> Mapping[str, Any]:
    import importlib.resources

    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize import _flatbuffer

    schema = importlib.resources.files(serialization).joinpath("schema.fbs").read_bytes()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder)
        (place / "schema.fbs").write_bytes(schema)
        (place / "graph.bin").write_bytes(flatbuffer)
        try:
            _flatbuffer._flatc_decompile(str(place), str(place / "schema.fbs"), str(place / "graph.bin"))
            text = (place / "graph.json").read_text(encoding="utf-8", errors="replace")
            # flatc writes what JSON has no word for: the bounds of a clamp that has none.
            found = json.loads(re.sub(r":\s*(-?)(?:inf|nan)\b", r": null", text))
        except Exception as error:  # flatc trusts its input, and each version fails in its own way
            raise ValueError(f"the delegate's graph cannot be decoded: {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ValueError("the delegate's graph cannot be decoded")
    return found


def _value(record: Mapping[str, Any]) -> tuple[int, Value]:
    inner = record["xvalue_union"]
    inner = inner.get("tensor_value", inner)
    return int(inner["id_out"]), Value(
        type=str(inner["datatype"]).removeprefix("xnn_datatype_"),
        shape=tuple(map(int, inner.get("dims", ()))),
        constant=int(inner["constant_buffer_idx"]) != 0,
    )


def _node(record: Mapping[str, Any]) -> Node:
    fields = record["xnode_union"]
    ids = {name: int(value) for name, value in fields.items() if name.endswith("_id") and int(value) != _ABSENT}
    return Node(
        kind=str(record["xnode_union_type"]).removeprefix("XNN"),
        inputs=tuple(value for name, value in ids.items() if not name.startswith("output")),
        outputs=tuple(value for name, value in ids.items() if name.startswith("output")),
        fields=fields,
    )
