"""The charts that compare models: roofline, speed against memory, bytes by part, batches, contexts."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from lapinfer.report import page_charts as draw
from lapinfer.report.measured import Machine, Measured, Routed
from lapinfer.report.page_charts import Labels, Scale, mb, short
from lapinfer.runtime.predict import PARTS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter(i: int) -> str:
    """The name of the i-th model in charts."""
    return LETTERS[i % 26] + (str(i // 26) if i >= 26 else "")


def roofline_chart(machine: Machine, models: Sequence[Measured]) -> str:
    """Multiply-adds a second by multiply-adds a byte, both logarithmic: roofs of the machine, steps of the models."""
    across, up = draw.frame()
    steps = [step for model in models for step in (model.decode, model.prompt)]
    ridges = [peak / machine.bandwidth for peak in machine.peaks.values()]
    x = draw.spread([*(s.intensity for s in steps), *ridges], *across, room=2.5)
    y = draw.spread([*(s.macs / s.seconds for s in steps), *machine.peaks.values()], *up, room=2.2)
    parts = [draw.axes(x, y, "multiply-adds a byte touched", "multiply-adds a second")]
    labels = Labels()
    slope_from = max(x.low, y.low / machine.bandwidth)
    top = max(machine.peaks.values())
    corner = (x(top / machine.bandwidth), y(top))
    foot = (x(slope_from), y(slope_from * machine.bandwidth))
    parts.append(draw.polyline([foot, corner], "roof"))
    labels.keep_clear_of_line([foot, corner])
    for kind, peak in sorted(machine.peaks.items(), key=lambda item: -item[1]):
        parts.append(draw.polyline([(x(peak / machine.bandwidth), y(peak)), (x.stop, y(peak))], "roof"))
        said, left = f"{kind} {short(peak)}/s", x(peak / machine.bandwidth) + 6
        parts.append(draw.text(left, y(peak) + 14, said, "roofname"))
        for step in (10, 30, 50, 70):
            labels.keep_clear(left + step, y(peak) + 10, 10)
    points = [
        (i, model, step, mark)
        for i, model in enumerate(models)
        for step, mark in ((model.decode, draw.dot), (model.prompt, draw.square))
    ]
    for _, _, step, _ in points:
        labels.keep_clear(x(step.intensity), y(step.macs / step.seconds), 5)
    for i, model, step, mark in points:
        px, py = x(step.intensity), y(step.macs / step.seconds)
        said = (
            f"{letter(i)} {model.name}, {'decode' if step.tokens == 1 else f'prompt of {step.tokens} tokens'}: "
            f"{step.intensity:.3g} multiply-adds a byte, {short(step.macs / step.seconds)}/s, "
            f"{100 * machine.share(step, model.arithmetic):.0f} % of the roof for {model.arithmetic}"
        )
        parts.append(mark(px, py, 4.5, f"mark {model.kind}", said))
        parts.append(labels.place(px, py, 7, letter(i)))
    return draw.svg("".join(parts), "roofline")


def tradeoff_chart(models: Sequence[Measured]) -> str:
    """Speed of decoding by bytes touched; the area of a bubble is the memory of the weights and the cache."""
    across, up = draw.frame()
    x = draw.spread([m.decode.bytes / 1e6 for m in models], *across, room=1.8)
    y = draw.spread([m.decode.speed for m in models], *up, room=1.7)
    largest = max(m.weight_bytes + m.cache_bytes for m in models)
    parts, labels = [draw.axes(x, y, "MB touched a token (metered)", "tok/s, decode")], Labels()
    placed = [
        (i, m, x(m.decode.bytes / 1e6), y(m.decode.speed),
         max(34 * sqrt((m.weight_bytes + m.cache_bytes) / largest), 4))
        for i, m in enumerate(models)
    ]  # fmt: skip
    for i, m, px, py, radius in sorted(placed, key=lambda p: -p[4]):
        said = (
            f"{letter(i)} {m.name}: {mb(m.decode.bytes)} MB touched a token, {m.decode.speed:,.0f} tok/s, "
            f"{mb(m.weight_bytes + m.cache_bytes)} MB in memory, {_quality(m)}"
        )
        parts.append(draw.dot(px, py, radius, f"bubble {m.kind}", said))
        parts.append(f'<circle class="mark {m.kind}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>')
        labels.keep_clear(px, py, 3)
    for i, m, px, py, _ in placed:
        said = letter(i) if m.ppl is None else f"{letter(i)} {ppl(m)}"
        parts.append(labels.place(px, py, 8, said))
    return draw.svg("".join(parts), "memory against speed")


def ppl(m: Measured) -> str:
    """Perplexity in few digits."""
    value = 0.0 if m.ppl is None else m.ppl[0]
    return f"{value:.1f}" if value < 1e5 else f"{value:.0e}"


def _quality(m: Measured) -> str:
    return f"no perplexity: {m.unscored}" if m.ppl is None else f"perplexity {ppl(m)}"


def parts_chart(models: Sequence[Measured]) -> str:
    """A bar for each model: bytes that a decoded token touches, by part, as predicted and metered."""
    left, right, h = 26, 60, 26
    most = max(m.decode.bytes for m in models)
    across = Scale(0, most, left, draw.WIDTH - right, log=False)
    parts: list[str] = []
    for i, m in enumerate(models):
        at, top = across.start, i * h + 4
        parts.append(draw.text(left - 8, top + 14, letter(i), "end label"))
        for part in PARTS:
            count = m.decode.predicted.get(part, 0)
            if not count:
                continue
            width = across(count) - across.start
            said = f"{letter(i)} {m.name}, {part}: {mb(count)} MB, {100 * count / m.decode.bytes:.1f} %"
            parts.append(
                f'<rect class="part {part}" x="{at:.2f}" y="{top}" width="{max(width, 0.3):.2f}" height="{h - 7}">'
                f"{draw.title(said)}</rect>"
            )
            at += width
        parts.append(draw.text(at + 6, top + 14, f"{mb(m.decode.bytes)} MB"))
    return draw.svg("".join(parts), "bytes by part", len(models) * h + 6)


def batch_chart(models: Sequence[Measured]) -> str:
    """Bytes touched a token by sequences that are decoded together, each as a part of what one alone touches."""
    across, up = draw.frame()
    ran = [(i, m) for i, m in enumerate(models) if len(m.batches) > 1]
    shares = {i: [(b.tokens, 100 * b.bytes / m.batches[0].bytes) for b in m.batches] for i, m in ran}
    tokens = [b.tokens for _, m in ran for b in m.batches]
    x, y = Scale(1, max(tokens) * 1.25, *across), Scale(0, 105, *up, log=False)
    parts, labels = [draw.axes(x, y, "sequences in a step", "% of one alone, bytes a token")], Labels()
    for i, m in ran:
        points = [(x(n), y(share)) for n, share in shares[i]]
        parts.append(draw.polyline(points, m.kind))
        labels.keep_clear_of_line(points)
        for (n, share), b in zip(shares[i], m.batches, strict=True):
            said = (
                f"{letter(i)} {m.name}, {n} sequences: {mb(b.bytes)} MB a token ({share:.0f} %), "
                f"{1 / b.seconds:,.0f} tok/s together"
            )
            parts.append(draw.dot(x(n), y(share), 4, f"mark {m.kind}", said))
            labels.keep_clear(x(n), y(share), 4)
    for i, _ in ran:
        at = shares[i][-1]
        parts.append(labels.place(x(at[0]), y(at[1]), 7, letter(i)))
    return draw.svg("".join(parts), "bytes by batch")


def context_chart(models: Sequence[Measured]) -> str:
    """Bytes that a decoded token touches by the positions that it sees, predicted."""
    across, up = draw.frame()
    every = [point for m in models for point in m.contexts]
    x = draw.spread([n for n, _ in every], *across, room=1.3)
    y = draw.spread([size / 1e6 for _, size in every], *up, room=1.3)
    parts, labels = [draw.axes(x, y, "positions that the token sees", "MB a token (predicted)")], Labels()
    for i, m in enumerate(models):
        points = [(x(n), y(size / 1e6)) for n, size in m.contexts]
        parts.append(draw.polyline(points, m.kind))
        labels.keep_clear_of_line(points)
        for (px, py), (n, size) in zip(points, m.contexts, strict=True):
            labels.keep_clear(px, py, 3)
            parts.append(draw.dot(px, py, 3, f"mark {m.kind}", f"{letter(i)} {m.name}, {n:,}: {mb(size)} MB"))
    for i, m in enumerate(models):
        n, size = m.contexts[-1]
        parts.append(labels.place(x(n), y(size / 1e6), 7, letter(i)))
    return draw.svg("".join(parts), "bytes by context")


def distinct_chart(routed: Routed, m: Measured) -> str:
    """Different experts of a layer by tokens in a step: equal loads, these loads, and what was run."""
    across, up = draw.frame()
    x, y = Scale(1, 512, *across), Scale(0, sum(routed.experts) / len(routed.experts) * 1.03, *up, log=False)
    noun = "leaves" if m.kind == "fff" else "experts"
    parts = [draw.axes(x, y, "tokens in a step", f"different {noun} a layer")]
    for kind, points in (("uniform", routed.uniform), ("load", routed.by_load)):
        parts.append(draw.polyline([(x(n), y(v)) for n, v in points], kind))
    for n, value in routed.prompts:
        parts.append(draw.square(x(n), y(value), 4, "mark near", f"{n:.0f} neighbouring tokens: {value:.1f} {noun}"))
    for b in m.batches:
        if b.distinct is not None:
            said = f"{b.tokens} sequences: {b.distinct:.1f} {noun}"
            parts.append(draw.dot(x(b.tokens), y(b.distinct), 4.5, f"mark {m.kind}", said))
    return draw.svg("".join(parts), f"different {noun}")
