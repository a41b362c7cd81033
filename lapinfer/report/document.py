"""What every page is made of: one HTML file that needs nothing else, with its style, contents, sections and script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from lapinfer.report.labels import FONT
from lapinfer.report.outputs import GENERATOR
from lapinfer.shown import escape

LIGHT = {
    "ground": "#fbfaf8", "ink": "#1d1c1a", "soft": "#6b6862", "rule": "#dcd8d0",
    "plain": "#33689b", "warm": "#b8560f", "green": "#2f7d4f",
    "p0": "#8a6bb0", "p1": "#33689b", "p2": "#3d8f8f", "p3": "#6fb1d8", "p4": "#c9a227", "p5": "#b8560f",
    "p6": "#a33b5c", "p7": "#8b8880", "p8": "#6d8c36",
    "c0": "#2264a6", "c1": "#5b93c7", "c2": "#b3cfe6", "c3": "#e8e5de", "c4": "#f3c793", "c5": "#e18a3c",
    "c6": "#a8440c",
}  # fmt: skip
DARK = {
    "ground": "#17181a", "ink": "#f0eeea", "soft": "#9c9a94", "rule": "#36373a",
    "plain": "#7ab3e6", "warm": "#f2a55c", "green": "#79c893",
    "p0": "#b597dc", "p1": "#5b93c7", "p2": "#5fb8b3", "p3": "#a5d6f2", "p4": "#e2c256", "p5": "#f2a55c",
    "p6": "#e0819f", "p7": "#a09d96", "p8": "#a8c66c",
    "c0": "#4f97dc", "c1": "#38698f", "c2": "#2a4358", "c3": "#34353a", "c4": "#654421", "c5": "#b56a26",
    "c6": "#ffab5e",
}  # fmt: skip
"""The palette: text and ground, kinds of models, parts of a step (p…), loads from cold to hot (c…)."""

COLOURS = {
    "uniform": "soft", "load": "plain", "near": "soft", "roof": "ink", "bar": "plain", "first": "warm", "none": "ink",
    "dense": "plain", "moe": "warm", "fff": "green",
    "embedding": "p0", "attention": "p1", "convolution": "p2", "recurrence": "p8", "kv": "p3", "router": "p4",
    "experts": "p5", "feed-forward": "p6", "head": "p7", **{f"c{i}": f"c{i}" for i in range(7)},
}  # fmt: skip
"""What has a colour of its own in charts: kind → name in the palette. A later kind goes before an earlier one."""


MARKS = (files("lapinfer.report") / "marks.js").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Section:
    """id: what links to it name; heading and text are plain, inner is HTML."""

    id: str
    heading: str
    text: str
    inner: str

    def html(self) -> str:
        text = f"<p>{escape(self.text)}</p>\n" if self.text else ""
        return (
            f'<section aria-labelledby="{self.id}"><h2 id="{self.id}">{escape(self.heading)}</h2>\n{text}'
            f"{self.inner}</section>\n"
        )


Part = Section | tuple[Section, ...]
"""Sections of a tuple stand side by side where there is room."""


def style() -> str:
    def variables(palette: dict[str, str]) -> str:
        return "; ".join(f"--{name}: {colour}" for name, colour in palette.items())

    own = " ".join(f".{kind} {{ --own: var(--{colour}) }}" for kind, colour in COLOURS.items())
    return (
        f":root {{ color-scheme: light; {variables(LIGHT)} }}\n"
        "@media screen and (prefers-color-scheme: dark) "
        f"{{ :root {{ color-scheme: dark; {variables(DARK)} }} }}\n"
        f"{own}\n.chart text {{ font-size: {FONT}px }}\n"
        + (files("lapinfer.report") / "style.css").read_text(encoding="utf-8")
    )


def document(title: str, introduction: str, parts: Sequence[Part], script: str = "") -> str:
    """The whole file; introduction is HTML.

    script: runs after that of the marks. No other is run, and nothing is fetched, whatever names of models may hold.
    """
    code = f"//<![CDATA[\n{MARKS}marks();\n{script}\n//]]>"
    digest = b64encode(sha256(code.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    groups = [part if isinstance(part, tuple) else (part,) for part in parts]
    body = "".join(
        html if len(group) == 1 else f'<div class="pair">{html}</div>\n'
        for group in groups
        for html in ["".join(section.html() for section in group)]
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="generator" content="{GENERATOR}"/>
<meta http-equiv="Content-Security-Policy" content="{policy}"/><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{style()}</style></head><body>
<header><h1>{escape(title)}</h1>
<p>{introduction}</p>
{_contents([section for group in groups for section in group])}</header>
<main>
{body}</main>
<script>{code}</script>
</body></html>
"""


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{section.id}">{escape(section.heading)}</a></li>' for section in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n' if len(sections) > 1 else ""
