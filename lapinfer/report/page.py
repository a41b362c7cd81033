"""The page of a report: one HTML file that needs nothing else, its pictures inline SVG, made from a `Report` alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lapinfer.report.against import Figures, against_dense
from lapinfer.report.charts import (
    LOAD_KEYS,
    batch_chart,
    context_chart,
    distinct_chart,
    kind_keys,
    letter,
    load_map,
    noun,
    parts_chart,
    roofline_chart,
    tradeoff_chart,
)
from lapinfer.report.document import document, figure, items, legend, pair, section, table, wide
from lapinfer.report.drawing import megabytes, short, svg
from lapinfer.report.experts import layer_table, span
from lapinfer.report.measured import Machine, Measured, Report, Step
from lapinfer.report.page_whatif import script, whatif
from lapinfer.report.roofline import BUSY
from lapinfer.shown import escape

OVER = 1.03
"""Shares of the roofline up to this are the roofline itself, as well as it can be measured."""
MAP_WIDTH = 440
"""Of the map of loads, which stands beside a chart."""

COLUMNS: dict[str, tuple[str, Callable[[Machine, Measured], str]]] = {
    "parameters": ("total / of a token", lambda _, m: f"{short(m.parameters)} / {short(m.active)}"),
    "touched": (
        "MB per token, predicted / metered",
        lambda _, m: f"{megabytes(sum(m.decode.predicted.values()))} / {megabytes(m.decode.bytes)}",
    ),
    "decode": ("tok/s (of roofline)", lambda machine, m: _speed(machine, m, m.decode)),
    "prompt": ("tok/s (of roofline)", lambda machine, m: _speed(machine, m, m.prompt)),
    "perplexity": ("lower is better", lambda _, m: _perplexity(m)),
    "weights": ("MB, from the spec", lambda _, m: megabytes(m.weight_bytes)),
    "resident": ("MB, measured", lambda _, m: megabytes(m.resident) if m.resident else "not measured"),
    "format": ("bits per weight", lambda _, m: f"{m.format}, {m.bits:.2f}"),
    "multiply-adds": ("per token, counted", lambda _, m: short(m.decode.macs)),
}
"""Of the headline table: heading, unit, cell."""


def _speed(machine: Machine, m: Measured, step: Step) -> str:
    share = machine.share(step, m.arithmetic)
    measured = f"{step.speed:,.0f} ± {100 * step.spread:.0f} %"
    told = "above the roof" if share > OVER and not _in_caches(machine, m) else f"{100 * share:.0f} %"
    # A narrow cell may break before the share alone.
    return " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in (measured, f"({told})"))


def _in_caches(machine: Machine, m: Measured) -> bool:
    return m.weight_bytes <= machine.caches


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
    introduction = (
        f"{escape(str(machine.about.get('cpu', '')))}, {machine.threads} thread{'s' * (machine.threads != 1)},\n"
        f"{machine.bandwidth / 1e9:.1f} GB/s read; {escape(report.created)}, lapinfer "
        f"{escape(str(machine.about['lapinfer']))}"
    )
    body = "".join((
        _problems(report), _headline(report), pair(_roofline(report), _tradeoff(report)), _parts(report),
        "".join(_routing(i, m) for i, m in enumerate(models)), pair(_batches(report), _contexts(report)),
        section("What if", "Predicted, not measured: what a decoded token would touch, and the model take. "
                "The speed is the most that bandwidth allows; small models reach less. Experts keep their size, so "
                "more of them take more memory. At a model's own settings the bytes are exactly those of the table.",
                whatif(machine, models)),
    ))  # fmt: skip
    return document("What dense, MoE and FFF cost", introduction, body, script(machine, models))


def _problems(report: Report) -> str:
    lines = [f"Could not be measured: {name}: {message.removeprefix(f'{name}: ')}" for name, message in report.failures]
    if report.interrupted:
        lines.append("Stopped by Ctrl-C: further models, and further turns of these, were not measured.")
    return "".join(f'<p class="bad">{escape(line)}</p>\n' for line in lines)


def _headline(report: Report) -> str:
    machine, models = report.machine, report.models
    head = ["model", *(f"{escape(name)}<small>{escape(unit)}</small>" for name, (unit, _) in COLUMNS.items())]
    rows = [
        [
            f'<span class="key {m.kind}"></span>{letter(i)} {escape(m.name)}',
            *(escape(cell(machine, m)) for _, cell in COLUMNS.values()),
        ]
        for i, m in enumerate(models)
    ]
    contexts = sorted({m.context for m in models})
    seen = f"{contexts[0]:,}" if len(contexts) == 1 else f"{contexts[0]:,} to {contexts[-1]:,}"
    of_one_text = len({bool(m.ppl[2]) for m in models if m.ppl}) == 1  # else cards' texts beside this report's
    answers = against_dense([
        Figures(f"{letter(i)} {m.name}", m.parameters, m.active, m.weight_bytes, m.decode.bytes, m.decode.speeds,
                m.ppl[0] if m.ppl and of_one_text else None, m.paired)
        for i, m in enumerate(models)
    ])  # fmt: skip
    text = f"A decoded token sees {seen} positions, and a prompt is as long. Letters stand for models in the pictures."
    return section("At a glance", text, items("answers", answers) + table(head, rows, "heads") +
                   legend(kind_keys(models)) + items("notes", _notes(report)))  # fmt: skip


def _notes(report: Report) -> list[str]:
    """How the headline table is to be read."""
    models = report.models
    off = [m.name for m in models if sum(m.decode.predicted.values()) != m.decode.bytes]
    agree = f"they differ for {', '.join(off)}: that is a bug" if off else "they agree to the byte here"
    scored = sorted({f"{m.ppl[2]:.0f}" for m in models if m.ppl and m.ppl[2]})
    from_card = [m.name for m in models if m.ppl and not m.ppl[2]]
    without_tokenizer = [m.name for m in models if m.text == "random"]
    notes = [
        f"Touched is what a token has to read: predicted from the spec alone, and metered while running; {agree}.",
        "Resident is the memory that the process gave back when the model was closed: weights, of a file only those "
        "that were touched, the KV cache, and the buffers of a prompt's step, which may be most of a small model's.",
        f"Speeds are measured, medians of steps{_order(models)} Multiply-adds are counted, attention's included.",
        "± is half the distance between the quartiles of the steps. A ratio of speeds is the median of those of each "
        "turn, with the range that it may have; where that could be 1, or models took no turns, it is not told.",
        "% of roofline: the least time that bytes and multiply-adds allow on this machine, by the time taken. Where "
        "activations have 16 bits, as small models' have by default, a product takes two of int8: their prompts cannot "
        "reach the roof.",
        *_above_the_roof(report),
    ]
    if scored:
        notes.append(
            f"Perplexity is of {report.text}, {', '.join(scored)} tokens scored. Of a short text, it is rough."
        )
    if from_card:
        notes.append(f"Perplexity of {', '.join(from_card)} is from their cards: of a whole novel that they never saw.")
    if any("random" in m.unscored for m in models):
        notes.append("Models with random weights have real costs and no quality: that was not measured.")
    if without_tokenizer:
        notes.append(
            f"No tokenizer, so random token ids were run, and were routed unlike text: {', '.join(without_tokenizer)}."
        )
    return notes


def _order(models: list[Measured]) -> str:
    if len(models) < 2:
        return "."
    if all(m.paired for m in models):
        return ", in turns with the other models, so that what else the machine did meets all of them alike."
    return (
        ", one model after the other, since they do not fit in memory together: a program that was busy meanwhile "
        "slowed the model that it met."
    )


def _above_the_roof(report: Report) -> list[str]:
    """What is faster than the machine, and why that can be."""
    machine = report.machine
    above = [m for m in report.models if machine.share(m.decode, m.arithmetic) > OVER]
    small = [m.name for m in above if _in_caches(machine, m)]
    others = [f"{m.name} ({megabytes(m.weight_bytes)} MB)" for m in above if not _in_caches(machine, m)]
    caches = f"the largest cache, {megabytes(machine.caches)} MB"
    notes: list[str] = []
    if small:
        notes.append(f"More than 100 %: the weights of {', '.join(small)} fit {caches}.")
    if others:
        notes.append(
            f"Above the roof: {', '.join(others)} do not fit {caches}, so the bandwidth was measured too low: other "
            "programs ran meanwhile. Measure again on a quiet machine."
        )
    if machine.slowest < BUSY * machine.bandwidth:
        notes.append(
            f"Bandwidth was measured before and after each turn: it went from {machine.slowest / 1e9:.1f} to "
            f"{machine.bandwidth / 1e9:.1f} GB/s, so other programs ran meanwhile. Speeds are lower than they could be."
        )
    return notes


def _roofline(report: Report) -> str:
    text = (
        "The lines are this machine, measured with our own kernels: the slope is memory bandwidth, the flats are int8 "
        "and float32 arithmetic. Decoding has few multiply-adds per byte, so memory limits it; a prompt uses each "
        "weight for many tokens."
    )
    return section("Roofline (measured)", text, figure(roofline_chart(report.machine, report.models)))


def _tradeoff(report: Report) -> str:
    scored = any(m.ppl for m in report.models)
    text = (
        "Measured. To the upper left is better: less to read, faster. A bubble's area is the memory of weights and "
        f"cache (predicted).{' Numbers beside the letters are perplexities: lower is better.' if scored else ''}"
    )
    return section("Memory, speed, quality", text, figure(tradeoff_chart(report.models)))


def _parts(report: Report) -> str:
    contexts = sorted({m.context for m in report.models})
    text = (
        f"Bytes a decoded token touches at {' or '.join(f'{c:,}' for c in contexts)} positions, predicted and metered. "
        "Experts and trees make the feed-forward smaller. They save nothing of attention, of the KV cache and of the "
        "head, and the router is read on top."
    )
    return section("Where the bytes go", text, figure(parts_chart(report.models)))


def _routing(i: int, m: Measured) -> str:
    routed = m.routed
    if routed is None:
        return ""
    layers, load = routed.summary["layers"], np.array(routed.load)
    unused = sum(layer["unused"] for layer in layers)
    cells = [-(-E // routed.merged) for E in routed.experts]
    arrays = {"tokens_routed": load, "experts": np.array(cells), "layers": np.array(routed.layers)}
    merged = f" A cell is {routed.merged} neighbouring {noun(m)}." if routed.merged > 1 else ""
    text = (
        f"{routed.summary['tokens']:,} tokens{' (random ids)' if m.text == 'random' else ''}, "
        f"{span(routed.top_k)} of {span(routed.experts)} {noun(m)} per token in {len(layers)} layers; "
        f"{unused} of {sum(routed.experts):,} never used. A row per layer, a column one of the {noun(m)}; colours "
        f"are tokens by the mean of the layer: even loads are pale.{merged}"
    )
    steps = (
        f"A step reads the weights of all {noun(m)} that any of its tokens chose. The more they are, the fewer bytes "
        "are saved; multiply-adds are saved as before."
    )
    return pair(
        section(f"Routing of {letter(i)} {m.name} (measured)", text, legend(LOAD_KEYS) +
                wide(svg(load_map(arrays, MAP_WIDTH))) + "<details><summary>Layers in numbers</summary>"
                f"{layer_table(routed.summary)}</details>"),
        section(f"Different {noun(m)} in a step: {letter(i)} {m.name}", steps, figure(distinct_chart(m))),
    )  # fmt: skip


def _batches(report: Report) -> str:
    if not any(len(m.batches) > 1 for m in report.models):
        return ""
    text = (
        "Sequences decoded together share the weights that they read. A dense model's bytes per token fall most with "
        "each doubling; experts and leaves are shared less, since each sequence brings its own."
    )
    return section("Batches (metered)", text, figure(batch_chart(report.models)))


def _contexts(report: Report) -> str:
    text = (
        "The KV cache grows with the context, in all kinds alike: experts and trees save nothing of it. Lines end at "
        "the context that a model was made for."
    )
    return section("Context (predicted)", text, figure(context_chart(report.models)))
