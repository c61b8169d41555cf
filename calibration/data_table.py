"""Samples from a CSV file: paths of files per input, or columns of numbers, and labels."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.calibration.data_folder import AUDIO_SUFFIXES, IMAGE_SUFFIXES, load_file, load_image
from edge.calibration.data_types import LABEL_NAMES, Array, RawSample, open_npy, pick
from edge.errors import DataError
from edge.findings import Finding
from edge.signature import Signature, TensorSpec

_FILE_SUFFIXES = (".npy", *IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
_Row = tuple[int, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """Rows of a CSV file; `columns` maps each input to the columns that feed it, `label` names the label's column."""

    path: Path
    specs: tuple[TensorSpec, ...]
    columns: Mapping[str, tuple[str, ...]]
    label: str | None
    count: int
    class_names: tuple[str, ...] = ()
    kind: str = "csv"
    findings: tuple[Finding, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there is a label column."""
        return self.label is not None

    def files(self, indices: Sequence[int] | None) -> Iterator[tuple[str, Path]]:
        """Yield the CSV file and every file that its rows name."""
        yield self.path.name, self.path
        for _, row in pick(_rows(self.path), indices):
            for column, text in row.items():
                if _names_file(text) and (column == self.label or any(column in c for c in self.columns.values())):
                    yield text, self.path.parent / text

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Yield one sample per row."""
        for line, row in pick(_rows(self.path), indices):
            where = f"{self.path.name}:{line}"
            inputs = {spec.name: self._input(spec, row, where) for spec in self.specs}
            yield RawSample(id=where, inputs=inputs, label=self._label(row, where))

    def _input(self, spec: TensorSpec, row: dict[str, str], where: str) -> Array:
        columns = self.columns[spec.name]
        if len(columns) == 1 and _number(row[columns[0]]) is None:
            return _load(self.path, row[columns[0]], spec, f"{where}, column {columns[0]!r}")
        return np.array([_required_number(row[c], f"{where}, column {c!r}") for c in columns])

    def _label(self, row: dict[str, str], where: str) -> object:
        if self.label is None:
            return None
        text = row[self.label]
        if text in self.class_names:
            return self.class_names.index(text)
        if _names_file(text):
            place = f"{where}, column {self.label!r}"
            if text.lower().endswith(".npy"):
                return np.array(open_npy(_existing(self.path, text, place), f"{place}: {text}"))
            return load_image(_existing(self.path, text, place))
        number = _required_number(text, f"{where}, column {self.label!r}")
        return number if isinstance(number, int) else np.float64(number)


def open_csv_source(path: Path, signature: Signature) -> CsvSource:
    """Open a CSV file with a header row. Raises DataError.

    Columns named like the inputs hold paths, relative to the file, of .npy, image or WAV files, or numbers. For a model
    of one input, the only other column may hold the paths, or all others together are its numbers, in column order.
    The label is in the column label, labels, y, target or targets: an index, a number, a class name, or a path.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no rows below the header")
    header = list(first[1])
    label = next((c for name in LABEL_NAMES for c in header if c.lower() == name), None)
    columns = _input_columns(path, first[1], [c for c in header if c != label], signature)
    count, texts = _survey(path, label)
    return CsvSource(
        path=path,
        specs=signature.inputs,
        columns=columns,
        label=label,
        count=count,
        class_names=_class_names(texts, signature),
    )


def _input_columns(
    path: Path, row: dict[str, str], rest: list[str], signature: Signature
) -> dict[str, tuple[str, ...]]:
    names = [spec.name for spec in signature.inputs]
    if all(name in rest for name in names):
        return {name: (name,) for name in names}
    numeric = [column for column in rest if _number(row[column]) is not None]
    if len(names) == 1 and rest and (len(numeric) == len(rest) or len(rest) == 1):
        return {names[0]: tuple(rest)}
    raise DataError(
        f"{path}: the columns {', '.join(row)} do not feed the inputs {', '.join(names)}",
        hint="Name the columns after the inputs; for one input, columns of numbers beside a label column do as well.",
    )


def _survey(path: Path, label: str | None) -> tuple[int, set[str]]:
    """Return the number of rows and the labels that are class names, as are all of them or none."""
    count, others, texts = 0, 0, set()
    for _, row in _rows(path):
        count += 1
        if label is not None and _number(row[label]) is None and not _names_file(row[label]):
            texts.add(row[label])
        else:
            others += 1
    if texts and others and label is not None:
        raise DataError(f"{path}: column {label!r} mixes class names, such as {min(texts)!r}, with numbers or files")
    return count, texts


def _class_names(texts: set[str], signature: Signature) -> tuple[str, ...]:
    if not texts:
        return ()
    return signature.labels if texts <= set(signature.labels) else tuple(sorted(texts))


def _rows(path: Path) -> Iterator[_Row]:
    """Yield line number and cells by column of each row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [cell.strip() for cell in next(reader, [])]
            if not header or len(set(header)) != len(header) or "" in header:
                raise DataError(f"{path}: the header must name every column once; received {header}")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{path}:{reader.line_num}: {len(cells)} cells; the header has {len(header)}")
                yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file in UTF-8: {error}") from None


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _required_number(text: str, where: str) -> int | float:
    number = _number(text)
    # A whole number of hundreds of digits is finite, but no float.
    if number is None or (isinstance(number, int) and abs(number) >= 2**63) or not math.isfinite(number):
        raise DataError(f"{where}: {text!r} is not a finite number")
    return number


def _names_file(text: str) -> bool:
    return text.lower().endswith(_FILE_SUFFIXES)


def _existing(table: Path, text: str, where: str) -> Path:
    path = table.parent / text
    try:
        found = path.is_file()
    except OSError:  # a name that no file can have
        found = False
    if not found:
        raise DataError(f"{where}: no file {text!r}; paths are relative to {table.parent}")
    return path


def _load(table: Path, text: str, spec: TensorSpec, where: str) -> Array:
    if not _names_file(text):
        raise DataError(f"{where}: {text!r} is neither a number nor a file of {', '.join(_FILE_SUFFIXES)}")
    path = _existing(table, text, where)
    if path.suffix.lower() == ".npy":
        return np.array(open_npy(path, f"{where}: {text}"))
    return load_file(path, spec)
