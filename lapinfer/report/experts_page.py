"""The page of an experts report: one HTML file without scripts or anything from elsewhere, its pictures inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log2
from typing import Any

import numpy as np

from lapinfer import __version__
from lapinfer.runtime.routing import expected_distinct, expected_distinct_by_load

Columns = Mapping[str, tuple[str, Callable[[dict[str, Any]], str]]]

STEPS = (
    ("≤ ¼", 1 / 4),
    ("¼ – ½", 1 / 2),
    ("½ – ⅘", 4 / 5),
    ("⅘ – 1¼", 5 / 4),
    ("1¼ – 2", 2),
    ("2 – 4", 4),
    ("> 4", np.inf),
)
"""Colours of the map, from cold to hot: load by the layer's mean, up to this."""

MAP_WIDTH = 900
"""Pixels that the cells of a row share, when that makes them neither too small nor too large."""
WIDTH, HEIGHT = 400, 250
"""Of the line chart, in its own units."""
LARGEST_BATCH = 1024

STYLE = """
:root { color-scheme: light dark;
  --ground: #fbfaf8; --ink: #1d1c1a; --soft: #6b6862; --rule: #dcd8d0; --plain: #33689b; --warm: #b8560f;
  --c0: #2264a6; --c1: #5b93c7; --c2: #b3cfe6; --c3: #e8e5de; --c4: #f3c793; --c5: #e18a3c; --c6: #a8440c }
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #17181a; --ink: #f0eeea; --soft: #9c9a94; --rule: #36373a; --plain: #7ab3e6; --warm: #f2a55c;
    --c0: #4f97dc; --c1: #38698f; --c2: #2a4358; --c3: #34353a; --c4: #654421; --c5: #b56a26; --c6: #ffab5e } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem }
p { margin: .2rem 0 .8rem; max-width: 44rem; color: var(--soft) }
.wide { overflow-x: auto; padding-bottom: .4rem }
.pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem }
.pair section { flex: 1 1 20rem; min-width: 0; max-width: 29rem }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: 0 0 .6rem; list-style: none;
  font-size: .85rem; color: var(--soft) }
.legend svg { margin-right: .35rem; vertical-align: -1px }
svg { display: block } .legend svg { display: inline-block } .chart { width: 100%; height: auto }
svg text { fill: var(--soft); font-size: 11px } .end { text-anchor: end } .middle { text-anchor: middle }
.c0 { fill: var(--c0) } .c1 { fill: var(--c1) } .c2 { fill: var(--c2) } .c3 { fill: var(--c3) } .c4 { fill: var(--c4) }
.c5 { fill: var(--c5) } .c6 { fill: var(--c6) } .none { fill: var(--ink) }
.map rect:hover { stroke: var(--ink); stroke-width: 1.5px }
.grid { stroke: var(--rule); stroke-width: 1px } .line { fill: none; stroke-width: 2px; stroke-linejoin: round }
.uniform { stroke: var(--soft); stroke-dasharray: 5 4 } .load { stroke: var(--plain) }
.dot { fill: var(--warm); stroke: var(--ground); stroke-width: 1.5px }
.bar { fill: var(--plain) } .first { fill: var(--warm) }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid var(--rule) }
th { font-weight: 600; color: var(--soft) }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; font-size: .85rem; color: var(--soft) }
dt { font-weight: 600 } dd { margin: 0 }
tbody tr:hover { background: var(--c3) }
"""


def page(arrays: dict[str, np.ndarray], summary: dict[str, Any], name: str, columns: Columns) -> str:
    """arrays, summary: those of a `Routing`; columns: heading → (meaning, cell from a layer of the summary)."""
    steps, layers = summary["steps"], len(summary["layers"])
    title = f"Experts of {name}" if name else "Experts"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{summary["tokens"]:,} tokens in {steps:,} step{"s" * (steps != 1)}, {layers} routed layer{"s" * (layers != 1)},
{span(arrays["experts"])} experts each, {span(arrays["top_k"])} a token. lapinfer {__version__}</p>
<h2>Load</h2>
<p>A row a layer, a column an expert; colours say how many tokens an expert got, by the mean of its layer.</p>
{legend(MAP_LEGEND)}
<div class="wide">{heat_map(arrays)}</div>
<div class="pair"><section><h2>Different experts in a step</h2>
<p>Mean over the layers. A step reads the weights of each expert that any of its tokens got, once.</p>
{legend(_CHART_LEGEND)}{distinct_chart(arrays, summary["step_sizes"])}</section>
<section><h2>Tokens since an expert's last use</h2>
<p>Share of all uses. A cache of experts lives on short distances.</p>{reuse_chart(arrays)}</section></div>
<h2>Layers</h2>
<div class="wide">{table(summary["layers"], columns)}</div>
<dl>{"".join(f"<dt>{escape(head)}</dt><dd>{escape(meaning)}</dd>" for head, (meaning, _) in columns.items())}</dl>
</body></html>
"""


def heat_map(arrays: dict[str, np.ndarray], wide: int = MAP_WIDTH) -> str:
    """Load of each expert [L, E] as a map, about so wide, whose cells say their numbers when pointed at."""
    routed, experts = arrays["tokens_routed"], arrays["experts"]
    L, E = routed.shape
    w, h = min(max(wide // E, 4), 28), 16 if L <= 32 else 12
    left, top = 30, 18
    labelled = range(0, E, 16 if E > 64 else 8 if E > 16 else 1)
    parts = [svg_text(left + w * e + w / 2, top - 5, str(e), "middle") for e in labelled]
    for i, layer in enumerate(arrays["layers"]):
        y = top + i * h
        parts.append(svg_text(left - 6, y + h - 4, str(layer), "end"))
        mean = max(float(routed[i].sum()) / int(experts[i]), 1e-9)
        for e, count in enumerate(routed[i, : experts[i]].tolist()):
            said = f"layer {layer}, expert {e}: {count:,} tokens, {count / mean:.2f} × the mean"
            parts.append(
                f'<rect class="{_colour(count / mean)}" x="{left + e * w}" y="{y}" width="{w - 1}" height="{h - 1}">'
                f"<title>{said}</title></rect>"
            )
    width, height = left + E * w + 20, top + L * h
    return f'<svg class="map" width="{width}" height="{height}" role="img" aria-label="load">{"".join(parts)}</svg>'


def _colour(ratio: float) -> str:
    if ratio == 0:
        return "none"
    return f"c{next(i for i, (_, most) in enumerate(STEPS) if ratio <= most)}"


def distinct_chart(arrays: dict[str, np.ndarray], step_sizes: Sequence[dict[str, float]]) -> str:
    """Distinct experts by tokens in a step: expected ones as lines, those of the run as dots."""
    batch = 2.0 ** np.arange(0, log2(LARGEST_BATCH) + 0.1, 0.25)
    layers = list(zip(arrays["experts"].tolist(), arrays["top_k"].tolist(), arrays["tokens_routed"], strict=True))
    uniform = np.mean([expected_distinct(E, k, batch) for E, k, _ in layers], axis=0)
    by_load = np.mean([expected_distinct_by_load(load, k, batch) for _, k, load in layers], axis=0)
    most = float(arrays["experts"].mean())
    left, right, top, bottom = 38, 18, 12, 40

    def x(tokens: float) -> float:
        return left + (WIDTH - left - right) * min(log2(tokens) / log2(LARGEST_BATCH), 1)

    def y(distinct: float) -> float:
        return HEIGHT - bottom - (HEIGHT - top - bottom) * distinct / most

    parts: list[str] = []
    for value in (most * i / 4 for i in range(5)):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(svg_text(left - 6, y(value) + 4, f"{value:.4g}", "end"))
    for tokens in (1, 4, 16, 64, 256, 1024):
        parts.append(svg_text(x(tokens), HEIGHT - bottom + 16, str(tokens), "middle"))
    parts.append(svg_text((left + WIDTH - right) / 2, HEIGHT - 6, "tokens in a step", "middle"))
    for kind, values in (("uniform", uniform), ("load", by_load)):
        points = " ".join(f"{x(b):.1f},{y(v):.1f}" for b, v in zip(batch.tolist(), values.tolist(), strict=True))
        parts.append(f'<polyline class="line {kind}" points="{points}"/>')
    for step in step_sizes:
        said = (
            f"{step['steps']:,} steps of {step['tokens']:.4g} tokens: {step['distinct']:.1f} different experts; "
            f"independent tokens: {step['by_load']:.1f} with these loads, {step['uniform']:.1f} with equal ones"
        )
        place = f'cx="{x(step["tokens"]):.1f}" cy="{y(step["distinct"]):.1f}"'
        parts.append(f'<circle class="dot" {place} r="5"><title>{said}</title></circle>')
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="distinct">{"".join(parts)}</svg>'


def reuse_chart(arrays: dict[str, np.ndarray]) -> str:
    """Bars: share of the uses of experts, all layers, by the tokens since the last one; below them first uses."""
    counts = arrays["reuse"].sum(axis=0)
    used = np.flatnonzero(counts)
    rows = [(_bin(i), int(counts[i]), "bar") for i in range(int(used[-1]) + 1 if len(used) else 0)]
    rows.append(("first use", int(arrays["first_use"].sum()), "first"))
    total = max(sum(count for _, count, _ in rows), 1)
    most = max(max(count for _, count, _ in rows), 1)
    left, right, h = 88, 52, 20
    parts: list[str] = []
    for i, (label, count, kind) in enumerate(rows):
        width = (WIDTH - left - right) * count / most
        parts.append(svg_text(left - 8, i * h + 14, label, "end"))
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{i * h + 3}" width="{max(width, 0.5):.1f}" height="{h - 6}">'
            f"<title>{label}: {count:,} uses</title></rect>"
        )
        parts.append(svg_text(left + width + 6, i * h + 14, f"{100 * count / total:.1f} %", ""))
    box = f"0 0 {WIDTH} {len(rows) * h + 4}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="reuse">{"".join(parts)}</svg>'


def _bin(i: int) -> str:
    return "1" if i == 0 else f"{2**i}–{2 ** (i + 1) - 1}"


def svg_text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def swatch(inner: str) -> str:
    return f'<svg width="22" height="12" aria-hidden="true">{inner}</svg>'


_CHART_LEGEND = (
    (swatch('<line class="line uniform" x1="0" x2="22" y1="6" y2="6"/>'), "independent tokens, equal loads"),
    (swatch('<line class="line load" x1="0" x2="22" y1="6" y2="6"/>'), "independent tokens, these loads"),
    (swatch('<circle class="dot" cx="11" cy="6" r="5"/>'), "measured"),
)
MAP_LEGEND = tuple(
    (swatch(f'<rect class="{kind}" width="22" height="12"/>'), label)
    for kind, label in (("none", "unused"), *((f"c{i}", f"{label} ×") for i, (label, _) in enumerate(STEPS)))
)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    return f'<ul class="legend">{"".join(f"<li>{swatch}{label}</li>" for swatch, label in entries)}</ul>'


def span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low}–{high}"


def table(layers: Sequence[dict[str, Any]], columns: Columns) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(show(layer))}</td>' for _, show in columns.values())}</tr>" for layer in layers
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
