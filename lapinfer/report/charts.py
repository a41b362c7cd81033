"""Every chart of the report: what it shows, with its legend, and the same in figures."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from lapinfer.report.drawing import Axis, Bar, Bars, Chart, Key, Line, Mark, Table, megabytes, short
from lapinfer.report.measured import Kind, Machine, Measured
from lapinfer.runtime.predict import PARTS

KINDS: dict[Kind, str] = {"dense": "dense", "moe": "mixture of experts", "fff": "fast feedforward trees"}
PART_NAMES = {"kv": "KV cache", "experts": "experts or leaves"}
"""Parts whose names say too little."""


def letter(i: int) -> str:
    """The name of the i-th model in charts."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def title(i: int, m: Measured) -> str:
    """The name of the i-th model in words."""
    return f"{letter(i)} {m.name}"


def ppl(m: Measured) -> str:
    """Perplexity in few digits."""
    value = 0.0 if m.ppl is None else m.ppl[0]
    return f"{value:.1f}" if value < 1e5 else f"{value:.0e}"


def part_name(part: str) -> str:
    return PART_NAMES.get(part, part)


def kind_keys(models: Sequence[Measured]) -> list[Key]:
    present = {m.kind for m in models}
    return [Key(f"mark {kind}", label) for kind, label in KINDS.items() if kind in present]


def part_keys(parts: Sequence[str]) -> list[Key]:
    return [Key(f"part {part}", part_name(part), "box") for part in parts]


def taken(m: Measured) -> int:
    """Bytes of all weights, and of the KV cache up to the context: what a model takes in memory, as predicted."""
    return m.weight_bytes + m.cache_bytes


def parts_chart(models: Sequence[Measured]) -> Bars:
    """A bar for each model: bytes that a decoded token touches, by part, and what else of the model is in memory."""
    present = [part for part in PARTS if any(m.decode.predicted.get(part) for m in models)]
    bars = []
    for i, m in enumerate(models):
        parts = [(part, m.decode.predicted[part]) for part in present if m.decode.predicted.get(part)]
        rest = max(taken(m) - m.decode.bytes, 0)
        bars.append(Bar(title(i, m), [
            (count, part, f"{title(i, m)}, {part_name(part)}: {megabytes(count)} MB, "
                          f"{100 * count / m.decode.bytes:.1f} % of what a token touches")
            for part, count in parts
        ], f"{megabytes(m.decode.bytes)} MB", (rest, f"of {megabytes(taken(m))} MB of weights and cache"),
            letter(i)))  # fmt: skip
    table = Table(
        "MB that a decoded token touches, by part, and that weights and KV cache take in memory",
        ["model", *map(part_name, present), "touched", "in memory"],
        [[title(i, m), *(megabytes(m.decode.predicted.get(part, 0)) for part in present),
          megabytes(m.decode.bytes), megabytes(taken(m))] for i, m in enumerate(models)],
    )  # fmt: skip
    return Bars("Bytes that a decoded token touches, by part", bars, part_keys(present), table)


def roofline_chart(machine: Machine, models: Sequence[Measured]) -> Chart:
    """Both axes logarithmic: the roofs of the machine, and the models' steps below them."""
    steps = [step for m in models for step in (m.decode, m.prompt)]
    ridges = {kind: peak / machine.bandwidth for kind, peak in machine.peaks.items()}
    x = Axis.around("multiply-adds per byte touched", [*(s.intensity for s in steps), *ridges.values()], 2.5)
    y = Axis.around("multiply-adds per second", [*(s.rate for s in steps), *machine.peaks.values()], 2.2)
    foot, top = max(x.low, y.low / machine.bandwidth), max(machine.peaks.values())
    roofs = [Line([(foot, foot * machine.bandwidth), (top / machine.bandwidth, top)], "roof")]
    roofs += [
        Line([(ridges[kind], peak), (x.high, peak)], "roof", f"{kind} {short(peak)}/s")
        for kind, peak in sorted(machine.peaks.items(), key=lambda item: -item[1])
    ]
    marks, rows = [], []
    for i, m in enumerate(models):
        for step in (m.decode, m.prompt):
            name = f"{title(i, m)}, {'decode' if step.tokens == 1 else f'prompt of {step.tokens} tokens'}"
            share = f"{100 * machine.share(step, m.arithmetic):.0f} %"
            rows.append([name, f"{step.intensity:.3g}", short(step.rate), share, m.arithmetic])
            tooltip = (
                f"{name}: {step.intensity:.3g} multiply-adds per byte, {short(step.rate)}/s, "
                f"{share} of the roof for {m.arithmetic}"
            )
            marks.append(Mark(step.intensity, step.rate, f"mark {m.kind}", tooltip, letter(i), square=step is m.prompt))
    keys = [Key("mark near", "decode"), Key("mark near", "prompt", "square"), *kind_keys(models)]
    table = Table(
        "Steps under the roofline",
        ["step", "multiply-adds per byte touched", "multiply-adds per second", "of the roof", "arithmetic"],
        rows,
    )
    return Chart("Roofline: multiply-adds per second by multiply-adds per byte touched", x, y, roofs, marks, keys,
                 table)  # fmt: skip


def tradeoff_chart(models: Sequence[Measured]) -> Chart:
    """Speed of decoding by bytes touched; the area of a bubble is the memory of the weights and the cache."""
    memory = [taken(m) for m in models]
    bubbles, points, rows = [], [], []
    for i, m in enumerate(models):
        place = m.decode.bytes / 1e6, m.decode.speed
        quality = f"no perplexity: {m.unscored}" if m.ppl is None else f"perplexity {ppl(m)}"
        figures = megabytes(m.decode.bytes), f"{m.decode.speed:,.0f}", megabytes(memory[i])
        rows.append([title(i, m), *figures, quality if m.ppl is None else ppl(m)])
        tooltip = "{}: {} MB touched per token, {} tok/s, {} MB of weights and cache, {}".format(
            title(i, m), *figures, quality
        )
        radius = max(34 * sqrt(memory[i] / max(memory)), 4)
        bubbles.append(Mark(*place, f"bubble {m.kind}", tooltip, radius=radius))
        label = letter(i) if m.ppl is None else f"{letter(i)} {ppl(m)}"
        points.append(Mark(*place, f"mark {m.kind}", label=label, radius=2.5))
    bubbles.sort(key=lambda bubble: -bubble.radius)
    x = Axis.around("MB touched per token (metered)", (m.decode.bytes / 1e6 for m in models), 1.8)
    y = Axis.around("tok/s, decode", (m.decode.speed for m in models), 1.7)
    table = Table(
        "Speed of decoding by bytes touched",
        ["model", "MB touched per token", "tok/s, decode", "MB of weights and cache", "perplexity"],
        rows,
    )
    return Chart("Speed of decoding by MB touched per token; a bubble's area is the memory of weights and cache",
                 x, y, (), [*bubbles, *points], kind_keys(models), table)  # fmt: skip


def batch_chart(models: Sequence[Measured]) -> Chart:
    """Bytes touched per token by sequences that are decoded together, each as a part of what one alone touches."""
    lines, marks, rows = [], [], []
    sizes = sorted({b.tokens for m in models for b in m.batches})
    for i, m in enumerate(models):
        if len(m.batches) < 2:
            continue
        points = [(b.tokens, 100 * b.bytes / m.batches[0].bytes) for b in m.batches]
        lines.append(Line(points, m.kind))
        marks += _marks(i, m, points, [
            f"{b.tokens} sequences: {megabytes(b.bytes)} MB per token ({share:.0f} %), "
            f"{1 / b.seconds:,.0f} tok/s together"
            for b, (_, share) in zip(m.batches, points, strict=True)
        ])  # fmt: skip
        found = {b.tokens: megabytes(b.bytes) for b in m.batches}
        rows.append([title(i, m), *(found.get(size, "") for size in sizes)])
    x = Axis("sequences in a step", 1, 1.25 * max(mark.x for mark in marks))
    y = Axis("% of one alone, bytes per token", 0, 105, log=False)
    table = Table("MB touched per token, by sequences that are decoded together", ["model", *map(str, sizes)], rows)
    return Chart("Bytes touched per token by sequences in a step", x, y, lines, marks, kind_keys(models), table)


def context_chart(models: Sequence[Measured]) -> Chart:
    """Bytes that a decoded token touches by the positions that it sees, predicted."""
    lines, marks, rows = [], [], []
    places = sorted({n for m in models for n, _ in m.contexts})
    for i, m in enumerate(models):
        points = [(n, size / 1e6) for n, size in m.contexts]
        lines.append(Line(points, m.kind))
        marks += _marks(i, m, points, [f"{n:,} positions: {megabytes(size)} MB" for n, size in m.contexts])
        found = {n: megabytes(size) for n, size in m.contexts}
        rows.append([title(i, m), *(found.get(n, "") for n in places)])
    x = Axis.around("positions that the token sees", (mark.x for mark in marks), 1.3)
    y = Axis.around("MB per token (predicted)", (mark.y for mark in marks), 1.3)
    head = ["model", *(f"{n:,}" for n in places)]
    table = Table("MB that a decoded token touches, by the positions that it sees", head, rows)
    return Chart("Bytes touched per token by context", x, y, lines, marks, kind_keys(models), table)


def _marks(i: int, m: Measured, points: Sequence[tuple[float, float]], tooltips: Sequence[str]) -> list[Mark]:
    """Of a model's line, whose end has its letter."""
    ends = (len(points) - 1) * [""] + [letter(i)]
    return [
        Mark(x, y, f"mark {m.kind}", f"{title(i, m)}, {tooltip}", end, radius=3.5)
        for (x, y), tooltip, end in zip(points, tooltips, ends, strict=True)
    ]
