"""Frozen dataclasses to JSON and back, and their JSON Schema, by pydantic (imported late: it costs start-up time)."""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_json(value: object, cls: Any = None) -> Any:
    """Return `value`, a dataclass of this project, as JSON-compatible data (tuples become lists)."""
    kind: Any = cls or type(value)
    return _adapter(kind).dump_python(value, mode="json")


def from_json(cls: type[T], data: object) -> T:
    """Return an instance of `cls` from JSON-compatible data; raise `pydantic.ValidationError` where it does not fit."""
    kind: Any = cls
    result: T = _adapter(kind).validate_python(data)
    return result


def json_schema(cls: Any) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a dataclass of this project."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_adapter(cls).json_schema(mode="serialization"),
    }


def dumps(data: object) -> str:
    """Return JSON text as edgekit writes it everywhere: sorted by insertion, two spaces, no NaN."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def loads(text: str | bytes) -> Any:
    """Return the data of JSON text from outside.

    Raises ValueError for what is none, is nested too deeply, or has a number that is not finite: `dumps` writes none.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
