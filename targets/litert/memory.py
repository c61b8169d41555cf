"""What calibration found, kept while a search tries many recipes of one model on the same samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_kept: dict[Any, tuple[Any, Any]] | None = None


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Keep results of `recall` until the end of the block; outside of one, nothing is kept."""
    global _kept  # noqa: PLW0603 - one process runs one search
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def is_remembering() -> bool:
    """Tell whether results are kept."""
    return _kept is not None


def knows(key: Any, samples: Any) -> bool:
    """Tell whether `recall` would not call its `make`."""
    return _kept is not None and (key, id(samples)) in _kept


def recall(key: Any, samples: Any, make: Callable[[], T]) -> T:
    """Return what `make` gave before for an equal key and the very same samples object, else call it."""
    if _kept is None:
        return make()
    full = (key, id(samples))
    if full not in _kept:
        _kept[full] = (make(), samples)  # the reference keeps the samples' id from being used again
    found: T = _kept[full][0]
    return found
