"""Charts as data, and how they are laid out: axes, lines, marks and bars become a few shapes that SVG and PNG share.

Shapes lie in units of the drawing. Their `kind` is a CSS class, and says the colour (document.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Literal

from lapinfer.report.labels import ASCENT, DESCENT, FONT, Labels, Point, width_of
from lapinfer.shown import escape

WIDTH, HEIGHT = 420, 310
"""Of a chart: text stays readable on a telephone."""
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 34, 46
"""Between its edges and what the axes enclose."""
BAR = 24
"""Height of a bar and of the room around it."""
BUBBLE = 6
"""A mark with a larger radius may be written on."""
MOST_TICKS = 7


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
    label: str
    width: float
    height: float
    shapes: Sequence[Shape]


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in words: the first cell of a row says what the others are of. Cells are plain text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


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
        for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [d * 10.0**e for e in decades for d in digits]
            ticks = [v for v in ticks if self.low * 0.999 <= v <= self.high * 1.001]
            if len(ticks) <= MOST_TICKS:
                return ticks
        return ticks[:: ceil(len(ticks) / MOST_TICKS)]


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
    """Lines and marks between two axes. Marks are drawn in their order, above all lines. table: the same in figures."""

    label: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[Mark]
    keys: Sequence[Key]
    table: Table

    def drawing(self) -> Drawing:
        def place(x: float, y: float) -> Point:
            across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            return LEFT + across * self.x.place(x), HEIGHT - BOTTOM - up * self.y.place(y)

        shapes, labels = self._axes(), Labels((LEFT, TOP - ASCENT, WIDTH - 2, HEIGHT - BOTTOM))
        placed = [(mark, *place(mark.x, mark.y)) for mark in self.marks]
        for mark, x, y in placed:
            if mark.radius < BUBBLE:
                labels.keep_clear(x, y, mark.radius)
        lines = [(line, [place(*point) for point in line.points]) for line in self.lines]
        for line, points in lines:
            shapes.append(Polyline(points, f"line {line.kind}"))
            labels.keep_clear_of_line(points)
        for line, points in lines:
            if line.name and (found := labels.along(points, line.name)):
                shapes.append(Text(*found, line.name, "name"))
        for mark, x, y in placed:
            shapes.append(
                Box(x - mark.radius, y - mark.radius, 2 * mark.radius, 2 * mark.radius, mark.kind, mark.tooltip)
                if mark.square
                else Circle(x, y, mark.radius, mark.kind, mark.tooltip)
            )
        for mark, x, y in placed:
            away = mark.radius + 3
            if mark.label and (found := labels.beside(x, y, away, mark.label)):
                half = width_of(mark.label) / 2
                middle = found[0] + half, found[1] - (ASCENT - DESCENT) / 2
                if abs(middle[0] - x) + abs(middle[1] - y) > away + half + 14:  # far from what it names
                    shapes.append(Polyline([(x, y), middle], "leader"))
                shapes.append(Text(*found, mark.label, "label"))
        return Drawing(self.label, WIDTH, HEIGHT, shapes)

    def _axes(self) -> list[Shape]:
        """Rules, their values where these do not meet, and what they are."""
        shapes: list[Shape] = []
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self.y.ticks():
            y = bottom - (bottom - TOP) * self.y.place(value)
            shapes += [Polyline([(LEFT, y), (right, y)], "grid"), Text(LEFT - 5, y + 4, short(value), "end")]
        taken = 0.0
        for value in self.x.ticks():
            x, text = LEFT + (right - LEFT) * self.x.place(value), short(value)
            shapes.append(Polyline([(x, TOP), (x, bottom)], "grid"))
            if x - width_of(text) / 2 > taken:
                shapes.append(Text(x, bottom + FONT + 4, text, "middle"))
                taken = x + width_of(text) / 2
        return [*shapes, Text((LEFT + right) / 2, HEIGHT - DESCENT - 4, self.x.label, "middle axis"),
                Text(4, ASCENT + 2, self.y.label, "axis")]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """parts: (length, kind, tooltip), one after the other; total: what they are together, in words. beyond: (length,
    tooltip) of what lies behind them and is not counted in them."""

    name: str
    parts: Sequence[tuple[float, str, str]]
    total: str
    beyond: tuple[float, str] = (0.0, "")
    letter: str = ""

    @property
    def length(self) -> float:
        return sum(length for length, _, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Bars:
    """One below the other; lengths are relative to the longest. table: the same in figures."""

    label: str
    bars: Sequence[Bar]
    keys: Sequence[Key]
    table: Table

    def drawing(self) -> Drawing:
        """For pictures, where bars have short names, and what lies beyond them is left out."""
        names = [bar.letter or bar.name for bar in self.bars]
        left, right = 16 + max(map(width_of, names)), 12 + max(width_of(bar.total) for bar in self.bars)
        longest = max(bar.length for bar in self.bars) or 1
        shapes: list[Shape] = []
        for i, (name, bar) in enumerate(zip(names, self.bars, strict=True)):
            x, top = left, i * BAR + 4
            shapes.append(Text(left - 8, top + 13, name, "end label"))
            for length, kind, tooltip in bar.parts:
                width = (WIDTH - left - right) * length / longest
                shapes.append(Box(x, top, max(width, 0.3), BAR - 7, f"part {kind}", tooltip))
                x += width
            shapes.append(Text(x + 6, top + 13, bar.total))
        return Drawing(self.label, WIDTH, len(self.bars) * BAR + 6, shapes)


def svg(drawing: Drawing) -> str:
    """Text is left to those who see it: a table beside it says the same (document.py)."""
    inner = "".join(map(svg_shape, drawing.shapes))
    return (
        f'<svg class="chart" viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="group" '
        f'aria-label="{escape(drawing.label)}">{inner}</svg>'
    )


def svg_shape(shape: Shape) -> str:
    """Tooltips appear when the shape is pointed at."""
    match shape:
        case Polyline(points, kind):
            return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        case Text(x, y, text, kind):
            return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" aria-hidden="true">{escape(text)}</text>'
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
