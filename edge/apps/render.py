"""Templates: files with `@@KEY@@` places and `//#if KEY` … `//#else` … `//#end` lines, filled in one pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PLACE = re.compile(r"@@([A-Z_0-9]+)@@")
_LINE = re.compile(r"^\s*(?://|#)#(if|else|end)\b\s*(!?)([A-Z_0-9]*)\s*$")
FOLDER = Path(__file__).with_name("templates")


def template(path: str) -> str:
    """Return the text of a template of this package."""
    return (FOLDER / path).read_text(encoding="utf-8")


def render(text: str, values: Mapping[str, str | bool]) -> str:
    """Return the text with lines chosen and places filled; a value is never read as a template; KeyError if unknown."""
    kept: list[str] = []
    conditions: list[bool] = []
    for line in text.splitlines(keepends=True):
        found = _LINE.match(line)
        if not found:
            if all(conditions):
                kept.append(line)
        elif found[1] == "if":
            conditions.append(bool(values[found[3]]) != (found[2] == "!"))
        elif found[1] == "else":
            conditions[-1] = not conditions[-1]
        else:
            conditions.pop()
    return _PLACE.sub(lambda place: str(values[place[1]]), "".join(kept))
