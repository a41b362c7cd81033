"""What sections of a page are filled with: figures with their tables, bars, maps, lists and legends, as HTML.

Whatever has a value to tell is a mark (marks.js): it says it when pointed at, and when it is reached by keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from lapinfer.report.drawing import Bar, Bars, Chart, Key, Table, svg, svg_shape
from lapinfer.report.expert_charts import LoadMap
from lapinfer.shown import escape


def items(kind: str, lines: Sequence[str]) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def meanings(words: Sequence[tuple[str, str]]) -> str:
    """Words, and what they mean."""
    return f"<dl>{''.join(f'<dt>{escape(word)}</dt><dd>{escape(told)}</dd>' for word, told in words)}</dl>"


def wide(name: str, inner: str) -> str:
    """What may be wider than the page: it is scrolled then, by keys, too (marks.js)."""
    return f'<div class="wide" role="group" aria-label="{escape(name)}">{inner}</div>'


def table(of: Table, kind: str = "", notes: Sequence[str] = (), keys: Sequence[str] = ()) -> str:
    """Cells tell which row and column they are of. notes: below the names of rows; keys: kinds of colour of the columns
    after the first."""
    dots = ["", *(f'<span class="key {key}"></span>' for key in keys)]
    top = "".join(f'<th scope="col">{dot}{escape(cell)}</th>' for cell, dot in zip_longest(of.head, dots, fillvalue=""))
    below = [f"<small>{escape(note)}</small>" for note in notes]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}{note}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for (name, *cells), note in zip_longest(of.rows, below, fillvalue="")
    )
    return _table(of.caption, kind, top, rows)


def _table(caption: str, kind: str, top: str, rows: str, style: str = "") -> str:
    return wide(
        caption,
        f'<table class="{kind}"{style}><caption><span>{escape(caption)}</span></caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{rows}</tbody></table>",
    )


def in_figures(of: Table) -> str:
    """A table that is there for who cannot see the picture above it, or wants its numbers."""
    return details("In figures", table(of))


def details(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def legend(keys: Sequence[Key]) -> str:
    entries = "".join(
        f'<li><svg width="22" height="12" aria-hidden="true">{svg_shape(key.shape())}</svg>{escape(key.label)}</li>'
        for key in keys
    )
    return f'<ul class="legend">{entries}</ul>' if keys else ""


def figure(chart: Chart | Bars) -> str:
    """A chart below its legend, and above its figures."""
    drawn = bars(chart) if isinstance(chart, Bars) else svg(chart.drawing())
    return f"<figure>{legend(chart.keys)}{drawn}{in_figures(chart.table)}</figure>"


def bars(of: Bars) -> str:
    longest = max((bar.length + bar.beyond[0] for bar in of.bars), default=0) or 1
    return f'<div class="bars" role="group" aria-label="{escape(of.label)}">' + (
        "".join(_bar(bar, longest) for bar in of.bars) + "</div>"
    )


def _bar(bar: Bar, longest: float) -> str:
    parts = "".join(
        f'<i class="part {kind}" style="width:{100 * length / longest:.2f}%" title="{escape(told)}"></i>'
        for length, kind, told in bar.parts
        if length
    )
    rest, told = bar.beyond
    if rest:
        title = escape(f"{bar.name}: {bar.total} touched {told}")
        parts += f'<i class="beyond" style="width:{100 * rest / longest:.2f}%" title="{title}"></i>'
    beside = f" {escape(told)}" if told else ""
    return (
        f'<div class="bar"><span>{escape(bar.name)}</span>'
        f"<span><b>{escape(bar.total)}</b>{beside}</span><div>{parts}</div></div>"
    )


def heat_map(of: LoadMap) -> str:
    """A table whose cells are coloured: what it says is told and read as any table's."""
    every = 16 if len(of.columns) > 64 else 8 if len(of.columns) > 16 else 1
    shown = ["" if i % every == 0 else ' class="s"' for i in range(len(of.columns))]
    top = '<th scope="col">layer</th>' + "".join(
        f'<th scope="col"{small}>{escape(name)}</th>' for name, small in zip(of.columns, shown, strict=True)
    )
    rows = "".join(
        f'<tr data-mean="{mean:.4g}"><th scope="row">{escape(layer)}</th>{_cells(cells)}</tr>'
        for layer, mean, cells in of.rows
    )
    kind = "map low" if len(of.rows) > 32 else "map"
    return _table(of.caption, kind, top, rows, f' style="--columns:{len(of.columns)}" data-noun="{of.noun}"')


def _cells(cells: Sequence[tuple[int, str]]) -> str:
    return "".join(f'<td class="{kind}">{count}</td>' for count, kind in cells)
