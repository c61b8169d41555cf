"""Call the user's `file.py:factory` and turn whatever it raises into a message that names their line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import SourceError, UsageError


def call(path: Path, name: str) -> Any:
    """Return what the function `name` of the Python file returns, called without arguments.

    Raises UsageError where there is no such function, SourceError with file, line and text of what their code raises.
    """
    factory = find(path, name)
    with user_code(path, f"{name}()"):
        return factory()


def find(path: Path, name: str) -> Any:
    """Return the function `name` of the Python file. Raises as `call` does."""
    with user_code(path, f"importing {path.name}"):
        module = _imported(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(
            f"{path} has no function {name!r}; it defines {', '.join(own) or 'none'}.",
            hint=f"Write {path}:NAME with one that returns a module, or a module and its example inputs.",
        )
    return factory


def _imported(path: Path) -> ModuleType:
    # A name of its own, so that the user's torch.py or keras.py hides no framework; the same at every run, because it
    # ends in the names of the program's tensors.
    name = f"user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a neighbour file must not hide an installed package
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = wrote
    return module


@contextlib.contextmanager
def user_code(path: Path | str, doing: str) -> Iterator[None]:
    """Turn what the user's code raises into a SourceError that names their line."""
    path = path if isinstance(path, Path) else Path(path.rpartition(":")[0] or path)
    try:
        yield
    except (Exception, SystemExit) as error:
        raise SourceError(
            f"{place(error, path) or path.name}: {doing} raised {type(error).__name__}: {_text(error)}",
            hint="Correct the file; --debug shows the whole traceback.",
        ) from error


def _text(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:400]


def is_users(filename: str) -> bool:
    """Tell the user's own files from those of installed packages, of Python and of edgekit."""
    path = Path(filename)
    inside = ("site-packages", "dist-packages")
    ours = Path(__file__).resolve().parents[1]
    library = Path(traceback.__file__).resolve().parent
    if path.suffix != ".py" or any(part in path.parts for part in inside):
        return False
    return not any(path.resolve().is_relative_to(folder) for folder in (ours, library))


def place(error: BaseException, path: Path | None = None) -> str:
    """Return `file.py, line 18 (if x.sum() > 0:)` of the user's innermost frame in the error or its causes, else ''."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    found = ""
    seen: BaseException | None = error
    while seen is not None and not found:
        for frame in traceback.extract_tb(seen.__traceback__):
            if is_users(frame.filename) or (path and Path(frame.filename) == path):
                found = f"{Path(frame.filename).name}, line {frame.lineno} ({(frame.line or '').strip()})"
        seen = seen.__cause__ or seen.__context__
    return found
