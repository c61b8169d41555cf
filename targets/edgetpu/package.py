"""Read what the Edge TPU compiler put into a compiled model: the DWN1 package inside each `edgetpu-custom-op`.

The operator's custom options are a flexbuffer whose key "4" holds a flatbuffer with the identifier DWN1; field numbers
are those of libedgetpu's executable/executable.fbs. A package holds executables, each a flatbuffer again. Parameters of
the PARAMETER_CACHING executable stay on the chip; those of the one that executes travel at every inference.

A compiled model is untrusted input: every offset is checked before it is followed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.errors import SourceError
from edge.targets.litert import flatbuffer

CUSTOM_OP = "edgetpu-custom-op"
IDENTIFIER = b"DWN1"
# The flexbuffer key of the package, as in libedgetpu's delegate.
_KEY = "4"
_MAX_EXECUTABLES = 1024

Kind = Literal["STAND_ALONE", "PARAMETER_CACHING", "EXECUTION_ONLY"]
KINDS: tuple[Kind, ...] = ("STAND_ALONE", "PARAMETER_CACHING", "EXECUTION_ONLY")


@dataclass(frozen=True, kw_only=True)
class Executable:
    """One executable of a package. Sizes in bytes; `estimated_cycles` is 0 where none is given (runtime 14)."""

    kind: Kind
    name: str
    chip: str
    parameter_bytes: int
    instruction_bytes: int
    scratch_bytes: int
    narrow_bytes_per_tile: int
    estimated_cycles: int
    batch_size: int
    caching_token: int


@dataclass(frozen=True, kw_only=True)
class Package:
    """What one custom operator carries. `operator` is its index in execution order."""

    operator: int
    min_runtime_version: int
    compiler_version: str
    executables: tuple[Executable, ...]

    @property
    def on_chip_bytes(self) -> int:
        """Parameters that are loaded once and stay in the chip's memory."""
        return sum(e.parameter_bytes for e in self.executables if e.kind == "PARAMETER_CACHING")

    @property
    def off_chip_bytes(self) -> int:
        """Parameters that travel to the chip at every inference."""
        return sum(e.parameter_bytes for e in self.executables if e.kind != "PARAMETER_CACHING")


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """A compiled model: its packages, and the operators that are left to the CPU, in execution order."""

    packages: tuple[Package, ...]
    cpu_operators: tuple[str, ...]

    @property
    def subgraphs(self) -> int:
        """Number of Edge TPU subgraphs."""
        return len(self.packages)

    @property
    def on_chip_bytes(self) -> int:
        """Parameters that stay on the chip, all packages."""
        return sum(p.on_chip_bytes for p in self.packages)

    @property
    def off_chip_bytes(self) -> int:
        """Parameters streamed at every inference, all packages."""
        return sum(p.off_chip_bytes for p in self.packages)

    @property
    def min_runtime_version(self) -> int:
        """The oldest runtime that runs the model; 0 without a package."""
        return max((p.min_runtime_version for p in self.packages), default=0)

    @property
    def scratch_bytes(self) -> int:
        """Host memory that activations spill to at every inference."""
        return sum(e.scratch_bytes for p in self.packages for e in p.executables)

    @property
    def narrow_bytes_per_tile(self) -> int:
        """The most activation memory that a tile uses."""
        return max((e.narrow_bytes_per_tile for p in self.packages for e in p.executables), default=0)

    @property
    def estimated_cycles(self) -> int:
        """The compiler's own estimate of an inference, 0 where it gives none."""
        return sum(e.estimated_cycles for p in self.packages for e in p.executables if e.kind != "PARAMETER_CACHING")


class _DamagedError(Exception):
    """An offset or size of the package leads out of it."""


class _Table:
    """A flatbuffer table of which every access is checked against the end of the data."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - _integer(data, at, "<i")
        self._vtable_bytes = _integer(data, self._vtable, "<H")

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        """Return the root table of a flatbuffer."""
        return cls(data, _integer(data, 0, "<I"))

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._vtable_bytes:
            return None
        offset = _integer(self._data, self._vtable + slot, "<H")
        return self._at + offset if offset else None

    def integer(self, number: int, form: str = "<i") -> int:
        """Return a scalar field, 0 where it is absent."""
        at = self._field(number)
        return 0 if at is None else _integer(self._data, at, form)

    def _vector(self, number: int, item_bytes: int) -> tuple[int, int]:
        at = self._field(number)
        if at is None:
            return 0, 0
        start = at + _integer(self._data, at, "<I")
        count = _integer(self._data, start, "<I")
        if start + 4 + count * item_bytes > len(self._data):
            raise _DamagedError(f"a vector of {count} entries does not fit")
        return start + 4, count

    def blob(self, number: int) -> memoryview:
        """Return a vector of bytes or a string, empty where it is absent."""
        start, count = self._vector(number, 1)
        return self._data[start : start + count]

    def text(self, number: int) -> str:
        """Return a string field."""
        return bytes(self.blob(number)).decode(errors="replace")

    def offsets(self, number: int) -> Iterator[int]:
        """Yield the positions that a vector of offsets leads to."""
        start, count = self._vector(number, 4)
        for at in range(start, start + 4 * count, 4):
            yield at + _integer(self._data, at, "<I")

    def blobs(self, number: int) -> Iterator[memoryview]:
        """Yield the entries of a vector of strings or byte vectors."""
        for at in self.offsets(number):
            count = _integer(self._data, at, "<I")
            if at + 4 + count > len(self._data):
                raise _DamagedError(f"an entry of {count} bytes does not fit")
            yield self._data[at + 4 : at + 4 + count]

    def tables(self, number: int) -> Iterator[_Table]:
        """Yield the entries of a vector of tables."""
        for at in self.offsets(number):
            yield _Table(self._data, at)


def _integer(data: memoryview, at: int, form: str) -> int:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise _DamagedError(f"an offset leads to byte {at} of {len(data)}")
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def _size(value: int, what: str) -> int:
    if value < 0:
        raise _DamagedError(f"{what} is {value}")
    return value


def _executable(data: memoryview) -> Executable:
    table = _Table.root(data)
    kind = table.integer(13, "<h")
    if not 0 <= kind < len(KINDS):
        raise _DamagedError(f"an executable has the unknown type {kind}")
    return Executable(
        kind=KINDS[kind],
        name=table.text(1),
        chip=table.text(10),
        parameter_bytes=len(table.blob(6)),
        instruction_bytes=sum(len(stream.blob(0)) for stream in table.tables(5)),
        scratch_bytes=_size(table.integer(4), "the scratch size"),
        narrow_bytes_per_tile=_size(table.integer(12), "the narrow memory"),
        estimated_cycles=_size(table.integer(16, "<q") or table.integer(11), "the cycle estimate"),
        batch_size=table.integer(3),
        caching_token=table.integer(14, "<Q"),
    )


def _package(operator: int, blob: memoryview) -> Package:
    if bytes(blob[4:8]) != IDENTIFIER:
        raise _DamagedError(f"the package has no {IDENTIFIER.decode()} identifier")
    table = _Table.root(blob)
    executables = []
    for number, data in enumerate(_Table.root(table.blob(1)).blobs(0)):
        if number >= _MAX_EXECUTABLES:
            raise _DamagedError(f"it has more than {_MAX_EXECUTABLES} executables")
        executables.append(_executable(data))
    if not executables:
        raise _DamagedError("it has no executable")
    return Package(
        operator=operator,
        min_runtime_version=_size(table.integer(0), "the runtime version"),
        compiler_version=table.text(4),
        executables=tuple(executables),
    )


def _blob(options: Sequence[int] | None) -> memoryview:
    from flatbuffers import flexbuffers

    raw = bytes(bytearray(options)) if options is not None else b""
    try:
        entry = flexbuffers.GetRoot(raw).AsMap[_KEY]
        blob = entry.AsBlob if entry.IsBlob else entry.AsStringBytes
        return memoryview(bytes(blob))
    except Exception as error:  # the library follows whatever a wild offset leads to
        raise _DamagedError(f'its options hold no package under the key "{_KEY}"') from error


def packages(model: Any, where: str = "The model") -> tuple[Package, ...]:
    """Return the packages of a `ModelT` in execution order, none for one that is not compiled; raise SourceError."""
    found = []
    for index, op in enumerate(model.subgraphs[0].operators or []):
        if flatbuffer.operator_name(model, op)[2] == CUSTOM_OP:
            try:
                found.append(_package(index, _blob(op.customOptions)))
            except _DamagedError as error:
                raise SourceError(
                    f"{where} has a damaged Edge TPU package in operator {index}: {error}.",
                    hint="The file is incomplete or was changed after the compiler wrote it; compile the model again.",
                ) from error
    return tuple(found)


def is_compiled(model: Any) -> bool:
    """Tell whether a `ModelT` has an Edge TPU operator."""
    operators = model.subgraphs[0].operators or []
    return any(flatbuffer.operator_name(model, op)[2] == CUSTOM_OP for op in operators)


def is_compiled_file(path: Path) -> bool:
    """Tell whether a flatbuffer holds Edge TPU operators, without parsing it."""
    try:
        return CUSTOM_OP.encode() in path.read_bytes()
    except OSError:
        return False


def read(source: Path | bytes, *, name: str | None = None, required: bool = True) -> CompiledModel:
    """Return what a compiled `*_edgetpu.tflite` carries.

    Raises SourceError for a damaged file, and for a model that holds no Edge TPU operator unless `required` is False:
    the compiler writes such a file where it maps nothing.
    """
    where = name or (str(source) if isinstance(source, Path) else "The model")
    model = flatbuffer.load(source, name=where)
    if required and not is_compiled(model):
        raise SourceError(
            f"{where} holds no {CUSTOM_OP}: it is not a compiled Edge TPU model, or none of its operators was mapped.",
            hint="Compile it with edgekit compile, or inspect it with --target coral for a prediction.",
        )
    names = (flatbuffer.operator_name(model, op) for op in model.subgraphs[0].operators or [])
    return CompiledModel(
        packages=packages(model, where),
        cpu_operators=tuple(custom or builtin for builtin, _, custom in names if custom != CUSTOM_OP),
    )
