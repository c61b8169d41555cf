"""Reading PyTorch's files without their pickles: torch.export.load falls back to plain unpickling, which runs code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from edge.errors import SourceError

# torch/serialization.py: no call of torch.load may unpickle anything but tensors and plain containers.
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_state = {"hooked": False, "refusing": False}


class PickleRefusedError(SourceError):
    """The file holds a pickle that names a function or class."""


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _state["refusing"] and event == "pickle.find_class":
        name = ".".join(map(str, arguments))
        raise PickleRefusedError(
            f"The file holds a pickle that calls for {name[:100]}, which would run as code.",
            hint="Run with --trust if you know where the file comes from, or export it without Python objects.",
        )


@contextlib.contextmanager
def refused(*, trust: bool = False) -> Iterator[None]:
    """Refuse, within the block, every pickle that names a function or class; with `trust` do nothing.

    The unpickler tells the interpreter's audit hooks of each name before it imports it (PEP 578). PyTorch's own reader
    of weights looks names up in a list of its own, and does not.
    """
    if trust:
        yield
        return
    if not _state["hooked"]:
        sys.addaudithook(_hook)  # cannot be taken away again: one for the process
        _state["hooked"] = True
    before, given = _state["refusing"], os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    _state["refusing"] = True
    try:
        yield
    finally:
        _state["refusing"] = before
        if given is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = given
