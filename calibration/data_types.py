"""What samples are: the values that pass from a data source to its readers, and what a source of raw samples does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.findings import Finding

Array = NDArray[Any]
Role = Literal["calibration", "evaluation"]
T = TypeVar("T")

# How a column or member with labels may be called, in order of preference.
LABEL_NAMES = ("y", "label", "labels", "target", "targets")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One sample as the model takes it.

    `inputs` maps each input's name to an array of batch 1 in the input's dtype. `label` is None, an int (class index),
    or an array (regression target, segmentation mask, boxes of a detection), or a mapping of arrays by name.
    """

    id: str
    inputs: Mapping[str, Array]
    label: Any | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RawSample:
    """One sample as its source has it, before preprocessing; `label` is what the source says."""

    id: str
    inputs: Mapping[str, Array]
    label: Any | None = None


class RawSource(Protocol):
    """A place that raw samples come from; it can be read any number of times, always in the same order.

    `count` is None where it is unknown before reading. `class_names` gives integer labels their names.
    """

    @property
    def kind(self) -> str:
        """The kind of data, in a word."""
        ...

    @property
    def count(self) -> int | None:
        """The number of samples."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each integer label."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found on opening."""
        ...

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Yield all samples, or those at the ascending `indices`. Raises DataError."""
        ...

    def files(self, indices: Sequence[int] | None) -> Iterable[tuple[str, Path]] | None:
        """Yield name and path of each file that those samples are read from; None where there are no such files."""
        ...


def pick(items: Iterable[T], indices: Sequence[int] | None) -> Iterator[T]:
    """Yield the items at the ascending `indices`, or all; what follows the last of them is not drawn."""
    if indices is None:
        yield from items
        return
    stream, at = iter(items), 0
    for index in indices:
        yield from islice(stream, index - at, index - at + 1)
        at = index + 1


def numbered(count: int, indices: Sequence[int] | None) -> Sequence[int]:
    """Return `indices`, or those of all `count` samples."""
    return range(count) if indices is None else indices


def refuse_objects(array: Array, name: str) -> None:
    """Raise DataError for an array that holds no numbers."""
    if array.dtype.kind not in "biuf":
        what = "Python objects, which are never unpickled" if array.dtype.hasobject else f"dtype {array.dtype}"
        raise DataError(f"{name} holds {what}; accepted: integers, floats, booleans")


def open_npy(path: Path, name: str) -> Array:
    """Return a `.npy` file's array mapped into memory; raise DataError with `name` where it cannot be read."""
    try:
        array: Array = _mapped(path)
    except Exception as error:  # a damaged header raises whatever Python's parser and NumPy's raise
        raise DataError(f"{name}: not a readable .npy file of numbers: {error}") from None
    refuse_objects(array, name)
    return array


def _mapped(path: Path) -> Array:
    with path.open("rb") as stream:
        if stream.read(6) != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it has no .npy header")
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        array = np.load(path, allow_pickle=False)
    return array
