"""Samples that a user's `file.py:callable` yields."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge.calibration.data_types import Array, RawSample, pick, refuse_objects
from edge.errors import DataError
from edge.findings import Finding
from edge.signature import Signature


@dataclass(frozen=True, kw_only=True)
class CallableSource:
    """What the name in the user's file yields; it is called anew for every pass.

    Each sample is an array (for a model of one input), a dict of arrays by input name, or a pair of either and its
    label. A callable gives an iterator or anything that can be iterated; what is not callable is iterated itself.
    """

    path: Path
    name: str
    made: Any = field(repr=False, compare=False)
    first: Any = field(repr=False, compare=False)
    input_names: tuple[str, ...]
    count: int | None
    labelled: bool
    class_names: tuple[str, ...] = ()
    kind: str = "callable"
    findings: tuple[Finding, ...] = ()

    def files(self, indices: Sequence[int] | None) -> None:
        """Return None: the samples are what counts, wherever they come from."""
        del indices

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Call the user's code and yield its samples."""
        pass_ = _make(self.path, self.name, self.made)
        if pass_ is self.first and isinstance(pass_, Iterator):
            raise DataError(
                f"{self._where}: returns the same iterator again, which is used up after one pass",
                hint="Make the iterator inside the function (`yield` does), or return a list.",
            )
        for index, item in pick(enumerate(_drawn(self.path, self.name, pass_)), indices):
            yield self._raw(item, f"{self._where}[{index}]")

    @property
    def _where(self) -> str:
        return f"{self.path.name}:{self.name}"

    def _raw(self, item: object, where: str) -> RawSample:
        value, label = _parted(item)
        if isinstance(value, tuple):
            raise DataError(f"{where}: yields a tuple of {len(value)}; accepted: an array, a dict, or (inputs, label)")
        if isinstance(value, Mapping):
            if set(value) != set(self.input_names):
                raise DataError(
                    f"{where}: yields {', '.join(map(str, value)) or 'nothing'}; "
                    f"accepted: the inputs {', '.join(self.input_names)}"
                )
            inputs = {name: _array(value[name], where) for name in self.input_names}
        elif len(self.input_names) == 1:
            inputs = {self.input_names[0]: _array(value, where)}
        else:
            raise DataError(
                f"{where}: yields {type(value).__name__} for a model of {len(self.input_names)} inputs; "
                f"accepted: a dict with {', '.join(self.input_names)}"
            )
        return RawSample(id=where, inputs=inputs, label=label)


def open_callable_source(path: Path, name: str, signature: Signature) -> CallableSource:
    """Import the user's file and draw its first sample. Raises DataError with the user's file and line."""
    module = _imported(path)
    if not hasattr(module, name):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise DataError(f"{path}: has no {name!r}; its functions are {', '.join(names) or 'none'}")
    made = getattr(module, name)
    pass_ = _make(path, name, made)
    first = next(_drawn(path, name, pass_), None)
    if first is None:
        raise DataError(f"{path.name}:{name}: yields no samples")
    return CallableSource(
        path=path,
        name=name,
        made=made,
        first=pass_ if isinstance(pass_, Iterator) else None,
        input_names=tuple(t.name for t in signature.inputs),
        count=len(pass_) if hasattr(pass_, "__len__") else None,
        labelled=_parted(first)[1] is not None,
    )


def _parted(item: object) -> tuple[Any, Any]:
    """Return inputs and label of what was yielded; torch's DataLoader makes its pairs lists."""
    if isinstance(item, tuple) or (isinstance(item, list) and len(item) == 2 and hasattr(item[0], "__array__")):
        return (item[0], item[1]) if len(item) == 2 else (item, None)
    return item, None


def _array(value: Any, where: str) -> Array:
    try:
        if hasattr(value, "detach"):  # a torch tensor, maybe on a device, maybe with a gradient
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except Exception as error:  # whatever a foreign array type raises
        raise DataError(f"{where}: yields {type(value).__name__}, which is no array of numbers: {error}") from None
    refuse_objects(array, where)
    return array


def _imported(path: Path) -> ModuleType:
    """Import the file under a name of its own; its folder is appended to sys.path, so that it shadows no package."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"edgekit_user_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise DataError(f"{path}: cannot be imported: {_told(error, path)}") from error
    return module


def _make(path: Path, name: str, made: Any) -> Any:
    try:
        return made() if callable(made) else made
    except (Exception, SystemExit) as error:
        raise DataError(f"{path.name}:{name} raised {_told(error, path)}") from error


def _drawn(path: Path, name: str, pass_: Any) -> Iterator[Any]:
    try:
        yield from _iterable(pass_)
    except (Exception, SystemExit) as error:
        raise DataError(f"{path.name}:{name} raised {_told(error, path)}") from error


def _iterable(pass_: Any) -> Iterable[Any]:
    """Return `pass_`, or the items of what has only a length and indices, as torch's map-style data sets have."""
    if hasattr(pass_, "__len__") and hasattr(pass_, "__getitem__") and not hasattr(pass_, "__iter__"):
        return (pass_[index] for index in range(len(pass_)))
    made: Iterable[Any] = iter(pass_)
    return made


def _told(error: BaseException, path: Path) -> str:
    """Return the error's type and text with the last line of the user's file that it passed through."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.msg} ({Path(error.filename).name}, line {error.lineno})"
    return f"{text} ({path.name}, line {own[-1]})" if own else text
