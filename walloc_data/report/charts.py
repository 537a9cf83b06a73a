"""Charts as inline SVG and HTML, without scripts, fonts and network; colours come from the page's style sheet.

Drawings are 360 units wide, about the width of a phone, so that their text is readable there; wide screens show several
side by side. Every chart has a title, axes with units, and a description in words.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from walloc_data.templating import render_html

__all__ = ["Charts", "bar_table", "number", "picture_bytes"]

_W, _H = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 40


def number(value: float) -> str:
    """Format a number with thousands separators, and three significant digits below a hundred."""
    if not math.isfinite(value):
        return "unknown"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def picture_bytes(num_bytes: float) -> str:
    """Format bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round values that divide an interval into about `about` parts."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Charts:
    """Factory of charts for one page, with unique identifiers."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def _figure(
        self,
        shapes: Sequence["_Shape"],
        *,
        title: str,
        description: str,
        facts: str = "",
        width: int = _W,
        height: int = _H,
    ) -> Markup:
        return render_html(
            "chart.html.j2",
            n=next(self._numbers),
            shapes=shapes,
            title=title,
            description=description,
            facts=facts,
            width=width,
            height=height,
        )

    def histogram(
        self,
        values: npt.NDArray[np.float64],
        *,
        title: str,
        unit: str,
        what: str = "pictures",
        bins: int = 32,
        whole: bool = False,
    ) -> Markup:
        """Draw a histogram with the mean marked.

        Args:
            values: (n,) finite, n > 0.
            unit: label of the horizontal axis.
            what: label of the vertical axis: the things that are counted.
            whole: the values are integers, so bins are at least 1 wide.
        """
        low, high = float(values.min()), float(values.max())
        if high == low:
            low, high = low - 0.5, high + 0.5
        if whole:
            bins = int(max(1, min(bins, high - low + 1)))
        counts, edges = np.histogram(values, bins=bins, range=(low, high))
        top = float(counts.max())
        x = _Scale(low, high, _LEFT, _W - _RIGHT)
        y = _Scale(0, top, _H - _BOTTOM, _TOP)
        whole_ticks = [tick for tick in _ticks(0, top, 4) if tick.is_integer()]
        shapes = _axes(x, y, x_label=unit, y_label=what, y_ticks=whole_ticks)
        for i, value in enumerate(counts.tolist()):
            if value:
                left, right = x(edges[i]), x(edges[i + 1])
                shapes.append(_bar(left, y(value), max(right - left - 1, 0.5), y(0) - y(value)))
        mean, median = float(values.mean()), float(np.median(values))
        shapes += _mark(x(mean), f"mean {number(mean)}")
        description = (
            f"{len(values):,} {what}: from {number(float(values.min()))} to {number(float(values.max()))} {unit}, "
            f"mean {number(mean)}, median {number(median)}"
        )
        return self._figure(shapes, title=title, description=description)

    def columns(
        self,
        values: Sequence[float],
        *,
        title: str,
        unit: str,
        what: str,
        line: float | None = None,
        line_text: str = "",
    ) -> Markup:
        """Draw one column per number (channel, rank), and optionally a horizontal line for comparison."""
        top = max([*values, line or 0.0, 1e-9])
        x = _Scale(-0.5, len(values) - 0.5, _LEFT, _W - _RIGHT)
        y = _Scale(0, top * (1.2 if line is not None else 1.0), _H - _BOTTOM, _TOP)
        every = max(1, math.ceil(len(values) / 12))
        ticks = [float(i) for i in range(0, len(values), every)]
        shapes = _axes(x, y, x_label=what, y_label=unit, y_ticks=_ticks(0, top, 4), x_ticks=ticks)
        width = max((x(1) - x(0)) * 0.76, 0.4)
        for i, value in enumerate(values):
            shapes.append(_bar(x(i) - width / 2, y(value), width, y(0) - y(value)))
        description = f"{what} 0 to {len(values) - 1}: " + ", ".join(number(value) for value in values[:40])
        if line is not None:
            right = _W - _RIGHT
            shapes.append(_line((_LEFT, y(line)), (right, y(line)), "level"))
            shapes.append(_text((right, _TOP + 2), line_text, anchor="end", name="note"))
            description += f" {unit}; {line_text}"
        return self._figure(shapes, title=title, description=description)

    def channel(self, counts: Sequence[int], *, index: int, low: int, high: int, facts: str) -> Markup:
        """Draw the histogram of one latent channel: how often each integer occurs, on a logarithmic scale."""
        width, height, left, bottom = 180, 92, 8, 18
        offset = len(counts) // 2
        top = math.log10(max(max(counts), 1) + 1)
        x, y = _Scale(low - 0.5, high + 0.5, left, width - 8), _Scale(0, max(top, 1e-9), height - bottom, 6)
        points = [f"{x(low - 0.5):.1f},{y(0):.1f}"]
        for value in range(low, high + 1):
            level = y(math.log10(counts[value + offset] + 1))
            points += [f"{x(value - 0.5):.1f},{level:.1f}", f"{x(value + 0.5):.1f},{level:.1f}"]
        points.append(f"{x(high + 0.5):.1f},{y(0):.1f}")
        shapes = [
            _Shape("polygon", {"class": "bar", "points": " ".join(points)}),
            _line((left, y(0)), (width - 8, y(0)), "axis"),
        ]
        for tick in (low, 0, high):
            anchor = "start" if tick == low else "end" if tick == high else "middle"
            shapes.append(_text((x(tick), height - 5), str(tick).replace("-", "−"), anchor=anchor))
        return self._figure(
            shapes,
            title=f"Channel {index}",
            facts=facts,
            description=f"{facts}; {_describe(counts)}",
            width=width,
            height=height,
        )


@dataclass(frozen=True)
class _Shape:
    """SVG element; the template escapes its attributes and its text."""

    tag: str
    attributes: Mapping[str, str]
    text: str = ""


class _Scale:
    """Linear map from values to units of the drawing."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (value - self.low) / (span or 1.0) * (self.end - self.start)


def _axes(
    x: _Scale,
    y: _Scale,
    *,
    x_label: str,
    y_label: str,
    y_ticks: Sequence[float],
    x_ticks: Sequence[float] | None = None,
) -> list[_Shape]:
    left, right, bottom = _LEFT, _W - _RIGHT, _H - _BOTTOM
    shapes = []
    for tick in y_ticks:
        shapes.append(_line((left, y(tick)), (right, y(tick)), "grid"))
        shapes.append(_text((left - 5, y(tick) + 4), _short(tick), anchor="end"))
    for tick in x_ticks if x_ticks is not None else _ticks(x.low, x.high, 5):
        shapes.append(_text((x(tick), bottom + 15), _short(tick), anchor="middle"))
    shapes.append(_line((left, bottom), (right, bottom), "axis"))
    shapes.append(_text(((left + right) / 2, _H - 7), x_label, anchor="middle", name="label"))
    turned = {
        "class": "label",
        "transform": f"translate(11 {(_TOP + bottom) / 2}) rotate(-90)",
        "text-anchor": "middle",
    }
    return [*shapes, _Shape("text", turned, y_label)]


def _short(value: float) -> str:
    """Format the label of a tick, with thousands as k, so that it fits next to the axis."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            divisor = 1e3 if unit == "k" else factor
            return f"{value / divisor:g}{unit}"
    return f"{value:g}"


def _bar(x: float, y: float, width: float, height: float) -> _Shape:
    size = {"width": f"{width:.2f}", "height": f"{max(height, 0):.2f}"}
    return _Shape("rect", {"class": "bar", "x": f"{x:.2f}", "y": f"{y:.2f}", **size})


def _line(start: tuple[float, float], end: tuple[float, float], name: str) -> _Shape:
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": f"{x1:.1f}", "x2": f"{x2:.1f}", "y1": f"{y1:.1f}", "y2": f"{y2:.1f}"}
    return _Shape("line", {"class": name, **ends})


def _text(at: tuple[float, float], text: str, *, anchor: str, name: str | None = None) -> _Shape:
    named = {} if name is None else {"class": name}
    return _Shape("text", {**named, "x": f"{at[0]:.1f}", "y": f"{at[1]:.1f}", "text-anchor": anchor}, text)


def _mark(x: float, text: str) -> list[_Shape]:
    """Draw a dashed vertical line, with its text on the side that has more space."""
    right = x > (_LEFT + _W - _RIGHT) / 2
    line = _line((x, _TOP - 4), (x, _H - _BOTTOM), "level")
    at = (x - 5 if right else x + 5, _TOP + 5)
    return [line, _text(at, text, anchor="end" if right else "start", name="note")]


def _describe(counts: Sequence[int]) -> str:
    seen = [i - len(counts) // 2 for i, value in enumerate(counts) if value]
    if not seen:
        return "no value occurs"
    common = max(range(len(counts)), key=lambda i: counts[i]) - len(counts) // 2
    return f"values from {seen[0]} to {seen[-1]}, {common} the most frequent; how often each occurs, logarithmic"


def bar_table(rows: Iterable[tuple[str, float, str]], *, caption: str, head: tuple[str, str]) -> Markup:
    """Return a table whose second column is drawn as bars: (name, value, the value as text)."""
    listed = list(rows)
    top = max((value for _, value, _ in listed), default=0) or 1
    return render_html("bar_table.html.j2", rows=listed, top=top, caption=caption, head=head)
