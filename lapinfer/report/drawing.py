"""Charts as data, and how they are laid out: axes, lines, marks and bars become a few shapes that SVG and PNG share.

Shapes lie in units of the drawing. Their `kind` is a CSS class, and says the colour (document.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import Literal

from lapinfer.shown import escape

WIDTH, HEIGHT = 420, 300
"""Of a chart: text stays readable on a telephone."""
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 26, 42
"""Between its edges and what the axes enclose."""
LETTER = 6.4
"""Width of a letter of a label, about."""
BAR = 24
"""Height of a bar and of the room around it."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Polyline:
    points: Sequence[Point]
    kind: str


@dataclass(frozen=True, slots=True)
class Circle:
    x: float
    y: float
    radius: float
    kind: str
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    kind: str
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Begins at (x, y); of the kinds `middle` and `end`, it is centred there, or ends there."""

    x: float
    y: float
    text: str
    kind: str = ""


Shape = Polyline | Circle | Box | Text


@dataclass(frozen=True, slots=True)
class Drawing:
    """fixed: as many pixels as units; else as wide as there is room."""

    label: str
    width: float
    height: float
    shapes: Sequence[Shape]
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend: a sample of a kind, and what it stands for."""

    kind: str
    label: str
    sample: Literal["circle", "square", "line", "box"] = "circle"

    def shape(self) -> Shape:
        """Within 22 × 12 units."""
        match self.sample:
            case "circle":
                return Circle(11, 6, 5, self.kind)
            case "square":
                return Box(6, 1, 10, 10, self.kind)
            case "line":
                return Polyline([(0, 6), (22, 6)], self.kind)
            case "box":
                return Box(0, 0, 22, 12, self.kind)


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    low: float
    high: float
    log: bool = True

    @classmethod
    def around(cls, label: str, values: Iterable[float], room: float) -> Axis:
        """A logarithmic one; room: a factor below and above the values."""
        values = list(values)
        return cls(label, min(values) / room, max(values) * room)

    def place(self, value: float) -> float:
        """0 at the axis' begin, 1 at its end."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return log10(max(value, self.low * 1e-3) / self.low) / log10(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round values, a handful."""
        if not self.log:
            step = 10 ** floor(log10(max(self.high - self.low, 1e-9)))
            step = next(s for s in (step / 5, step / 2, step, 2 * step) if (self.high - self.low) / s <= 6)
            return [step * i for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]
        decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        ticks: list[float] = []
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [d * 10.0**e for e in decades for d in digits]
            ticks = [v for v in ticks if self.low * 0.999 <= v <= self.high * 1.001]
            if len(ticks) <= 7:
                return ticks
        return ticks[:: ceil(len(ticks) / 7)]


@dataclass(frozen=True, slots=True)
class Line:
    """points: values on both axes. name: written below its begin."""

    points: Sequence[Point]
    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that was measured; label: written beside it, where there is room."""

    x: float
    y: float
    kind: str
    tooltip: str = ""
    label: str = ""
    radius: float = 4.5
    square: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines and marks between two axes. Marks are drawn in their order, above all lines."""

    label: str
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    keys: Sequence[Key] = ()

    def drawing(self) -> Drawing:
        def place(x: float, y: float) -> Point:
            across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            return LEFT + across * self.x.place(x), HEIGHT - BOTTOM - up * self.y.place(y)

        shapes, labels = self._axes(), _Labels()
        for line in self.lines:
            points = [place(*point) for point in line.points]
            shapes.append(Polyline(points, f"line {line.kind}"))
            labels.keep_clear_of_line(points)
            if line.name:
                left, base = points[0][0] + 6, points[0][1] + 14
                shapes.append(Text(left, base, line.name, "name"))
                labels.keep_clear_of_text(left, base, line.name)
        placed = [(mark, *place(mark.x, mark.y)) for mark in self.marks]
        for mark, x, y in placed:
            if mark.radius < BAR / 4:  # a bubble may be written on
                labels.keep_clear(x, y, mark.radius)
            shapes.append(
                Box(x - mark.radius, y - mark.radius, 2 * mark.radius, 2 * mark.radius, mark.kind, mark.tooltip)
                if mark.square
                else Circle(x, y, mark.radius, mark.kind, mark.tooltip)
            )
        for mark, x, y in placed:
            if mark.label:
                shapes += labels.place(x, y, mark.radius + 3, mark.label)
        return Drawing(self.label, WIDTH, HEIGHT, shapes)

    def _axes(self) -> list[Shape]:
        """Rules, their values, and what they are."""
        shapes: list[Shape] = []
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self.y.ticks():
            y = bottom - (bottom - TOP) * self.y.place(value)
            shapes += [Polyline([(LEFT, y), (right, y)], "grid"), Text(LEFT - 5, y + 4, short(value), "end")]
        for value in self.x.ticks():
            x = LEFT + (right - LEFT) * self.x.place(value)
            shapes += [Polyline([(x, TOP), (x, bottom)], "grid"), Text(x, bottom + 15, short(value), "middle")]
        return [*shapes, Text((LEFT + right) / 2, bottom + 33, self.x.label, "middle axis"),
                Text(4, TOP - 4, self.y.label, "axis")]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """parts: (length, kind, tooltip), one after the other; total: written at their end."""

    name: str
    parts: Sequence[tuple[float, str, str]]
    total: str


@dataclass(frozen=True, slots=True)
class Bars:
    """One below the other; lengths are relative to the longest."""

    label: str
    bars: Sequence[Bar]
    keys: Sequence[Key] = ()

    def drawing(self) -> Drawing:
        left, right = 16 + LETTER * max(len(bar.name) for bar in self.bars), 60
        longest = max(sum(length for length, _, _ in bar.parts) for bar in self.bars) or 1
        shapes: list[Shape] = []
        for i, bar in enumerate(self.bars):
            x, top = left, i * BAR + 4
            shapes.append(Text(left - 8, top + 13, bar.name, "end label"))
            for length, kind, tooltip in bar.parts:
                width = (WIDTH - left - right) * length / longest
                shapes.append(Box(x, top, max(width, 0.3), BAR - 7, f"part {kind}", tooltip))
                x += width
            shapes.append(Text(x + 6, top + 13, bar.total))
        return Drawing(self.label, WIDTH, len(self.bars) * BAR + 6, shapes)


class _Labels:
    """Places labels beside points: where they meet neither each other, nor points, nor the chart's edge."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def keep_clear(self, x: float, y: float, radius: float) -> None:
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def keep_clear_of_line(self, points: Sequence[Point]) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            for i in range(9):
                self.keep_clear(x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8, 2)

    def keep_clear_of_text(self, left: float, base: float, text: str) -> None:
        self._taken.append((left, base - 9, left + LETTER * len(text), base + 2))

    def place(self, x: float, y: float, away: float, label: str) -> list[Shape]:
        """A label of the point (x, y), at least `away` from it."""
        width, best, least = LETTER * len(label), (x + away, y + 4.0), float("inf")
        for further in (0.0, 8.0, 16.0, 26.0):
            a = away + further
            for left, base in (
                (x + a, y + 4), (x - a - width, y + 4), (x - width / 2, y - a), (x - width / 2, y + a + 9),
                (x + 0.7 * a, y - 0.7 * a), (x + 0.7 * a, y + 0.7 * a + 8),
                (x - 0.7 * a - width, y - 0.7 * a), (x - 0.7 * a - width, y + 0.7 * a + 8),
            ):  # fmt: skip
                if (cost := self._cost(left, base, width) + further / 10) < least:
                    best, least = (left, base), cost
        left, base = best
        self.keep_clear_of_text(left, base, label)
        text = Text(left, base, label, "label")
        if abs(left + width / 2 - x) + abs(base - 4 - y) > away + width / 2 + 14:  # far from what it names
            return [Polyline([(x, y), (left + width / 2, base - 4)], "leader"), text]
        return [text]

    def _cost(self, left: float, base: float, width: float) -> float:
        box = (left, base - 9, left + width, base + 2)
        if box[0] < LEFT or box[2] > WIDTH - 2 or box[1] < TOP - 1 or box[3] > HEIGHT - BOTTOM + 2:
            return 1000.0
        overlaps = (
            max(min(box[2], t[2]) - max(box[0], t[0]), 0) * max(min(box[3], t[3]) - max(box[1], t[1]), 0)
            for t in self._taken
        )
        return sum(overlaps)


def svg(drawing: Drawing) -> str:
    inner = "".join(map(svg_shape, drawing.shapes))
    size = f'width="{drawing.width:.0f}" height="{drawing.height:.0f}"'
    size = f'class="map" {size}' if drawing.fixed else f'class="chart" viewBox="0 0 {drawing.width} {drawing.height}"'
    return f'<svg {size} role="img" aria-label="{escape(drawing.label)}">{inner}</svg>'


def svg_shape(shape: Shape) -> str:
    """Tooltips appear when the shape is pointed at."""
    match shape:
        case Polyline(points, kind):
            return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        case Text(x, y, text, kind):
            return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
        case Circle(x, y, radius, kind):
            name, place = "circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
        case Box(x, y, width, height, kind):
            name, place = "rect", f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    title = f"<title>{escape(shape.tooltip)}</title>" if shape.tooltip else ""
    return f'<{name} class="{kind}" {place}>{title}</{name}>'


def short(value: float) -> str:
    """1234 → 1.2 k: at most three digits that say something."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"


def megabytes(nbytes: float) -> str:
    """Of 10^6 bytes, with as many digits as are of use."""
    value = nbytes / 1e6
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
