"""Small functions that draw a report's charts as SVG: scales, axes, labels that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

WIDTH, HEIGHT = 420, 300
"""Of a chart, in its own units: text stays readable on a telephone."""
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 14, 42

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """1234 → 1.2 k: at most three digits that say something."""
    for unit, letter in UNITS:
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"


def mb(nbytes: float) -> str:
    """Megabytes (10^6), with as many digits as are of use."""
    value = nbytes / 1e6
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


@dataclass(frozen=True, slots=True)
class Scale:
    """From values low … high to start … stop, by their logarithm where `log`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = True

    def __call__(self, value: float) -> float:
        low, high = (log10(self.low), log10(self.high)) if self.log else (self.low, self.high)
        at = log10(max(value, self.low * 1e-3)) if self.log else value
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values, a handful."""
        if not self.log:
            step = 10 ** floor(log10(max(self.high - self.low, 1e-9)))
            step = next(s for s in (step / 5, step / 2, step, 2 * step) if (self.high - self.low) / s <= 6)
            return [step * i for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]
        decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**e for e in decades for d in digits]
            found = [v for v in found if self.low * 0.999 <= v <= self.high * 1.001]
            if len(found) <= 7:
                return found
        return found[:: ceil(len(found) / 7)]


def spread(values: Sequence[float], start: float, stop: float, room: float = 1.5, log: bool = True) -> Scale:
    """A scale with room around the values (a factor where `log`)."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / room, high * room, start, stop)
    return Scale(0, max(high, 1e-9) * 1.06, start, stop, log=False)


def text(x: float, y: float, said: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(said)}</text>'


def title(said: str) -> str:
    """What a browser shows when the element around it is pointed at."""
    return f"<title>{escape(said)}</title>"


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    """Rules, their values, and what they are."""
    parts: list[str] = []
    right, bottom = max(x.start, x.stop), max(y.start, y.stop)
    left, top = min(x.start, x.stop), min(y.start, y.stop)
    for value in y.ticks():
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(text(left - 5, y(value) + 4, short(value), "end"))
    for value in x.ticks():
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(x(value), bottom + 15, short(value), "middle"))
    parts.append(text((left + right) / 2, bottom + 33, x_label, "middle axis"))
    parts.append(text(left - LEFT + 4, top - 4, y_label, "axis"))
    return "".join(parts)


def frame() -> tuple[tuple[float, float], tuple[float, float]]:
    """Where a chart's horizontal and vertical scales begin and end."""
    return (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP + 12)


def svg(inner: str, label: str, height: float = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{inner}</svg>'
    )


def polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<polyline class="line {kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def dot(x: float, y: float, radius: float, kind: str, said: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title(said)}</circle>'


def square(x: float, y: float, half: float, kind: str, said: str) -> str:
    place = f'x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}" height="{2 * half:.1f}"'
    return f'<rect class="{kind}" {place}>{title(said)}</rect>'


LETTER = 6.4
"""Width of a letter of a label, about."""


class Labels:
    """Places labels beside points: where they meet neither each other, nor points, nor the chart's edge."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def keep_clear(self, x: float, y: float, radius: float) -> None:
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def keep_clear_of_line(self, points: Sequence[tuple[float, float]]) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            for i in range(9):
                self.keep_clear(x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8, 2)

    def place(self, x: float, y: float, away: float, said: str, kind: str = "") -> str:
        """A label of the point (x, y), at least `away` from it."""
        width, best, least = LETTER * len(said), (x + away, y + 4.0), float("inf")
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
        self._taken.append((left, base - 9, left + width, base + 2))
        line = ""
        if abs(left + width / 2 - x) + abs(base - 4 - y) > away + width / 2 + 14:  # far from what it names
            line = f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{left + width / 2:.1f}" y2="{base - 4:.1f}"/>'
        return line + text(left, base, said, f"label {kind}")

    def _cost(self, left: float, base: float, width: float) -> float:
        box = (left, base - 9, left + width, base + 2)
        if box[0] < LEFT or box[2] > WIDTH - 2 or box[1] < TOP + 11 or box[3] > HEIGHT - BOTTOM + 2:
            return 1000.0
        overlaps = (
            max(min(box[2], t[2]) - max(box[0], t[0]), 0) * max(min(box[3], t[3]) - max(box[1], t[1]), 0)
            for t in self._taken
        )
        return sum(overlaps)
