"""The page of a report: one HTML file that needs nothing else, its pictures inline SVG, made from a `Report` alone."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import numpy as np

from lapinfer.report.against import Figures, against_dense
from lapinfer.report.experts import columns
from lapinfer.report.experts_page import MAP_LEGEND, STYLE, heat_map, legend, span, swatch, table
from lapinfer.report.measured import Machine, Measured, Report, Step
from lapinfer.report.page_charts import mb, short
from lapinfer.report.page_models import (
    batch_chart,
    context_chart,
    distinct_chart,
    letter,
    parts_chart,
    roofline_chart,
    tradeoff_chart,
)
from lapinfer.report.page_whatif import whatif
from lapinfer.runtime.predict import PARTS

MAP_WIDTH = 440
"""Of the map of loads, which stands beside a chart."""

KINDS = {"dense": "dense", "moe": "mixture of experts", "fff": "fast feedforward trees"}

MORE_STYLE = """
body { max-width: 74rem } .answers { padding-left: 1.1rem; margin: .4rem 0 1rem }
.notes li { margin: .15rem 0; max-width: 52rem }
.notes { padding-left: 1.1rem; color: var(--soft); font-size: .88rem; margin: .6rem 0 0 }
:root { --green: #2f7d4f; --p0: #8a6bb0; --p1: #33689b; --p2: #3d8f8f; --p3: #6fb1d8; --p4: #c9a227; --p5: #b8560f;
  --p6: #a33b5c; --p7: #8b8880 }
@media (prefers-color-scheme: dark) {
  :root { --green: #79c893; --p0: #b597dc; --p1: #5b93c7; --p2: #5fb8b3; --p3: #a5d6f2; --p4: #e2c256; --p5: #f2a55c;
    --p6: #e0819f; --p7: #a09d96 } }
.chart { max-width: 34rem } .pair section { max-width: 34rem; flex-basis: 22rem }
svg .axis { fill: var(--ink) } svg .label { fill: var(--ink); font-weight: 600 } svg .roofname { fill: var(--soft) }
.mark, .bubble { stroke: var(--ground); stroke-width: 1px } .bubble { fill-opacity: .28 }
.mark.dense, .bubble.dense { fill: var(--plain) } .mark.moe, .bubble.moe { fill: var(--warm) }
.mark.fff, .bubble.fff { fill: var(--green) } .mark.near { fill: var(--soft) } .mark.plain { fill: var(--soft) }
.line.dense { stroke: var(--plain) } .line.moe { stroke: var(--warm) } .line.fff { stroke: var(--green) }
.line.roof { stroke: var(--ink); stroke-width: 1.5px } .leader { stroke: var(--soft); stroke-width: .7px }
.part { stroke: var(--ground); stroke-width: .5px }
.embedding { fill: var(--p0) } .attention { fill: var(--p1) } .convolution { fill: var(--p2) } .kv { fill: var(--p3) }
.router { fill: var(--p4) } .experts { fill: var(--p5) } .feed-forward { fill: var(--p6) } .head { fill: var(--p7) }
.heads td:first-child, .heads th:first-child { position: sticky; left: 0; background: var(--ground); text-align: left }
.heads th small { display: block; font-weight: 400; white-space: normal }
.heads th, .heads td { padding: .25rem .5rem }
.heads .key { display: inline-block; width: .7rem; height: .7rem;
  border-radius: 50%; margin-right: .35rem } .heads .dense { background: var(--plain) }
.heads .moe { background: var(--warm) } .heads .fff { background: var(--green) }
.heads tbody tr:hover td { background: var(--c3) } .bad { color: var(--warm) }
.sliders { display: grid; grid-template-columns: 1fr auto; gap: .1rem 1rem; max-width: 30rem; margin: .8rem 0 }
.sliders input { grid-column: 1 / 3; width: 100%; margin: 0 0 .5rem; accent-color: var(--plain) }
.sliders output { font-variant-numeric: tabular-nums; color: var(--soft); text-align: right }
.results { display: flex; flex-wrap: wrap; gap: .6rem 2.5rem } .results b { display: block; font-size: 1.35rem }
.results span { display: block; font-size: .85rem; color: var(--soft) }
select { font: inherit; max-width: 100%; color: inherit; background: var(--ground) }
@media (max-width: 480px) { .chart text { font-size: 13px } }
details { margin: .4rem 0 1rem } summary { cursor: pointer; color: var(--soft); font-size: .9rem }
"""

COLUMNS: dict[str, tuple[str, Callable[[Machine, Measured], str]]] = {
    "parameters": ("total / of a token", lambda _, m: f"{short(m.parameters)} / {short(m.active)}"),
    "touched": (
        "MB a token, predicted / metered",
        lambda _, m: f"{mb(sum(m.decode.predicted.values()))} / {mb(m.decode.bytes)}",
    ),
    "decode": ("tok/s (of roofline)", lambda machine, m: _speed(machine, m, m.decode)),
    "prompt": ("tok/s (of roofline)", lambda machine, m: _speed(machine, m, m.prompt)),
    "perplexity": ("lower is better", lambda _, m: _perplexity(m)),
    "weights": ("MB, from the spec", lambda _, m: mb(m.weight_bytes)),
    "resident": ("MB, measured", lambda _, m: mb(m.resident)),
    "format": ("bits a weight", lambda _, m: f"{m.format}, {m.bits:.2f}"),
    "multiply-adds": ("a token, counted", lambda _, m: short(m.decode.macs)),
}
"""Of the headline table: heading, unit, cell."""


def _speed(machine: Machine, m: Measured, step: Step) -> str:
    return f"{step.speed:,.0f} ({100 * machine.share(step, m.arithmetic):.0f} %)"


def _perplexity(m: Measured) -> str:
    if m.ppl is None:
        return m.unscored
    value, error, tokens = m.ppl
    if not tokens:
        return f"{value:.2f}"
    return f"{value:.2f} ± {error:.2f}" if value < 1e4 else f"{value:.1e}"


def page(report: Report) -> str:
    """The whole file."""
    machine, models = report.machine, report.models
    title = "What dense, MoE and FFF cost"
    body = "".join((
        _headline(report), _pair(_roofline(report), _tradeoff(report)), _parts(report),
        "".join(_routing(i, m) for i, m in enumerate(models)), _pair(_batches(report), _contexts(report)),
        _section("What if", "Predicted, not measured: what a decoded token would touch, and the model take. "
                 "The speed is the most that bandwidth allows; small models reach less. Experts keep their size, so "
                 "more of them take more memory. At a model's own settings the bytes are exactly those of the table.",
                 whatif(machine, models)),
    ))  # fmt: skip
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/><style>{STYLE}{MORE_STYLE}</style></head><body>
<h1>{title}</h1>
<p>{escape(str(machine.about.get("cpu", "")))}, {machine.threads} thread{"s" * (machine.threads != 1)},
{machine.bandwidth / 1e9:.1f} GB/s read; {escape(report.created)}, lapinfer {escape(str(machine.about["lapinfer"]))}</p>
{_problems(report)}{body}</body></html>
"""


def _problems(report: Report) -> str:
    said = [f"{name}: {message.removeprefix(f'{name}: ')}" for name, message in report.failures]
    lines = [f'<p class="bad">Could not be measured: {escape(line)}</p>' for line in said]
    if report.interrupted:
        lines.append('<p class="bad">Stopped by Ctrl-C: further models were not measured.</p>')
    return "\n".join(lines)


def _section(heading: str, said: str, inner: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n<p>{escape(said)}</p>\n{inner}</section>\n"


def _pair(*sections: str) -> str:
    return f'<div class="pair">{"".join(sections)}</div>'


def _key(kind: str, label: str, shape: str = "circle") -> tuple[str, str]:
    inner = (
        f'<circle class="mark {kind}" cx="11" cy="6" r="5"/>'
        if shape == "circle"
        else f'<rect class="mark {kind}" x="6" y="1" width="10" height="10"/>'
    )
    return swatch(inner), label


def _kinds(report: Report) -> list[tuple[str, str]]:
    there = {m.kind for m in report.models}
    return [_key(kind, label) for kind, label in KINDS.items() if kind in there]


def _headline(report: Report) -> str:
    machine, models = report.machine, report.models
    head = "".join(f"<th>{escape(name)}<small>{escape(unit)}</small></th>" for name, (unit, _) in COLUMNS.items())
    rows = "".join(
        f'<tr><td><span class="key {m.kind}"></span>{letter(i)} {escape(m.name)}</td>'
        + "".join(f"<td>{escape(cell(machine, m))}</td>" for _, cell in COLUMNS.values())
        + "</tr>"
        for i, m in enumerate(models)
    )
    contexts = sorted({m.context for m in models})
    seen = f"{contexts[0]:,}" if len(contexts) == 1 else f"{contexts[0]:,} to {contexts[-1]:,}"
    off = [m.name for m in models if sum(m.decode.predicted.values()) != m.decode.bytes]
    agree = f"they differ for {', '.join(off)}: that is a bug" if off else "they agree to the byte here"
    scored = sorted({f"{m.ppl[2]:.0f}" for m in models if m.ppl and m.ppl[2]})
    from_card = [m.name for m in models if m.ppl and not m.ppl[2]]
    ids = [m.name for m in models if m.text == "random"]
    notes = [
        f"Touched is what a token has to read: predicted from the spec alone, and metered while running; {agree}.",
        "Resident is the memory that the process gave back when the model was closed: weights, of a file only those "
        "that were touched, the KV cache, and the buffers of a prompt's step, which may be most of a small model's.",
        "Speeds are measured, medians of steps, one model after the other: a program that was busy meanwhile slowed "
        "the model that it met. Multiply-adds are counted, those of attention included.",
        "% of roofline: the least time that bytes and multiply-adds allow on this machine, by the time taken. More "
        "than 100 % means that weights stayed in caches. Where activations have 16 bits, as small models' have by "
        "default, a product takes two of int8: their prompts cannot reach the roof.",
    ]
    if scored:
        notes.append(
            f"Perplexity is of {report.text}, {', '.join(scored)} tokens scored. Of a short text, it is rough."
        )
    if from_card:
        notes.append(f"Perplexity of {', '.join(from_card)} is from their cards: of a whole novel that they never saw.")
    if any("random" in m.unscored for m in models):
        notes.append("Models with random weights have real costs and no quality: that was not measured.")
    if ids:
        notes.append(f"No tokenizer, so random token ids were run, and were routed unlike text: {', '.join(ids)}.")
    of_one_text = len({bool(m.ppl[2]) for m in models if m.ppl}) == 1  # else cards' texts beside this report's
    said = against_dense([
        Figures(f"{letter(i)} {m.name}", m.parameters, m.active, m.weight_bytes, m.decode.bytes, m.decode.speed,
                m.ppl[0] if m.ppl and of_one_text else None)
        for i, m in enumerate(models)
    ])  # fmt: skip
    inner = (
        f'<ul class="answers">{"".join(f"<li>{escape(line)}</li>" for line in said)}</ul>'
        f'<div class="wide"><table class="heads"><thead><tr><th>model</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{legend(_kinds(report))}"
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'
    )
    said = f"A decoded token sees {seen} positions, and a prompt is as long. Letters stand for models in the pictures."
    return _section("At a glance", said, inner)


def _roofline(report: Report) -> str:
    said = (
        "The lines are this machine, measured with our own kernels: the slope is memory bandwidth, the flats are int8 "
        "and float32 arithmetic. Decoding has few multiply-adds a byte, so memory limits it; a prompt uses each weight "
        "for many tokens."
    )
    marks = [_key("plain", "decode"), _key("plain", "prompt", "square")]
    return _section("Roofline (measured)", said, legend([*marks, *_kinds(report)]) +
                    roofline_chart(report.machine, report.models))  # fmt: skip


def _tradeoff(report: Report) -> str:
    scored = any(m.ppl for m in report.models)
    said = (
        "Measured. To the upper left is better: less to read, faster. A bubble's area is the memory of weights and "
        f"cache (predicted).{' Numbers beside the letters are perplexities: lower is better.' if scored else ''}"
    )
    return _section("Memory, speed, quality", said, legend(_kinds(report)) + tradeoff_chart(report.models))


def _parts(report: Report) -> str:
    there = [part for part in PARTS if any(m.decode.predicted.get(part) for m in report.models)]
    keys = [(swatch(f'<rect class="{part}" width="22" height="12"/>'), part) for part in there]
    contexts = sorted({m.context for m in report.models})
    said = (
        f"Bytes a decoded token touches at {' or '.join(f'{c:,}' for c in contexts)} positions, predicted and metered. "
        "Experts and trees make the feed-forward smaller. They save nothing of attention, of the KV cache and of the "
        "head, and the router is read on top."
    )
    return _section("Where the bytes go", said, legend(keys) + parts_chart(report.models))


def _routing(i: int, m: Measured) -> str:
    routed = m.routed
    if routed is None:
        return ""
    noun = "leaves" if m.kind == "fff" else "experts"
    layers, load = routed.summary["layers"], np.array(routed.load)
    unused = sum(layer["unused"] for layer in layers)
    cells = [-(-E // routed.merged) for E in routed.experts]
    arrays = {"tokens_routed": load, "experts": np.array(cells), "layers": np.array(routed.layers)}
    merged = f" A cell is {routed.merged} neighbouring {noun}." if routed.merged > 1 else ""
    said = (
        f"{routed.summary['tokens']:,} tokens{' (random ids)' if m.text == 'random' else ''}, "
        f"{span(np.array(routed.top_k))} of {span(np.array(routed.experts))} {noun} a token in {len(layers)} layers; "
        f"{unused} of {sum(routed.experts):,} never used. A row a layer, a column one of the {noun}; colours "
        f"are tokens by the mean of the layer: even loads are pale.{merged}"
    )
    shown = columns(routed.summary)
    steps = (
        f"A step reads the weights of all {noun} that any of its tokens chose. The more they are, the fewer bytes are "
        "saved; multiply-adds are saved as before."
    )
    keys = [
        (swatch('<line class="line uniform" x1="0" x2="22" y1="6" y2="6"/>'), "theory, equal loads"),
        (swatch('<line class="line load" x1="0" x2="22" y1="6" y2="6"/>'), "theory, measured loads"),
        _key(m.kind, "measured: sequences together"),
        _key("near", "measured: neighbours in a text", "square"),
    ]
    return _pair(
        _section(f"Routing of {letter(i)} {m.name} (measured)", said,
                 f'{legend(MAP_LEGEND)}<div class="wide">{heat_map(arrays, MAP_WIDTH)}</div>'
                 f"<details><summary>Layers in numbers</summary>"
                 f'<div class="wide">{table(layers, shown)}</div></details>'),
        _section(f"Different {noun} in a step: {letter(i)} {m.name}", steps, legend(keys) + distinct_chart(routed, m)),
    )  # fmt: skip


def _batches(report: Report) -> str:
    if not any(len(m.batches) > 1 for m in report.models):
        return ""
    said = (
        "Sequences decoded together share the weights that they read. A dense model's bytes a token fall most with "
        "each doubling; experts and leaves are shared less, since each sequence brings its own."
    )
    return _section("Batches (metered)", said, legend(_kinds(report)) + batch_chart(report.models))


def _contexts(report: Report) -> str:
    said = (
        "The KV cache grows with the context, in all kinds alike: experts and trees save nothing of it. Lines end at "
        "the context that a model was made for."
    )
    return _section("Context (predicted)", said, legend(_kinds(report)) + context_chart(report.models))
