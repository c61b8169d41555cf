"""Plots as SVG that stands in a page by itself: bars, lines, points and a strip, each with a title for screen readers.

Shapes carry no colours of their own: classes do, so that the page's style decides for screen, dark screen and paper.
Where colour tells something, a pattern or a label tells it too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 16.0, 12.0, 40.0
_NAME_WIDTH = 230.0
_ROW = 24.0
_TICKS = 5
_LONGEST = 34


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar with its text, and an interval where it has one; `kind` is a class of the style."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    kind: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a scatter; `kind` is a class of the style, `name` stands beside it."""

    x: float
    y: float
    name: str
    kind: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a strip: `kind` is a class of the style, `title` is what a reader hears and sees."""

    kind: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The scale of one axis: values `low` to `high` lie at `start` to `end`, in units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a value; what lies outside is drawn at the edge."""
        span = self.high - self.low or 1.0
        share = min(max((value - self.low) / span, 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values within the axis: steps of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        if not span > 0 or not math.isfinite(span):
            return [self.low]
        raw = span / _TICKS
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, first + 3 * _TICKS) if i * step <= self.high + 1e-9 * span]


def bars(title: str, rows: Sequence[Bar], *, low: float = 0.0, unit: str = "") -> str:
    """Return horizontal bars from `low`, with whiskers for intervals."""
    most = max([r.value for r in rows] + [r.high for r in rows if r.high is not None] + [low + 1e-9])
    axis = Axis(low=low, high=most, start=_NAME_WIDTH, end=WIDTH - 110)
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = _ticks_below(axis, height - _BOTTOM, unit)
    for i, row in enumerate(rows):
        y = _TOP + _ROW * i
        parts.append(_text(_NAME_WIDTH - 8, y + 15, shortened(row.name), "end"))
        length = axis.at(row.value) - axis.start
        place = f'x="{axis.start:.1f}" y="{y + 4:.1f}" width="{length:.1f}" height="15"'
        parts.append(f'<rect class="bar {row.kind}" {place}>')
        parts.append(f"<title>{escape(row.name)}: {escape(row.text)}</title></rect>")
        end = axis.at(row.value)
        if row.low is not None and row.high is not None:
            a, end = axis.at(row.low), max(end, axis.at(row.high))
            middle = y + 11.5
            ends = f"M{a:.1f} {y + 7}v9M{end:.1f} {y + 7}v9"
            parts.append(f'<path class="whisker" d="M{a:.1f} {middle}H{end:.1f}{ends}"/>')
        parts.append(_text(end + 6, y + 15, row.text, "start"))
    return _svg(title, height, parts)


def line(
    title: str, points: Sequence[tuple[float, float]], labels: tuple[str, str], *, marks: Sequence[Point] = (),
    steps: bool = False,
) -> str:  # fmt: skip
    """Return a line through points (x, y) with named axes; `marks` are vertical lines.

    With `steps` each y holds until the next x.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across = Axis(low=min(xs), high=max(xs), start=_LEFT, end=WIDTH - _RIGHT)
    up = Axis(low=min(0.0, *ys), high=max(ys) or 1.0, start=220.0, end=_TOP + 14)
    parts = [*_ticks_below(across, 220.0, labels[0]), *_ticks_left(up, labels[1])]
    path = f"M{across.at(xs[0]):.1f} {up.at(ys[0]):.1f}"
    for x, y in points[1:]:
        path += f"H{across.at(x):.1f}V{up.at(y):.1f}" if steps else f"L{across.at(x):.1f} {up.at(y):.1f}"
    parts.append(f'<path class="line" d="{path}"/>')
    for n, mark in enumerate(marks):
        x = across.at(mark.x)
        parts.append(f'<path class="mark" d="M{x:.1f} {_TOP + 14}V220"/>')
        anchor = "end" if x > WIDTH - 90 else "start"
        parts.append(_text(x + (-4 if anchor == "end" else 4), _TOP + 26 + 14 * n, mark.name, anchor))
    return _svg(title, 220.0 + _BOTTOM, parts)


def scatter(title: str, points: Sequence[Point], labels: tuple[str, str]) -> str:
    """Return points with names and named axes; the axes start a little outside of the data."""
    across = _around([p.x for p in points], _LEFT, WIDTH - 120)
    up = _around([p.y for p in points], 240.0, _TOP + 14)
    parts = [*_ticks_below(across, 240.0, labels[0]), *_ticks_left(up, labels[1])]
    for p in points:
        x, y = across.at(p.x), up.at(p.y)
        shape = (
            f'<path class="point {p.kind}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z">'
            if p.kind == "chosen"
            else f'<circle class="point {p.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        )
        end = "</path>" if p.kind == "chosen" else "</circle>"
        parts.append(f"{shape}<title>{escape(p.name)}</title>{end}")
        parts.append(_text(x + 8, y + 4, shortened(p.name), "start"))
    return _svg(title, 240.0 + _BOTTOM, parts)


def strip(title: str, cells: Sequence[Cell], *, per_row: int = 48) -> str:
    """Return cells in reading order, `per_row` in a row, each with its title."""
    size = (WIDTH - 2) / per_row
    rows = math.ceil(len(cells) / per_row)
    parts = []
    for i, cell in enumerate(cells):
        x, y = 1 + size * (i % per_row), 2 + (size + 4) * (i // per_row)
        parts.append(
            f'<rect class="cell {cell.kind}" x="{x:.1f}" y="{y:.1f}" width="{size - 1.5:.1f}" height="{size:.1f}">'
            f"<title>{escape(cell.title)}</title></rect>"
        )
    return _svg(title, 4 + (size + 4) * rows, parts)


def shortened(text: str) -> str:
    """Return a text of at most 34 characters: its end tells more about a tensor than its middle."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 3]}…{text[-(_LONGEST - _LONGEST // 3 - 1) :]}"


def _around(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or max(abs(high), 1e-6) * 0.1
    return Axis(low=low - room, high=high + room, start=start, end=end)


def _ticks_below(axis: Axis, y: float, label: str) -> list[str]:
    parts = [f'<path class="axis" d="M{axis.start:.1f} {y:.1f}H{axis.end:.1f}"/>']
    for value in axis.ticks():
        x = axis.at(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>' + _text(x, y + 16, f"{value:.6g}", "middle"))
    parts.append(_text((axis.start + axis.end) / 2, y + 33, label, "middle"))
    return parts


def _ticks_left(axis: Axis, label: str) -> list[str]:
    parts = [f'<path class="axis" d="M{_LEFT} {axis.start:.1f}V{axis.end:.1f}"/>']
    for value in axis.ticks():
        y = axis.at(value)
        parts.append(f'<path class="axis" d="M{_LEFT} {y:.1f}h-4"/>' + _text(_LEFT - 7, y + 4, f"{value:.6g}", "end"))
    parts.append(_text(4, _TOP, label, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    drawn = "".join(parts)
    # The same plot has the same name in each build: reports are reproducible.
    name = f"plot-{hashlib.sha256(f'{title}{drawn}'.encode()).hexdigest()[:10]}"
    head = f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-labelledby="{name}">'
    return f'{head}<title id="{name}">{escape(title)}</title>{drawn}</svg>'
