"""What every page is made of: one HTML file that needs nothing else, with its style, sections, tables and legends."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from lapinfer.report.drawing import Bars, Chart, Key, svg, svg_shape
from lapinfer.report.outputs import GENERATOR
from lapinfer.shown import escape

LIGHT = {
    "ground": "#fbfaf8", "ink": "#1d1c1a", "soft": "#6b6862", "rule": "#dcd8d0",
    "plain": "#33689b", "warm": "#b8560f", "green": "#2f7d4f",
    "p0": "#8a6bb0", "p1": "#33689b", "p2": "#3d8f8f", "p3": "#6fb1d8", "p4": "#c9a227", "p5": "#b8560f",
    "p6": "#a33b5c", "p7": "#8b8880",
    "c0": "#2264a6", "c1": "#5b93c7", "c2": "#b3cfe6", "c3": "#e8e5de", "c4": "#f3c793", "c5": "#e18a3c",
    "c6": "#a8440c",
}  # fmt: skip
DARK = {
    "ground": "#17181a", "ink": "#f0eeea", "soft": "#9c9a94", "rule": "#36373a",
    "plain": "#7ab3e6", "warm": "#f2a55c", "green": "#79c893",
    "p0": "#b597dc", "p1": "#5b93c7", "p2": "#5fb8b3", "p3": "#a5d6f2", "p4": "#e2c256", "p5": "#f2a55c",
    "p6": "#e0819f", "p7": "#a09d96",
    "c0": "#4f97dc", "c1": "#38698f", "c2": "#2a4358", "c3": "#34353a", "c4": "#654421", "c5": "#b56a26",
    "c6": "#ffab5e",
}  # fmt: skip
"""The palette: text and ground, kinds of models, parts of a step (p…), loads from cold to hot (c…)."""

COLOURS = {
    "uniform": "soft", "load": "plain", "near": "soft", "roof": "ink", "bar": "plain", "first": "warm", "none": "ink",
    "dense": "plain", "moe": "warm", "fff": "green",
    "embedding": "p0", "attention": "p1", "convolution": "p2", "kv": "p3", "router": "p4", "experts": "p5",
    "feed-forward": "p6", "head": "p7", **{f"c{i}": f"c{i}" for i in range(7)},
}  # fmt: skip
"""What has a colour of its own in charts: kind → name in the palette. A later kind goes before an earlier one."""


def style() -> str:
    def variables(palette: dict[str, str]) -> str:
        return "; ".join(f"--{name}: {colour}" for name, colour in palette.items())

    own = " ".join(f".{kind} {{ --own: var(--{colour}) }}" for kind, colour in COLOURS.items())
    return (
        f":root {{ color-scheme: light dark; {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}\n{own}\n"
        + (files("lapinfer.report") / "style.css").read_text(encoding="utf-8")
    )


def document(title: str, introduction: str, body: str, script: str = "") -> str:
    """The whole file; introduction and body are HTML.

    script: runs at its end. No other is run, and nothing is fetched, whatever names of models may hold.
    """
    code = f"//<![CDATA[\n{script}\n//]]>"
    allowed = f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    body += f"<script>{code}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="generator" content="{GENERATOR}"/>
<meta http-equiv="Content-Security-Policy" content="{policy}"/><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{style()}</style></head><body>
<h1>{escape(title)}</h1>
<p>{introduction}</p>
{body}</body></html>
"""


def section(heading: str, text: str, inner: str) -> str:
    """heading and text are plain, inner is HTML."""
    return f"<section><h2>{escape(heading)}</h2>\n<p>{escape(text)}</p>\n{inner}</section>\n"


def pair(*sections: str) -> str:
    """Side by side where there is room."""
    return f'<div class="pair">{"".join(sections)}</div>\n'


def wide(inner: str) -> str:
    """What may be wider than the page, and is scrolled then."""
    return f'<div class="wide">{inner}</div>'


def items(kind: str, lines: Sequence[str]) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return wide(f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>')


def legend(keys: Sequence[Key]) -> str:
    entries = "".join(
        f'<li><svg width="22" height="12" aria-hidden="true">{svg_shape(key.shape())}</svg>{escape(key.label)}</li>'
        for key in keys
    )
    return f'<ul class="legend">{entries}</ul>' if keys else ""


def figure(chart: Chart | Bars) -> str:
    """A chart below its legend."""
    return legend(chart.keys) + svg(chart.drawing())
