"""A report's charts as PNG, for a README; matplotlib draws them, and is imported only here."""

from __future__ import annotations

import io
from collections.abc import Callable
from textwrap import fill
from typing import Any

from lapinfer.report.measured import Report
from lapinfer.report.page_models import letter, ppl
from lapinfer.runtime.predict import PARTS

COLOURS = {"dense": "#33689b", "moe": "#b8560f", "fff": "#2f7d4f"}
PART_COLOURS = ("#8a6bb0", "#33689b", "#3d8f8f", "#6fb1d8", "#c9a227", "#b8560f", "#a33b5c", "#8b8880")
SIZE = (7.2, 4.4)


def pictures(report: Report) -> dict[str, bytes]:
    """File name → PNG."""
    return {f"{name}.png": _png(draw, report) for name, draw in PICTURES.items() if _there(name, report)}


def _there(name: str, report: Report) -> bool:
    return name != "distinct" or any(m.routed is not None for m in report.models)


def _png(draw: Callable[[Report, Any], None], report: Report) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax: Any = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    draw(report, ax)
    out = io.BytesIO()
    canvas.print_figure(out, dpi=160, format="png")
    return out.getvalue()


def _bytes(report: Report, ax: Any) -> None:
    """Stacked bars: MB a decoded token touches, by part."""
    models = report.models
    names = [f"{letter(i)} {m.name}" for i, m in enumerate(models)]
    starts = [0.0] * len(models)
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        widths = [m.decode.predicted.get(part, 0) / 1e6 for m in models]
        if any(widths):
            ax.barh(names, widths, left=starts, color=colour, label=part, height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    ax.invert_yaxis()
    ax.set_xlabel("MB touched a decoded token (predicted and metered)")
    ax.legend(ncols=4, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0))


def _tradeoff(report: Report, ax: Any) -> None:
    """Speed by bytes touched; a bubble's area is memory."""
    largest = max(m.weight_bytes for m in report.models)
    for i, m in enumerate(report.models):
        at = m.decode.bytes / 1e6, m.decode.speed
        ax.scatter(*at, s=max(2400 * m.weight_bytes / largest, 30), color=COLOURS[m.kind], alpha=0.3)
        ax.scatter(*at, s=14, color=COLOURS[m.kind])
        _label(ax, i, letter(i) + ("" if m.ppl is None else f" {ppl(m)}"), at)
    ax.set(xscale="log", yscale="log", xlabel="MB touched a token (metered)", ylabel="decode tok/s (measured)")
    ax.margins(0.25)
    ax.set_title(_names(report), fontsize=8)


def _roofline(report: Report, ax: Any) -> None:
    """This machine's roofs and the models' steps."""
    machine, models = report.machine, report.models
    steps = [step for m in models for step in (m.decode, m.prompt)]
    low = min(step.intensity for step in steps) / 2
    high = max(*(step.intensity for step in steps), *(2 * p / machine.bandwidth for p in machine.peaks.values())) * 2
    for kind, peak in machine.peaks.items():
        ridge = peak / machine.bandwidth
        ax.plot([low, ridge, high], [low * machine.bandwidth, peak, peak], color="#555", linewidth=1)
        ax.annotate(kind, (high, peak), ha="right", va="bottom", fontsize=8)
    for i, m in enumerate(models):
        for step, marker in ((m.decode, "o"), (m.prompt, "s")):
            at = step.intensity, step.macs / step.seconds
            ax.scatter(*at, marker=marker, color=COLOURS[m.kind], s=28)
            _label(ax, i, letter(i), at)
    ax.set(xscale="log", yscale="log", xlabel="multiply-adds a byte", ylabel="multiply-adds a second (measured)")
    ax.set_title("circles: decode, squares: prompt\n" + _names(report), fontsize=8)


def _label(ax: Any, i: int, said: str, at: tuple[float, float]) -> None:
    """Beside a point; neighbours in the table, which often lie close, have theirs on different sides."""
    right, up = i % 2 == 0, i % 4 < 2
    ax.annotate(
        said, at, xytext=(6 if right else -6, 4 if up else -4), textcoords="offset points", fontweight="bold",
        ha="left" if right else "right", va="bottom" if up else "top",
    )  # fmt: skip


def _distinct(report: Report, ax: Any) -> None:
    """Share of a layer's experts that a step touches, by its tokens."""
    for i, m in enumerate(report.models):
        if m.routed is None:
            continue
        total = sum(m.routed.experts) / len(m.routed.experts)
        for points, style in ((m.routed.uniform, ":"), (m.routed.by_load, "-")):
            ax.plot([n for n, _ in points], [100 * v / total for _, v in points], style, color=COLOURS[m.kind])
        ran = [(b.tokens, 100 * b.distinct / total) for b in m.batches if b.distinct is not None]
        ax.plot([n for n, _ in ran], [v for _, v in ran], "o", color=COLOURS[m.kind], label=f"{letter(i)} {m.name}")
    ax.set(xscale="log", ylim=(0, 105), xlabel="tokens in a step", ylabel="% of a layer's experts or leaves touched")
    ax.set_title("dotted: theory, equal loads; lines: theory, measured loads; dots: measured batches", fontsize=8)
    ax.legend(frameon=False, fontsize=8)


def _names(report: Report) -> str:
    return fill(", ".join(f"{letter(i)} {m.name}" for i, m in enumerate(report.models)), 110)


PICTURES: dict[str, Callable[[Report, Any], None]] = {
    "bytes": _bytes,
    "tradeoff": _tradeoff,
    "roofline": _roofline,
    "distinct": _distinct,
}
