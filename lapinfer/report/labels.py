"""Where labels of a chart stand: they meet no other text, and points and lines only where there is no other place.

Widths and heights are of a wide font (DejaVu Sans), so that they suffice for others. Units are those of the drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""

FONT = 12
"""Size of a chart's text."""
ASCENT, DESCENT = 0.95 * FONT, 0.25 * FONT
"""Of a line of text, above and below its base."""
WIDTHS = {**dict.fromkeys(" .,:;'|!()[]Iijlft", 0.45), **dict.fromkeys("mwMW%@", 1.05)}
"""Of letters, by the font's size; others take OTHERS."""
OTHERS = 0.74
DISTANCES = (0.0, 6.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)
"""Tried one after the other between a label and what it names."""


def width_of(text: str) -> float:
    """In bold letters, at least."""
    return FONT * sum(WIDTHS.get(letter, OTHERS) for letter in text)


def box_of(left: float, base: float, text: str) -> Rectangle:
    """What a text takes that begins at (left, base)."""
    return left, base - ASCENT, left + width_of(text), base + DESCENT


def overlap(a: Rectangle, b: Rectangle) -> float:
    """The area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


class Labels:
    """Labels are placed one after the other, within a frame."""

    def __init__(self, frame: Rectangle):
        self._frame = frame
        self._texts: list[Rectangle] = []
        self._things: list[Rectangle] = []

    def keep_clear(self, x: float, y: float, radius: float) -> None:
        self._things.append((x - radius, y - radius, x + radius, y + radius))

    def keep_clear_of_line(self, points: Sequence[Point]) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            for i in range(9):
                self.keep_clear(x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8, 2)

    def beside(self, x: float, y: float, away: float, label: str) -> Point | None:
        """Where a label of the point (x, y) begins, at least `away` from it; None where there is no room for it."""
        return self._best(label, _around(x, y, away, width_of(label)))

    def along(self, points: Sequence[Point], name: str) -> Point | None:
        """Where a name of a line begins: below or above one of its ends."""
        (x0, y0), (x1, y1) = points[0], points[-1]
        right = x1 - width_of(name) - 4
        below, above = ASCENT + 4, -DESCENT - 3
        return self._best(name, ((x0 + 6, y0 + below), (right, y1 + below), (x0 + 6, y0 + above), (right, y1 + above)))

    def _best(self, label: str, places: Iterator[Point] | Sequence[Point]) -> Point | None:
        """The place that costs least; an earlier one goes before a later one."""
        best, least = None, inf
        for tried, (left, base) in enumerate(places):
            box = box_of(left, base, label)
            if (cost := self._cost(box) + tried / 4) < least:
                best, least = (left, base), cost
        if best is not None:
            self._texts.append(box_of(*best, label))
        return best

    def _cost(self, box: Rectangle) -> float:
        left, top, right, bottom = self._frame
        outside = box[0] < left or box[1] < top or box[2] > right or box[3] > bottom
        if outside or any(overlap(box, text) for text in self._texts):
            return inf
        return sum(overlap(box, thing) for thing in self._things)


def _around(x: float, y: float, away: float, width: float) -> Iterator[Point]:
    """Begins of a label this wide around a point, near ones first."""
    middle = (ASCENT - DESCENT) / 2
    for further in DISTANCES:
        a = away + further
        yield from (
            (x + a, y + middle), (x - a - width, y + middle),
            (x - width / 2, y - a - DESCENT), (x - width / 2, y + a + ASCENT),
            (x + 0.7 * a, y - 0.7 * a), (x + 0.7 * a, y + 0.7 * a + ASCENT),
            (x - 0.7 * a - width, y - 0.7 * a), (x - 0.7 * a - width, y + 0.7 * a + ASCENT),
        )  # fmt: skip
