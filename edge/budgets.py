"""Budgets: what an artifact must keep, and how each is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from edge.targets.base import Mode

Statistic = Literal["median", "p90", "p95", "p99"]
KEYS = ("max_drop", "max_latency", "max_size", "max_memory", "min_mapped", "min_delegated")

_DURATIONS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}
_MODES: tuple[Mode, ...] = ("measured", "emulated", "predicted")


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What an artifact must keep.

    `max_drop` is a fraction of the metric's points (0.01 = one point of accuracy). The `latency_statistic` of a latency
    in a mode that is at least as strong as `latency_mode` (measured before emulated before predicted) decides
    `max_latency_ms`; memory likewise. `min_mapped` and `min_delegated` are shares of operators.
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None
    latency_statistic: Statistic = "median"
    latency_mode: Mode = "measured"
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None
    memory_mode: Mode = "predicted"
    min_mapped: float | None = None
    min_delegated: float | None = None

    def as_dict(self) -> dict[str, float | str]:
        """Return what is set, with the mode and the statistic of the limits that have one."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.max_latency_ms is None:
            del found["latency_statistic"], found["latency_mode"]
        if self.max_memory_bytes is None:
            del found["memory_mode"]
        return {k: v if isinstance(v, str) else float(v) for k, v in found.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Budgets:
        """Return budgets as `as_dict` gave them."""
        whole = {k: int(data[k]) for k in ("max_size_bytes", "max_memory_bytes") if k in data}
        return cls(**{**data, **whole})

    def replaced_by(self, other: Budgets) -> Budgets:
        """Return these budgets with those of `other` in place of the same ones."""
        return Budgets.from_dict({**self.as_dict(), **other.as_dict()})


def parse(values: Mapping[str, Any], problems: list[str]) -> Budgets:
    """Return the budgets of a table with some of `KEYS`; what cannot be read is added to `problems`."""
    budgets = Budgets()
    for key in KEYS:
        if values.get(key) is None:
            continue
        try:
            budgets = replace(budgets, **_PARSERS[key](values[key]))
        except (ValueError, TypeError) as error:
            problems.append(f"{key}: {error}")
    return budgets


def parse_share(text: str | float) -> float:
    """Return a fraction: `1%` and `0.01` are both 0.01; raise ValueError."""
    raw = str(text).strip()
    try:
        value = float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r}; accepted: a share such as 1% or 0.01")
    return value


def parse_duration_ms(text: str | float) -> float:
    """Return milliseconds: `5ms`, `0.2s`, `800us`, or a plain number of milliseconds; raise ValueError."""
    return _with_unit(text, _DURATIONS, "a duration such as 5ms")


def parse_size(text: str | float) -> int:
    """Return bytes: `500kB`, `2MiB`, or a plain number of bytes; raise ValueError."""
    return int(_with_unit(text, _SIZES, "a size such as 500kB"))


def parse_latency(text: str | float) -> dict[str, Any]:
    """Return the fields of a latency budget: `5ms`, `5ms p90`, `8ms p99 emulated`; raise ValueError."""
    number, words = _words(text)
    found: dict[str, Any] = {"max_latency_ms": parse_duration_ms(number)}
    for word in words:
        if word in get_args(Statistic):
            found["latency_statistic"] = word
        elif word in _MODES:
            found["latency_mode"] = word
        else:
            accepted = f"{', '.join(get_args(Statistic))}; {', '.join(_MODES)}"
            raise ValueError(f"{text!r} has {word!r}; accepted after the duration: {accepted}")
    return found


def parse_memory(text: str | float) -> dict[str, Any]:
    """Return the fields of a memory budget: `64MB`, `64MB measured`; raise ValueError."""
    number, words = _words(text)
    found: dict[str, Any] = {"max_memory_bytes": parse_size(number)}
    for word in words:
        if word not in _MODES:
            raise ValueError(f"{text!r} has {word!r}; accepted after the size: {', '.join(_MODES)}")
        found["memory_mode"] = word
    return found


def _words(text: str | float) -> tuple[str, list[str]]:
    words = str(text).replace("@", " ").split()
    return (words[0], words[1:]) if words else ("", [])


def _with_unit(text: str | float, units: Mapping[str, float], accepted: str) -> float:
    raw = str(text).strip().lower()
    unit = next((u for u in sorted(units, key=len, reverse=True) if raw.endswith(u)), None)
    try:
        value = float(raw.removesuffix(unit)) * units[unit] if unit else float(raw)
    except ValueError:
        raise ValueError(f"{text!r}; accepted: {accepted}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r}; accepted: {accepted}")
    return value


_PARSERS: Mapping[str, Any] = {
    "max_drop": lambda text: {"max_drop": parse_share(text)},
    "max_latency": parse_latency,
    "max_size": lambda text: {"max_size_bytes": parse_size(text)},
    "max_memory": parse_memory,
    "min_mapped": lambda text: {"min_mapped": parse_share(text)},
    "min_delegated": lambda text: {"min_delegated": parse_share(text)},
}


def strong_enough(mode: str, wanted: Mode) -> bool:
    """Tell whether a number of `mode` may decide a limit that asks for `wanted`: only as strong a one or a stronger."""
    return mode in _MODES[: _MODES.index(wanted) + 1]
