"""A metric from the user's own file: `file.py:metric`, a callable `(outputs, label) -> float`."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.errors import DataError
from edge.measure.metric import MeanMetric, Outputs

_PATTERN = re.compile(r"(?P<path>.+\.py):(?P<function>[^:]+)")


def is_custom(text: str) -> bool:
    """Tell whether `text` has the form file.py:metric."""
    return _PATTERN.fullmatch(text) is not None


class CustomMetric(MeanMetric):
    """Mean over samples of the user's `function(outputs: dict[str, ndarray], label) -> float`.

    An attribute `higher_is_better = False` on the function marks an error measure. Raises DataError, with file and
    line, where the file or the function fails.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        matched = _PATTERN.fullmatch(text)
        if matched is None:
            raise DataError(f"{text!r} names no metric; accepted: file.py:metric")
        self.path = Path(matched["path"])
        self.function = self._load(matched["function"])
        self.higher_is_better = bool(getattr(self.function, "higher_is_better", True))

    def _load(self, name: str) -> Callable[[dict[str, Any], Any], Any]:
        if not self.path.is_file():
            raise DataError(
                f"metric file {self.path} does not exist", hint="Give file.py:metric with an existing file."
            )
        module_name = f"edgekit_metric_{self.path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, self.path)
        if spec is None or spec.loader is None:
            raise DataError(f"metric file {self.path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pickling in the user's file look it up
        folder = str(self.path.resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)  # behind everything else: the file's neighbours shadow no package
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise self._failure(error, f"importing {self.path}") from error
        function = getattr(module, name, None)
        if not callable(function):
            raise DataError(
                f"{self.path} has no function {name!r}", hint="Define it as metric(outputs, label) -> float."
            )
        return function  # type: ignore[no-any-return]

    def score(self, outputs: Outputs, label: Any) -> float:
        """Return what the user's function gives for one sample."""
        try:
            result = self.function(dict(outputs), label)
        except (Exception, SystemExit) as error:
            raise self._failure(error, f"metric {self.name}, sample {len(self)}") from error
        try:
            value = float(result)
        except (TypeError, ValueError):
            raise self.refusal(f"the function returned {type(result).__name__} {result!r:.80}", "a number") from None
        if not math.isfinite(value):
            raise self.refusal(f"the function returned {value}", "a finite number")
        return value

    def _failure(self, error: BaseException, doing: str) -> DataError:
        own = str(self.path.resolve())
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if str(Path(frame.filename).resolve()) == own
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{self.path}:{line}" if line else str(self.path)
        return DataError(f"{doing}: {type(error).__name__}: {error} ({place})", hint="Correct the metric's file.")
