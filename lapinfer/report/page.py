"""The page of a report: one HTML file that needs nothing else, its pictures inline SVG, made from a `Report` alone."""

from __future__ import annotations

import numpy as np

from lapinfer.report.charts import (
    batch_chart,
    context_chart,
    kind_keys,
    letter,
    parts_chart,
    roofline_chart,
    title,
    tradeoff_chart,
)
from lapinfer.report.document import Part, Section, document
from lapinfer.report.expert_charts import LOAD_KEYS, distinct_chart, load_map, noun
from lapinfer.report.experts import layer_table, span
from lapinfer.report.measured import Measured, Report
from lapinfer.report.page_text import WORDS, cautions, figures, found, notes
from lapinfer.report.page_whatif import script, whatif
from lapinfer.report.pieces import details, figure, heat_map, items, legend, meanings, table
from lapinfer.shown import escape

MOST_ANSWERS = 4
"""Shown at once: as many as two routed models and two dense ones give."""


def page(report: Report) -> str:
    """The whole file."""
    machine, models = report.machine, report.models
    introduction = (
        f"{escape(str(machine.about.get('cpu', '')))}, {machine.threads} thread{'s' * (machine.threads != 1)},\n"
        f"{machine.bandwidth / 1e9:.1f} GB/s read; {escape(report.created)}, lapinfer "
        f"{escape(str(machine.about['lapinfer']))}"
    )
    parts: list[Part] = [
        Section("found", "What was found", "", items("bad", _problems(report)) + _found(report)),
        _bytes(report),
        _glance(report),
        Section("what-if", "What if", "Predicted, not measured: what a decoded token would touch, and the model take "
                "in memory. Experts keep their size, so more of them take more memory. At a model's own settings the "
                "bytes are exactly those above.", whatif(machine, models)),
        (_tradeoff(report), _roofline(report)),
        *(_routing(i, m) for i, m in enumerate(models) if m.routed is not None),
        (*_batches(report), _contexts(report)),
        Section("words", "Words", "", meanings(WORDS)),
        Section("method", "How it was measured", "", items("notes", notes(report))),
    ]  # fmt: skip
    return document("What these models cost to run", introduction, parts, script(machine, models))


def _found(report: Report) -> str:
    """The first answers, and more where there are."""
    lines = found(report)
    more = lines[MOST_ANSWERS:]
    rest = details(f"{len(more)} more", items("answers", more)) if more else ""
    return items("answers", lines[:MOST_ANSWERS]) + rest + items("answers", cautions(report))


def _problems(report: Report) -> list[str]:
    lines = [f"Could not be measured: {name}: {message.removeprefix(f'{name}: ')}" for name, message in report.failures]
    if report.interrupted:
        lines.append("Stopped by Ctrl-C: further models, and further turns of these, were not measured.")
    return lines


def _bytes(report: Report) -> Section:
    at = " or ".join(f"{n:,}" for n in sorted({m.context for m in report.models}))
    text = (
        f"What one decoded token touches, that is, has to read from memory, at {at} "
        "positions. The pale rest is what the model takes in memory besides. Experts and trees make the feed-forward "
        "smaller. They save nothing of attention, of the KV cache and of the head, and the router is read on top."
    )
    return Section("bytes", "Where a token's bytes go", text, figure(parts_chart(report.models)))


def _glance(report: Report) -> Section:
    models = report.models
    of, explained = figures(report)
    text = (
        "Letters stand for models in the pictures. Touched is what a token reads; weights is what there is to read; "
        "resident is what the process held."
    )
    return Section("figures", "All figures", text,
                   legend(kind_keys(models)) + table(of, "models", explained, [m.kind for m in models]))  # fmt: skip


def _roofline(report: Report) -> Section:
    text = (
        "Measured. The lines are this machine, with our own kernels: the slope is memory bandwidth, the flats are int8 "
        "and float32 arithmetic. Decoding has few multiply-adds per byte, so memory limits it; a prompt uses each "
        "weight for many tokens."
    )
    return Section("roofline", "Roofline", text, figure(roofline_chart(report.machine, report.models)))


def _tradeoff(report: Report) -> Section:
    scored = any(m.ppl for m in report.models)
    text = (
        "Measured. To the upper left is better: less to read, faster. A bubble's area is the memory of weights and "
        f"cache (predicted).{' Numbers beside the letters are perplexities: lower is better.' if scored else ''}"
    )
    return Section("tradeoff", "Memory, speed, quality", text, figure(tradeoff_chart(report.models)))


def _routing(i: int, m: Measured) -> tuple[Section, Section]:
    routed, of = m.routed, noun(m)
    assert routed is not None
    layers = routed.summary["layers"]
    unused = sum(layer["unused"] for layer in layers)
    merged = f" A cell is {routed.merged} neighbouring {of}." if routed.merged > 1 else ""
    text = (
        f"Measured: {routed.summary['tokens']:,} tokens{' (random ids)' if m.text == 'random' else ''}, "
        f"{span(routed.top_k)} of {span(routed.experts)} {of} per token in {len(layers)} layers; "
        f"{unused} of {sum(routed.experts):,} never used. A row per layer, a column one of the {of}; colours "
        f"are tokens by the mean of the layer: even loads are pale.{merged}"
    )
    steps = (
        f"A step reads the weights of all {of} that any of its tokens chose. The more they are, the fewer bytes "
        "are saved; multiply-adds are saved as before."
    )
    load = load_map(
        f"Tokens that {of} of {title(i, m)} got, by layer",
        of if routed.merged > 1 else "leaf" if m.kind == "fff" else "expert",
        routed.layers,
        np.array(routed.load),
        routed.experts,
        routed.merged,
    )
    return (
        Section(f"routing-{letter(i)}", f"Routing of {title(i, m)}", text, legend(LOAD_KEYS) + heat_map(load) +
                details("Layers in numbers", layer_table(routed.summary, title(i, m)))),
        Section(f"steps-{letter(i)}", f"Different {of} in a step: {title(i, m)}", steps, figure(distinct_chart(i, m))),
    )  # fmt: skip


def _batches(report: Report) -> tuple[Section, ...]:
    if not any(len(m.batches) > 1 for m in report.models):
        return ()
    text = (
        "Metered. Sequences decoded together share the weights that they read. A dense model's bytes per token fall "
        "most with each doubling; experts and leaves are shared less, since each sequence brings its own."
    )
    return (Section("batches", "Batches", text, figure(batch_chart(report.models))),)


def _contexts(report: Report) -> Section:
    text = (
        "Predicted. The KV cache grows with the context, in all kinds alike: experts and trees save nothing of it. "
        "Lines end at the context that a model was made for."
    )
    return Section("contexts", "Context", text, figure(context_chart(report.models)))
