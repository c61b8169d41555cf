"""Calibration and evaluation data: samples of any source, preprocessed, one at a time and any number of times.

edge.calibration.data_types      Sample, and what a source of raw samples does
edge.calibration.data_arrays     .npz, .npy
edge.calibration.data_folder     folders of images or WAV files
edge.calibration.data_table      .csv
edge.calibration.data_callable   file.py:callable
edge.calibration.data_findings   what the samples themselves tell
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.calibration.data_arrays import open_npy_source, open_npz_source
from edge.calibration.data_callable import open_callable_source
from edge.calibration.data_findings import inspect_samples
from edge.calibration.data_folder import open_folder_source
from edge.calibration.data_table import open_csv_source
from edge.calibration.data_types import Array, RawSample, RawSource, Role, Sample
from edge.errors import DataError
from edge.findings import Finding
from edge.preprocess import apply
from edge.signature import Signature

__all__ = ["Dataset", "Role", "Sample", "inspect_samples", "open_dataset", "split", "spread"]

ACCEPTED = (
    "FILE.npz (or FILE.npz:ARRAY,LABELS), FILE.npy, FILE.csv, FILE.py:CALLABLE, "
    "a folder of images or WAV files (subfolders are classes)"
)
# The golden ratio's fraction of 2^32: multiples of it fall evenly and repeat with no period of the data.
_GOLDEN = 2654435769


def spread(count: int, chosen: int) -> tuple[int, ...]:
    """Return `chosen` of `count` indices, ascending: one from each of as many equal stretches, or all if fewer.

    The place within stretch i is the fraction of i * golden ratio (a low-discrepancy sequence), so that data whose
    classes come in turn are not hit with one class only, as equal steps would.
    """
    if chosen >= count:
        return tuple(range(count))
    result = []
    for i in range(chosen):
        low, high = i * count // chosen, (i + 1) * count // chosen
        result.append(low + ((i * _GOLDEN % 2**32) * (high - low) >> 32))
    return tuple(result)


def split(count: int, calibration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return indices to calibrate with, chosen by `spread`, and all the others, to evaluate with."""
    chosen = spread(count, calibration)
    taken = set(chosen)
    return chosen, tuple(index for index in range(count) if index not in taken)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Samples of one source as the model takes them; iterate it as often as wanted, always in the source's order.

    `indices` are the positions in the source that are used (None: all); `at_most` ends a source of unknown length.
    """

    source: RawSource
    signature: Signature
    role: Role
    indices: tuple[int, ...] | None = None
    at_most: int | None = None
    # Digests of complete passes over a source without files.
    _passes: list[str] = field(default_factory=list, repr=False)

    @property
    def kind(self) -> str:
        """`npz`, `npy`, `images`, `audio`, `csv` or `callable`."""
        return self.source.kind

    @property
    def count(self) -> int | None:
        """The number of samples, None where only reading tells."""
        return self.source.count if self.indices is None else len(self.indices)

    @property
    def labelled(self) -> bool:
        """Whether samples have labels."""
        return self.source.labelled

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the integer labels, where the data or the signature have them."""
        return self.source.class_names or self.signature.labels

    def __iter__(self) -> Iterator[Sample]:
        """Yield preprocessed samples. Raises DataError for one that does not fit its input or holds NaN."""
        drawn, digest = 0, hashlib.sha256()
        hashes = self.source.files(self.indices) is None
        for raw in self._raw():
            drawn += 1
            if hashes:
                _digest_sample(digest, raw)
            yield self._prepared(raw)
        self._refuse_fewer(drawn)
        if hashes:
            self._passes.append(digest.hexdigest())

    def _raw(self) -> Iterator[RawSample]:
        if self.at_most is None:
            return self.source.samples(self.indices)
        return self.source.samples(range(self.at_most))

    def _refuse_fewer(self, drawn: int) -> None:
        if drawn == 0 or (self.indices is not None and drawn < len(self.indices)):
            wanted = "at least 1" if self.indices is None else f"{len(self.indices)}, up to index {self.indices[-1]}"
            raise DataError(f"the {self.kind} data gave {drawn} samples; expected {wanted}")

    def _prepared(self, raw: RawSample) -> Sample:
        inputs = {}
        for spec in self.signature.inputs:
            name = raw.id if len(self.signature.inputs) == 1 else f"{raw.id}, input {spec.name!r}"
            inputs[spec.name] = apply(raw.inputs[spec.name], spec, self.signature.preprocess_of(spec.name), sample=name)
        if (raw.label is None) == self.labelled:
            raise DataError(f"{raw.id}: {'no label' if self.labelled else 'a label'}, unlike the first sample")
        return Sample(id=raw.id, inputs=inputs, label=_label(raw.label, raw.id, self.signature))

    def first(self) -> Sample:
        """Return the first sample, to learn early whether the data fit. Raises DataError."""
        sample = next(iter(self), None)
        assert sample is not None  # an empty pass raises
        return sample

    def select(self, indices: Iterable[int]) -> Dataset:
        """Return the samples at these positions of this data set, in ascending order. Raises DataError."""
        wanted = sorted(set(indices))
        if not wanted:
            raise DataError("no samples selected; accepted: at least one index")
        if wanted[0] < 0 or (self.count is not None and wanted[-1] >= self.count):
            raise DataError(f"samples {wanted[0]} to {wanted[-1]} selected; accepted: 0 to {(self.count or 0) - 1}")
        own = wanted if self.indices is None else [self.indices[index] for index in wanted]
        return replace(self, indices=tuple(own), at_most=None, _passes=[])

    def split(self, calibration: int) -> tuple[Dataset, Dataset]:
        """Return that many evenly spread samples to calibrate with, and the rest to evaluate with. Raises DataError."""
        if self.count is None:
            raise DataError(
                f"{self.kind} data of unknown length cannot be split",
                hint="Let the callable return a list (something with a length), or give separate evaluation data.",
            )
        if not 0 < calibration < self.count:
            raise DataError(f"{calibration} of {self.count} samples to calibrate with; accepted: 1 to {self.count - 1}")
        chosen, rest = split(self.count, calibration)
        return replace(self.select(chosen), role="calibration"), replace(self.select(rest), role="evaluation")

    def digest(self) -> str:
        """Return the sha256 of the content: names and bytes of the files in order, or the drawn arrays; and the choice.

        For a callable it is that of the first complete pass; one is made if there was none yet.
        """
        files = self.source.files(self.indices)
        if files is None:
            if not self._passes:
                for _ in self:
                    pass
            return self._passes[0]
        digest = hashlib.sha256(json.dumps([self.kind, self.indices]).encode())
        for name, path in files:
            digest.update(f"\0{name}\0".encode())
            digest.update(_file_digest(path))
        return digest.hexdigest()

    def findings(self) -> tuple[Finding, ...]:
        """Return what can be told from the data, in one pass over all samples."""
        found = (*self.source.findings, *inspect_samples(self, self.signature, role=self.role))
        if len(set(self._passes)) < 2:
            return found
        changing = Finding(
            rule="DATA_NOT_REPEATABLE",
            severity="warning",
            message="the callable yields other samples at each pass",
            fix="Seed its random numbers inside the function: else no build can be repeated.",
        )
        return (*found, changing)


def open_dataset(location: str, signature: Signature, *, role: Role, limit: int | None = None) -> Dataset:
    """Open data for a model and prepare the first sample, so that what does not fit fails here. Raises DataError.

    `location` is one of `ACCEPTED`. With `limit`, that many samples spread over the source are used, or the first ones
    where its length is unknown.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} samples; accepted: 1 or more")
    source = _open_source(location, signature, role)
    data = Dataset(source=source, signature=signature, role=role)
    if limit is not None:
        if source.count is None:
            data = replace(data, at_most=limit)
        elif limit < source.count:
            data = data.select(spread(source.count, limit))
    data.first()
    return data


def _open_source(location: str, signature: Signature, role: Role) -> RawSource:
    path, _, name = location.rpartition(":")
    if re.search(r"\.py:[A-Za-z_]\w*$", location):
        return open_callable_source(_file(Path(path)), name, signature)
    if match := re.fullmatch(r"(.+\.npz):(.+)", location, re.IGNORECASE):
        return open_npz_source(_file(Path(match[1])), match[2], signature, role)
    if Path(location).is_dir():
        return open_folder_source(Path(location), signature)
    match Path(location).suffix.lower():
        case ".npz":
            return open_npz_source(_file(Path(location)), None, signature, role)
        case ".npy":
            return open_npy_source(_file(Path(location)), signature)
        case ".csv":
            return open_csv_source(_file(Path(location)), signature)
    if Path(location).exists():
        raise DataError(f"{location}: data of an unknown kind", hint=f"Accepted: {ACCEPTED}.")
    raise DataError(f"{location}: no such file or folder", hint=f"Accepted: {ACCEPTED}.")


def _file(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", hint=f"Accepted: {ACCEPTED}.")
    return path


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _digest_sample(digest: hashlib._Hash, raw: RawSample) -> None:
    label = raw.label if isinstance(raw.label, Mapping) else {"": raw.label}
    parts = [*raw.inputs.items(), *((str(key), np.asarray(label[key])) for key in sorted(label))]
    for name, array in parts:
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(str(array).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes())


# --- labels ------------------------------------------------------------------------------------------------------


def _label(label: Any, sample: str, signature: Signature) -> Any:
    """Return a label as `Sample` has it; class names and one-hot rows become indices. Raises DataError."""
    if label is None or isinstance(label, Mapping):
        return label and {str(key): _label_array(value, sample) for key, value in label.items()}
    if isinstance(label, str):
        if label not in signature.labels:
            raise DataError(
                f"{sample}: label {label!r}; accepted: {', '.join(signature.labels) or 'a number or an array'}"
            )
        return signature.labels.index(label)
    array = _label_array(label, sample)
    classes = _class_count(signature)
    if signature.task == "classification":
        array = _class_index(array)
    if array.dtype.kind not in "biu" or array.size != 1 or array.ndim > 1:
        return array
    index = int(array.reshape(()))
    if classes is not None and not 0 <= index < classes:
        raise DataError(f"{sample}: label {index}; the model has {classes} classes: accepted are 0 to {classes - 1}")
    return index


def _label_array(label: Any, sample: str) -> Array:
    try:
        value = label.detach().cpu().numpy() if hasattr(label, "detach") else label
        array = np.array(value)
    except Exception as error:  # whatever a foreign array type raises
        raise DataError(f"{sample}: the label is no array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{sample}: the label has dtype {array.dtype}; accepted: an integer or an array of numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{sample}: the label contains NaN or an infinity")
    return array


def _class_index(array: Array) -> Array:
    """Return the index of a one-hot row, and a whole float as an integer; other labels unchanged."""
    one_hot = array.ndim == 1 and array.size > 1 and np.count_nonzero(array) == 1 and array.max() == 1
    if one_hot:
        return np.asarray(array.argmax())
    return array.astype(np.int64) if array.size == 1 and array.flat[0] == int(array.flat[0]) else array


def _class_count(signature: Signature) -> int | None:
    """Return the number of classes of a classifier of one output with a score per class, else None."""
    if signature.task != "classification" or len(signature.outputs) != 1 or not signature.outputs[0].shape:
        return None
    size = signature.outputs[0].shape[-1]
    return size if size > 1 else None
