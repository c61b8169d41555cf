"""Samples from `.npz` and `.npy` files: one array per input, samples along the first axis, read in bounded memory."""

from __future__ import annotations

import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from edge.calibration.data_types import LABEL_NAMES, Array, RawSample, Role, numbered, open_npy, pick, refuse_objects
from edge.errors import DataError
from edge.findings import Finding
from edge.signature import Signature

# Of each compressed member about this much is unpacked at a time.
_CHUNK_BYTES = 1 << 20
_DAMAGE = (OSError, ValueError, EOFError, OverflowError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
_SPLITS = ("_train", "_test")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array inside an `.npz`; `shape` has the samples first. A Fortran-ordered one is stored last axis first."""

    name: str
    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


@dataclass(frozen=True, kw_only=True)
class NpzSource:
    """Members of an `.npz` as inputs and, where `label` is not None, labels."""

    path: Path
    inputs: dict[str, Member]
    label: Member | None = None
    findings: tuple[Finding, ...] = ()
    kind: str = "npz"
    class_names: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """The length of the first axis."""
        return next(iter(self.inputs.values())).shape[0]

    @property
    def labelled(self) -> bool:
        """Whether the archive has labels."""
        return self.label is not None

    def files(self, indices: Sequence[int] | None) -> Iterable[tuple[str, Path]]:
        """Yield the archive, named by the members that are read."""
        del indices
        members = [*self.inputs.values(), *([self.label] if self.label else [])]
        return [(",".join(m.name for m in members), self.path)]

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Yield one sample per row; members are read side by side."""
        names = list(self.inputs)
        columns = [pick(_rows(self.path, member), indices) for member in self.inputs.values()]
        if self.label:
            columns.append(pick(_rows(self.path, self.label), indices))
        for index, values in zip(numbered(self.count, indices), zip(*columns, strict=True), strict=False):
            label = values[-1] if self.label else None
            inputs = dict(zip(names, values, strict=False))
            yield RawSample(id=f"{self.path.name}[{index}]", inputs=inputs, label=label)


@dataclass(frozen=True, kw_only=True)
class NpySource:
    """Rows of one `.npy` file, mapped into memory, for a model of one input; unlabelled."""

    path: Path
    input_name: str
    array: Array = field(repr=False, compare=False)
    kind: str = "npy"
    labelled: bool = False
    class_names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def count(self) -> int:
        """The length of the first axis."""
        return int(self.array.shape[0])

    def files(self, indices: Sequence[int] | None) -> Iterable[tuple[str, Path]]:
        """Yield the file."""
        del indices
        return [("npy", self.path)]

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Yield one sample per row."""
        for index in numbered(self.count, indices):
            yield RawSample(id=f"{self.path.name}[{index}]", inputs={self.input_name: np.array(self.array[index])})


def open_npy_source(path: Path, signature: Signature) -> NpySource:
    """Open a `.npy` file of samples for a model of one input. Raises DataError."""
    if len(signature.inputs) != 1:
        names = ", ".join(t.name for t in signature.inputs)
        raise DataError(f"{path}: one array for a model of {len(signature.inputs)} inputs ({names}); accepted: .npz")
    array = open_npy(path, str(path))
    if array.ndim == 0 or array.shape[0] == 0:
        raise DataError(f"{path}: has no samples; its shape is {array.shape}, accepted: samples along the first axis")
    return NpySource(path=path, input_name=signature.inputs[0].name, array=array)


def open_npz_source(path: Path, chosen: str | None, signature: Signature, role: Role) -> NpzSource:
    """Open an `.npz`; `chosen` lists members by comma: the inputs in order, then the labels. Raises DataError.

    Without `chosen`, inputs are the members of their names (or `x`, or the only array, for a model of one input), with
    the suffix `_train` for calibration and `_test` for evaluation where there is one. Labels are y, label or labels,
    target or targets, with the inputs' suffix.
    """
    members = _members(path)
    if chosen is not None:
        inputs, label, findings = _chosen_members(path, members, chosen, signature)
    else:
        inputs, label, findings = _found_members(path, members, signature, role)
    used = [*inputs.values(), *([label] if label else [])]
    for member in used:
        if member.dtype.kind not in "biuf":
            refuse_objects(np.empty(0, member.dtype), f"{path}: array {member.name!r}")
    if len({m.shape[:1] for m in used}) > 1 or not used[0].shape:
        lengths = ", ".join(f"{m.name} {m.shape}" for m in used)
        raise DataError(f"{path}: arrays must have one sample per index of the first axis; received {lengths}")
    if used[0].shape[0] == 0:
        raise DataError(f"{path}: array {used[0].name!r} has no samples; its shape is {used[0].shape}")
    return NpzSource(path=path, inputs=inputs, label=label, findings=findings)


# --- which members -----------------------------------------------------------------------------------------------

_Choice = tuple[dict[str, Member], Member | None, tuple[Finding, ...]]


def _chosen_members(path: Path, members: dict[str, Member], chosen: str, signature: Signature) -> _Choice:
    names = [name.strip() for name in chosen.split(",")]
    wanted = [t.name for t in signature.inputs]
    if unknown := [name for name in names if name not in members]:
        raise DataError(f"{path}: no array {', '.join(map(repr, unknown))}; it has {', '.join(members) or 'none'}")
    if len(names) not in (len(wanted), len(wanted) + 1):
        raise DataError(
            f"{path}: {len(names)} arrays chosen ({chosen}); accepted: one per input ({', '.join(wanted)}), "
            "and one more for labels"
        )
    label = members[names[-1]] if len(names) > len(wanted) else None
    return {name: members[array] for name, array in zip(wanted, names, strict=False)}, label, ()


def _found_members(path: Path, members: dict[str, Member], signature: Signature, role: Role) -> _Choice:
    own, other = _SPLITS if role == "calibration" else reversed(_SPLITS)
    for suffix in (own, "", other):
        inputs = _inputs_with(suffix, members, signature)
        if inputs:
            label = _member_named([f"{name}{suffix}" for name in LABEL_NAMES], members)
            return inputs, label, _split_findings(path, suffix, other, role)
    wanted = ", ".join(t.name for t in signature.inputs)
    raise DataError(
        f"{path}: no arrays for the inputs {wanted}; it has {', '.join(members) or 'none'}",
        hint=f"Name the arrays after the inputs, or choose them: {path.name}:ARRAY,LABELS",
    )


def _inputs_with(suffix: str, members: dict[str, Member], signature: Signature) -> dict[str, Member]:
    """Return the member of each input, or nothing where one is missing."""
    single = len(signature.inputs) == 1
    found = {}
    for spec in signature.inputs:
        names = [spec.name, "x"] if single else [spec.name]
        if member := _member_named([f"{name}{suffix}" for name in names], members):
            found[spec.name] = member
    if len(found) == len(signature.inputs):
        return found
    return {signature.inputs[0].name: only} if single and (only := _only_array(suffix, members)) else {}


def _member_named(names: list[str], members: dict[str, Member]) -> Member | None:
    lower = {name.lower(): member for name, member in reversed(members.items())}
    found = (members.get(name) or lower.get(name.lower()) for name in names)
    return next((member for member in found if member), None)


def _only_array(suffix: str, members: dict[str, Member]) -> Member | None:
    labels = {f"{name}{suffix}" for name in LABEL_NAMES}
    rest = [m for name, m in members.items() if name.lower() not in labels and m.shape and m.dtype.kind in "biufO"]
    rest = [m for m in rest if suffix == next((s for s in _SPLITS if m.name.lower().endswith(s)), "")]
    return rest[0] if len(rest) == 1 else None


def _split_findings(path: Path, suffix: str, other: str, role: Role) -> tuple[Finding, ...]:
    if suffix != other:
        return ()
    return (
        Finding(
            rule="OTHER_SPLIT",
            severity="warning",
            message=f"{path.name} has no arrays for {role}: those ending in {suffix} are used instead",
            fix="Give the archive both splits, or choose the arrays by name.",
        ),
    )


# --- reading ----------------------------------------------------------------------------------------------------


def _members(path: Path) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.namelist() if entry.endswith(".npy")]
            return {entry.removesuffix(".npy"): _header(archive, entry) for entry in entries}
    except Exception as error:  # a damaged header raises whatever Python's parser and NumPy's raise
        raise DataError(f"{path}: not a readable .npz archive: {error}") from None


def _header(archive: zipfile.ZipFile, entry: str) -> Member:
    with archive.open(entry) as stream:
        shape, fortran, dtype = _read_header(stream)
    return Member(name=entry.removesuffix(".npy"), entry=entry, shape=shape, dtype=dtype, fortran=fortran)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran and len(shape) > 1, dtype


def _rows(path: Path, member: Member) -> Iterator[Array]:
    """Yield the member's rows; each is backed by a chunk of about a MiB and not to be kept."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member.entry) as stream:
            _read_header(stream)
            yield from _fortran_rows(stream, member) if member.fortran else _c_rows(stream, member)
    except _DAMAGE as error:
        raise DataError(f"{path}: array {member.name!r} is damaged: {error}") from None


def _c_rows(stream: IO[bytes], member: Member) -> Iterator[Array]:
    row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
    per_chunk = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, member.shape[0], per_chunk):
        rows = min(per_chunk, member.shape[0] - start)
        data = stream.read(rows * row_bytes)
        if len(data) != rows * row_bytes:
            raise EOFError(f"it ends within samples {start} to {start + rows - 1} of {member.shape[0]}")
        yield from np.frombuffer(data, member.dtype).reshape(rows, *member.shape[1:])


def _fortran_rows(stream: IO[bytes], member: Member) -> Iterator[Array]:
    """Unpack to a temporary file first: the values of one sample are spread over the whole member."""
    with tempfile.TemporaryFile() as spool:
        size = 0
        while data := stream.read(_CHUNK_BYTES):
            size += spool.write(data)
        if size != math.prod(member.shape) * member.dtype.itemsize:
            raise EOFError(f"it has {size} bytes for shape {member.shape}")
        spool.flush()
        array = np.memmap(spool, member.dtype, "r", shape=member.shape, order="F")
        yield from (np.array(row) for row in array)
