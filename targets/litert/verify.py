"""Check the bytes of a LiteRT flatbuffer before anything follows an offset in it.

What the C++ verifier of FlatBuffers checks (flatbuffers/verifier.h), alignment apart: every table, vtable, vector,
string and union lies inside of the file. Beyond it, what all references together lead to is limited by the size of the
file: tables that share parts a million times over would otherwise unpack to more than any memory holds.

The layout of the tables is read off the generated accessors of the schema, by running them on a recorder: a schema that
gains tables needs no change here.
"""

from __future__ import annotations

import functools
import inspect
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_DEEPEST = 64
_MOST_TABLES = 1_000_000  # as the C++ verifier's default
_MOST_REPEATS = 16  # of the file's bytes: strings may be shared, whole graphs are not
_HEAD_BYTES = 8

Kind = Literal["scalar", "string", "vector", "table", "tables", "strings", "union"]


class DamagedError(Exception):
    """The bytes are no flatbuffer of the schema; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a table: `bytes` of a scalar or of a vector's item, `table` the class that it leads to."""

    kind: Kind
    bytes: int = 0
    table: str = ""
    # Of a union: class by number; the number stands in the field before.
    members: Mapping[int, str] | None = None


class _Recorder:
    """Stands for a generated class's `_tab`, where every field is present, and notes what the accessor does."""

    Pos = 0
    Bytes = b""

    def __init__(self) -> None:
        self.slot = 0
        self.seen: set[str] = set()
        self.width = 0

    def Offset(self, slot: int) -> int:  # noqa: N802 - the library's name
        self.slot = slot
        return 1

    def Get(self, flags: Any, at: int) -> int:  # noqa: ARG002, N802
        self.width = int(flags.bytewidth)
        return 0

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return lambda *_: 0


def _field(accessor: Any, made: Any, members: Mapping[str, Mapping[int, str]], name: str) -> tuple[int, Field]:
    recorder = _Recorder()
    made._tab = recorder
    parameters = len(inspect.signature(accessor).parameters)
    found = accessor(made, *[0] * (parameters - 1))
    leads = type(found).__name__ if hasattr(found, "Init") else ""
    vector = "Vector" in recorder.seen
    if "Union" in recorder.seen:
        return recorder.slot, Field(kind="union", members=members[name])
    if "String" in recorder.seen:
        return recorder.slot, Field(kind="strings" if vector else "string")
    if leads:
        return recorder.slot, Field(kind="tables" if vector else "table", table=leads)
    return recorder.slot, Field(kind="vector" if vector else "scalar", bytes=recorder.width)


@functools.cache
def layout() -> Mapping[str, Mapping[int, Field]]:
    """Return each table's fields by the position of their entry in the vtable, which begins at 4."""
    from edge.targets.litert.flatbuffer import schema

    classes = {name: made for name, made in vars(schema()).items() if hasattr(made, "GetRootAs")}
    unions = {name.removesuffix("Creator"): None for name in vars(schema()) if name.endswith("Creator")}
    # A union's accessor has the name of its enumeration, or of its field.
    members = {union: _members(getattr(schema(), union), classes) for union in unions}
    members |= {"Details": members.get("QuantizationDetails", {})}
    members |= {name: members.get("SparseIndexVector", {}) for name in ("ArraySegments", "ArrayIndices")}
    return {name: dict(_fields(made, members)) for name, made in classes.items()}


def _members(enumeration: Any, classes: Mapping[str, Any]) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if name in classes and isinstance(value, int)}


def _fields(made: Any, members: Mapping[str, Mapping[int, str]]) -> list[tuple[int, Field]]:
    names = [n for n, f in vars(made).items() if inspect.isfunction(f) and n not in ("Init", "__init__")]
    others = ("AsNumpy", "Length", "IsNone")
    # Shape, ShapeAsNumpy, ShapeLength and ShapeIsNone are one field.
    plain = [n for n in names if not any(n.endswith(o) and n.removesuffix(o) in names for o in others)]
    return [_field(getattr(made, n), made(), members, n) for n in plain]


class _Walk:
    """One pass over the bytes. Raises DamagedError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tables_left = min(_MOST_TABLES, len(data) // 4)
        self.bytes_left = _MOST_REPEATS * len(data) + 4096

    def inside(self, at: int, size: int) -> int:
        """Return `at` where `size` bytes from it are inside of the file."""
        if at < 0 or size < 0 or at + size > len(self.data):
            raise DamagedError(f"an offset leads to byte {at} of {len(self.data)}")
        return at

    def spend(self, size: int) -> None:
        """Count what the references lead to."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise DamagedError(f"its parts refer to each other to more than {_MOST_REPEATS} times the file's size")

    def number(self, form: str, at: int) -> int:
        """Return an integer of the file."""
        value: int = struct.unpack_from(form, self.data, self.inside(at, struct.calcsize(form)))[0]
        return value

    def follow(self, at: int) -> int:
        """Return the place that the offset at `at` leads to."""
        offset = self.number("<I", at)
        if offset == 0:
            raise DamagedError(f"the offset at byte {at} leads to itself")
        return at + offset

    def vector(self, at: int, item_bytes: int) -> tuple[int, int]:
        """Return begin and count of the vector that the offset at `at` leads to."""
        begin = self.follow(at)
        count = self.number("<I", begin)
        self.inside(begin + 4, count * item_bytes)
        self.spend(4 + count * item_bytes)
        return begin + 4, count

    def string(self, at: int) -> None:
        """Check the string that the offset at `at` leads to; a zero follows it."""
        begin, count = self.vector(at, 1)
        if self.data[self.inside(begin + count, 1)] != 0:
            raise DamagedError(f"the text at byte {begin} has no end")

    def table(self, name: str, at: int, depth: int) -> None:
        """Check the table at `at` and all that it leads to."""
        self.tables_left -= 1
        if depth > _DEEPEST or self.tables_left < 0:
            raise DamagedError("its tables are nested too deep or too many")
        vtable = at - self.number("<i", at)
        size = self.number("<H", vtable)
        self.inside(vtable, size)
        own = self.number("<H", vtable + 2)
        if size < 4 or size % 2 or own < 4:
            raise DamagedError(f"the table at byte {at} has a layout of {size} bytes")
        self.inside(at, own)
        self.spend(own)
        entries = struct.unpack_from(f"<{size // 2 - 2}H", self.data, vtable + 4)
        for slot, field in layout()[name].items():
            index = slot // 2 - 2
            if index < len(entries) and entries[index]:
                before = entries[index - 1] if index else 0
                self._field(field, at, entries[index], before, own, depth)

    def _field(self, field: Field, table: int, offset: int, before: int, own: int, depth: int) -> None:
        width = field.bytes if field.kind == "scalar" else 4
        if offset + width > own:
            raise DamagedError(f"a field at byte {table + offset} lies outside of its table")
        at = table + offset
        if field.kind == "string":
            self.string(at)
        elif field.kind == "vector":
            self.vector(at, field.bytes)
        elif field.kind == "table":
            self.table(field.table, self.follow(at), depth + 1)
        elif field.kind == "union":
            member = (field.members or {}).get(self.data[table + before] if before else 0)
            if member:
                self.table(member, self.follow(at), depth + 1)
        elif field.kind in ("tables", "strings"):
            begin, count = self.vector(at, 4)
            for item in range(begin, begin + 4 * count, 4):
                if field.kind == "strings":
                    self.string(item)
                else:
                    self.table(field.table, self.follow(item), depth + 1)


def verify(data: bytes, root: str = "Model") -> None:
    """Check a whole file; raise DamagedError with the reason."""
    walk = _Walk(data)
    walk.inside(0, _HEAD_BYTES)
    walk.table(root, walk.follow(0), 0)
