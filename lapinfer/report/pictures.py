"""A report's charts as PNG, for a README; matplotlib paints them, and is imported only here."""

from __future__ import annotations

import io
from collections.abc import Callable
from textwrap import wrap
from typing import Any

from lapinfer.report.charts import parts_chart, roofline_chart, title, tradeoff_chart
from lapinfer.report.document import COLOURS, LIGHT
from lapinfer.report.drawing import WIDTH, Bars, Box, Chart, Circle, Polyline, Shape, Text
from lapinfer.report.expert_charts import distinct_shares_chart
from lapinfer.report.labels import FONT, width_of
from lapinfer.report.measured import Report
from lapinfer.report.outputs import GENERATOR

PICTURES: dict[str, Callable[[Report], Chart | Bars]] = {
    "bytes": lambda report: parts_chart(report.models),
    "tradeoff": lambda report: tradeoff_chart(report.models),
    "roofline": lambda report: roofline_chart(report.machine, report.models),
    "distinct": lambda report: distinct_shares_chart(report.models),
}
UNIT = 2.7
"""Pixels of a unit of a drawing."""
ROW = 16
"""Units between lines of text."""


def pictures(report: Report) -> dict[str, bytes]:
    """File name → PNG."""
    names = wrap(", ".join(title(i, m) for i, m in enumerate(report.models)), int(WIDTH / width_of("n")))
    routed = any(m.routed is not None for m in report.models)
    return {
        f"{name}.png": _png(chart(report), names) for name, chart in PICTURES.items() if routed or name != "distinct"
    }


def _png(chart: Chart | Bars, names: list[str]) -> bytes:
    """The chart below its legend and the names of its models."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = chart.drawing()
    above = [Text(8, ROW * (i + 1), name) for i, name in enumerate(names)]
    x, y = 8.0, float(ROW * (len(names) + 1))
    keys: list[tuple[Shape, float, float]] = []
    for key in chart.keys:
        width = 26 + width_of(key.label)
        if x + width > WIDTH:
            x, y = 8.0, y + ROW
        keys.append((key.shape(), x, y - 10))
        above.append(Text(x + 26, y, key.label))
        x += width + 10
    top = y + 8
    height = top + drawing.height
    figure = Figure(figsize=(WIDTH * UNIT / 100, height * UNIT / 100), facecolor=LIGHT["ground"])
    ax: Any = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    for shape, dx, dy in [*((text, 0, 0) for text in above), *keys, *((shape, 0, top) for shape in drawing.shapes)]:
        _paint(ax, shape, dx, dy)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(out, dpi=100, format="png", metadata={"Software": GENERATOR})
    return out.getvalue()


def _colour(kind: str, otherwise: str) -> str:
    """Of the last of a kind's words that has one, as in the page's style."""
    own = [name for name in COLOURS if name in kind.split()]
    return LIGHT[COLOURS[own[-1]] if own else otherwise]


def _paint(ax: Any, shape: Shape, dx: float, dy: float) -> None:
    """style.css, as far as the pictures need it."""
    from matplotlib.patches import Circle as RoundPatch
    from matplotlib.patches import Rectangle

    points = UNIT * 72 / 100
    kind = shape.kind.split()
    match shape:
        case Polyline(vertices):
            width = {"grid": 1, "leader": 0.7, "roof": 1.5}.get(kind[-1], 2) * points
            ax.plot(
                [x + dx for x, _ in vertices], [y + dy for _, y in vertices], linewidth=width,
                color=_colour(shape.kind, "rule" if "grid" in kind else "soft"),
                linestyle=(0, (2.5, 2)) if "uniform" in kind else "-",
            )  # fmt: skip
        case Text(x, y, text):
            ax.text(
                x + dx, y + dy, text, fontsize=FONT * points, va="baseline",
                ha="right" if "end" in kind else "center" if "middle" in kind else "left",
                color=LIGHT["ink" if {"axis", "label"} & {*kind} else "soft"],
                fontweight="bold" if "label" in kind else "normal",
            )  # fmt: skip
        case Circle() | Box():
            looks: dict[str, Any] = {"facecolor": _colour(shape.kind, "ink"), "edgecolor": LIGHT["ground"],
                                     "linewidth": points, "alpha": 0.28 if "bubble" in kind else 1,
                                     "zorder": 2}  # fmt: skip
            if isinstance(shape, Circle):
                ax.add_patch(RoundPatch((shape.x + dx, shape.y + dy), shape.radius, **looks))
            else:
                ax.add_patch(Rectangle((shape.x + dx, shape.y + dy), shape.width, shape.height, **looks))
