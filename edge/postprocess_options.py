"""What a user says of the outputs, from edgekit.toml or a command line: one checked mapping of plain values.

It is kept in the signature, so that artifacts carry it; outputs stay names or positions until they are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from edge import anchors
from edge.errors import ConfigError
from edge.postprocess import Activation, BoxFormat, Kind, Postprocess, SizeDecoding

CHOICES: Mapping[str, tuple[str, ...]] = {
    "kind": get_args(Kind),
    "activation": get_args(Activation),
    "box_format": get_args(BoxFormat),
    "size_decoding": get_args(SizeDecoding),
}
OUTPUTS = ("output", "boxes", "scores", "classes", "count")
# These follow from the model.
_FOUND = ("input_height", "input_width", "box_values")
_DEFAULTS = {f.name: f.default for f in fields(Postprocess) if f.name not in _FOUND}
EXAMPLE = "Example: kind=detection,boxes=out0,scores=out1,activation=sigmoid,iou_threshold=0.5"


def from_text(text: str) -> dict[str, Any]:
    """Return the values of `key=value` pairs separated by commas; raise ConfigError with every problem."""
    pairs: list[tuple[str, Any]] = []
    problems = []
    for pair in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key in dict(pairs):
            problems.append(f"{pair!r} is not one of {', '.join(f'{k}=' for k in _DEFAULTS)}, each once")
        else:
            pairs.append((key, _typed(key, value)))
    return _checked(dict(pairs), problems, "--postprocess")


def _typed(key: str, text: str) -> Any:
    """Return a value of a command line as TOML would have it; what is none stays a text and is refused later."""
    default = _DEFAULTS.get(key)
    if key in OUTPUTS:
        return int(text) if text.isascii() and text.isdigit() else text
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text, text)
    if key == "box_scales":
        return [_number(part) for part in text.split(":")]
    return _number(text) if isinstance(default, int | float) else text


def _number(text: str) -> int | float | str:
    try:
        return float(text) if set(text) - set("0123456789") else int(text)
    except ValueError:
        return text


def from_table(table: Any) -> dict[str, Any]:
    """Return the values of a table of edgekit.toml; raise ConfigError with every problem."""
    if not isinstance(table, dict):
        raise ConfigError(f"postprocess is {table!r}; accepted: a table of its keys.", hint=EXAMPLE)
    return _checked(table, [], "postprocess")


def _checked(values: Mapping[str, Any], problems: list[str], what: str) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if key not in _DEFAULTS:
            problems.append(f"'{key}={value}' is not one of {', '.join(f'{k}=' for k in _DEFAULTS)}, each once")
            continue
        try:
            found[key] = _value(key, value)
        except (ValueError, ConfigError) as error:
            problems.append(f"{key} is {value!r}; accepted: {error}")
        except OverflowError:  # a whole number that no float holds
            problems.append(f"{key} is beyond all numbers that are computed with")
    if problems:
        raise ConfigError(f"{what}: {'; '.join(problems)}", hint=EXAMPLE)
    return found


def _value(key: str, value: Any) -> Any:
    """Return one value as it is kept; raise ValueError with what is accepted."""
    default = _DEFAULTS[key]
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise ValueError(", ".join(CHOICES[key]))
        return value
    if key in OUTPUTS:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("a name of an output or its position")
        return value
    if key == "anchors":
        return _anchors(value)
    if key == "box_scales":
        if not isinstance(value, list | tuple) or len(value) != 4 or not all(_positive(v) for v in value):
            raise ValueError("four numbers above 0: y, x, height, width, such as 10:10:5:5")
        return [float(v) for v in value]
    return _plain(value, default)


def _plain(value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError("true, false")
        return value
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError("a whole number" if whole else "a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError("a number of at least 0")
    return value if whole else float(value)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _anchors(value: Any) -> Any:
    """Return a generator's table as it is, or the numbers of a file."""
    if isinstance(value, str):
        path = Path(value)
        if path.suffix != ".toml":
            return list(anchors.read_file(path))
        import tomllib

        try:
            value = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"a file of anchors; {path} cannot be read: {error}") from error
    if isinstance(value, list) and value and len(value) % 4 == 0 and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    if not isinstance(value, dict):
        raise ValueError("a file (.npy, .csv or .toml), or a table with strides")
    anchors.read_table(value)
    return value
