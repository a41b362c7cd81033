"""Every chart of the report, of the experts' page and of the pictures: what it shows, with its legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np

from lapinfer.report.drawing import (
    Axis,
    Bar,
    Bars,
    Box,
    Chart,
    Drawing,
    Key,
    Line,
    Mark,
    Shape,
    Text,
    megabytes,
    short,
)
from lapinfer.report.measured import Kind, Machine, Measured
from lapinfer.runtime.chance import expected_means
from lapinfer.runtime.predict import PARTS

KINDS: dict[Kind, str] = {"dense": "dense", "moe": "mixture of experts", "fff": "fast feedforward trees"}
THEORY = (Key("line uniform", "independent tokens, equal loads", "line"),
          Key("line load", "independent tokens, these loads", "line"))  # fmt: skip
LARGEST_BATCH = 1024

LOAD_STEPS = (
    ("≤ ¼", 1 / 4),
    ("¼ – ½", 1 / 2),
    ("½ – ⅘", 4 / 5),
    ("⅘ – 1¼", 5 / 4),
    ("1¼ – 2", 2),
    ("2 – 4", 4),
    ("> 4", np.inf),
)
"""Colours of the map of loads, from cold to hot: load by the layer's mean, up to this."""
LOAD_KEYS = (Key("none", "unused", "box"),
             *(Key(f"c{i}", f"{label} ×", "box") for i, (label, _) in enumerate(LOAD_STEPS)))  # fmt: skip
MAP_WIDTH = 900
"""Pixels that the cells of a row share, when that makes them neither too small nor too large."""


def letter(i: int) -> str:
    """The name of the i-th model in charts."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def noun(m: Measured) -> str:
    return "leaves" if m.kind == "fff" else "experts"


def ppl(m: Measured) -> str:
    """Perplexity in few digits."""
    value = 0.0 if m.ppl is None else m.ppl[0]
    return f"{value:.1f}" if value < 1e5 else f"{value:.0e}"


def kind_keys(models: Sequence[Measured]) -> list[Key]:
    present = {m.kind for m in models}
    return [Key(f"mark {kind}", label) for kind, label in KINDS.items() if kind in present]


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
    marks = []
    for i, m in enumerate(models):
        for step in (m.decode, m.prompt):
            tooltip = (
                f"{letter(i)} {m.name}, {'decode' if step.tokens == 1 else f'prompt of {step.tokens} tokens'}: "
                f"{step.intensity:.3g} multiply-adds per byte, {short(step.rate)}/s, "
                f"{100 * machine.share(step, m.arithmetic):.0f} % of the roof for {m.arithmetic}"
            )
            marks.append(Mark(step.intensity, step.rate, f"mark {m.kind}", tooltip, letter(i), square=step is m.prompt))
    keys = [Key("mark near", "decode"), Key("mark near", "prompt", "square"), *kind_keys(models)]
    return Chart("roofline", x, y, roofs, marks, keys)


def tradeoff_chart(models: Sequence[Measured]) -> Chart:
    """Speed of decoding by bytes touched; the area of a bubble is the memory of the weights and the cache."""
    memory = [m.weight_bytes + m.cache_bytes for m in models]
    bubbles, points = [], []
    for i, m in enumerate(models):
        place = m.decode.bytes / 1e6, m.decode.speed
        quality = f"no perplexity: {m.unscored}" if m.ppl is None else f"perplexity {ppl(m)}"
        tooltip = (
            f"{letter(i)} {m.name}: {megabytes(m.decode.bytes)} MB touched per token, {m.decode.speed:,.0f} tok/s, "
            f"{megabytes(memory[i])} MB in memory, {quality}"
        )
        radius = max(34 * sqrt(memory[i] / max(memory)), 4)
        bubbles.append(Mark(*place, f"bubble {m.kind}", tooltip, radius=radius))
        label = letter(i) if m.ppl is None else f"{letter(i)} {ppl(m)}"
        points.append(Mark(*place, f"mark {m.kind}", label=label, radius=2.5))
    bubbles.sort(key=lambda bubble: -bubble.radius)
    x = Axis.around("MB touched per token (metered)", (m.decode.bytes / 1e6 for m in models), 1.8)
    y = Axis.around("tok/s, decode", (m.decode.speed for m in models), 1.7)
    return Chart("memory against speed", x, y, (), [*bubbles, *points], kind_keys(models))


def parts_chart(models: Sequence[Measured]) -> Bars:
    """A bar for each model: bytes that a decoded token touches, by part, as predicted and metered."""
    bars = []
    for i, m in enumerate(models):
        parts = [(part, m.decode.predicted.get(part, 0)) for part in PARTS]
        bars.append(Bar(letter(i), [
            (count, part, f"{letter(i)} {m.name}, {part}: {megabytes(count)} MB, {100 * count / m.decode.bytes:.1f} %")
            for part, count in parts if count
        ], f"{megabytes(m.decode.bytes)} MB"))  # fmt: skip
    present = [part for part in PARTS if any(m.decode.predicted.get(part) for m in models)]
    return Bars("bytes by part", bars, [Key(f"part {part}", part, "box") for part in present])


def batch_chart(models: Sequence[Measured]) -> Chart:
    """Bytes touched per token by sequences that are decoded together, each as a part of what one alone touches."""
    lines, marks = [], []
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
    x = Axis("sequences in a step", 1, 1.25 * max(mark.x for mark in marks))
    y = Axis("% of one alone, bytes per token", 0, 105, log=False)
    return Chart("bytes by batch", x, y, lines, marks, kind_keys(models))


def context_chart(models: Sequence[Measured]) -> Chart:
    """Bytes that a decoded token touches by the positions that it sees, predicted."""
    lines, marks = [], []
    for i, m in enumerate(models):
        points = [(n, size / 1e6) for n, size in m.contexts]
        lines.append(Line(points, m.kind))
        marks += _marks(i, m, points, [f"{n:,}: {megabytes(size)} MB" for n, size in m.contexts])
    x = Axis.around("positions that the token sees", (mark.x for mark in marks), 1.3)
    y = Axis.around("MB per token (predicted)", (mark.y for mark in marks), 1.3)
    return Chart("bytes by context", x, y, lines, marks, kind_keys(models))


def _marks(i: int, m: Measured, points: Sequence[tuple[float, float]], tooltips: Sequence[str]) -> list[Mark]:
    """Of a model's line, whose end has its letter."""
    ends = (len(points) - 1) * [""] + [letter(i)]
    return [
        Mark(x, y, f"mark {m.kind}", f"{letter(i)} {m.name}, {tooltip}", end, radius=3.5)
        for (x, y), tooltip, end in zip(points, tooltips, ends, strict=True)
    ]


def distinct_chart(m: Measured) -> Chart:
    """Different experts of a layer by tokens in a step: to be expected, and of steps that were run."""
    assert m.routed is not None
    marks = [Mark(b.tokens, b.distinct, f"mark {m.kind}", f"{b.tokens} sequences: {b.distinct:.1f} {noun(m)}")
             for b in m.batches if b.distinct is not None]  # fmt: skip
    neighbours = [Mark(n, v, "mark near", f"{n:.0f} neighbouring tokens: {v:.1f} {noun(m)}", radius=4, square=True)
                  for n, v in m.routed.prompts]  # fmt: skip
    keys = [Key(f"mark {m.kind}", "measured: sequences together"),
            Key("mark near", "measured: neighbours in a text", "square")]  # fmt: skip
    return _distinct(
        noun(m), np.mean(m.routed.experts), m.routed.uniform, m.routed.by_load, [*neighbours, *marks], keys
    )


def recorded_distinct_chart(arrays: dict[str, np.ndarray], step_sizes: Sequence[dict[str, float]]) -> Chart:
    """The same of a `Routing` that was recorded: arrays and step_sizes are its own."""
    tokens = 2.0 ** np.arange(0, np.log2(LARGEST_BATCH) + 0.1, 0.25)
    uniform, by_load = (np.stack([tokens, mean], axis=1).tolist() for mean in expected_means(arrays, tokens))
    marks = [
        Mark(
            min(step["tokens"], LARGEST_BATCH), step["distinct"], "mark moe",
            f"{step['steps']:,} steps of {step['tokens']:.4g} tokens: {step['distinct']:.1f} different experts; "
            f"independent tokens: {step['by_load']:.1f} with these loads, {step['uniform']:.1f} with equal ones",
        )
        for step in step_sizes
    ]  # fmt: skip
    return _distinct("experts", arrays["experts"].mean(), uniform, by_load, marks, [Key("mark moe", "measured")])


def _distinct(
    noun: str, experts: Any, uniform: Sequence[Sequence[float]], by_load: Sequence[Sequence[float]],
    marks: Sequence[Mark], keys: Sequence[Key],
) -> Chart:  # fmt: skip
    lines = [Line([(n, v) for n, v in points], kind) for points, kind in ((uniform, "uniform"), (by_load, "load"))]
    x = Axis("tokens in a step", 1, uniform[-1][0])
    y = Axis(f"different {noun} per layer", 0, 1.03 * float(experts), log=False)
    return Chart(f"different {noun}", x, y, lines, marks, [*THEORY, *keys])


def distinct_shares_chart(models: Sequence[Measured]) -> Chart:
    """Share of a layer's experts or leaves that a step touches, of all routed models together."""
    lines, marks = [], []
    for i, m in enumerate(models):
        if m.routed is None:
            continue
        percent = 100 / float(np.mean(m.routed.experts))
        for points, dashes in ((m.routed.uniform, " uniform"), (m.routed.by_load, "")):
            lines.append(Line([(n, percent * v) for n, v in points], m.kind + dashes))
        points = [(b.tokens, percent * b.distinct) for b in m.batches if b.distinct is not None]
        marks += _marks(i, m, points, [""] * len(points))
    x = Axis("tokens in a step", 1, max(x for line in lines for x, _ in line.points))
    y = Axis("% of a layer's experts or leaves touched", 0, 105, log=False)
    keys = [replace(key, label=f"{key.label}, measured") for key in kind_keys([m for m in models if m.routed])]
    return Chart("different experts", x, y, lines, marks, [THEORY[0], replace(THEORY[1], kind="line near"), *keys])


def reuse_chart(arrays: dict[str, np.ndarray]) -> Bars:
    """Share of the uses of experts, all layers, by the tokens since the last one; below them first uses."""
    counts = arrays["reuse"].sum(axis=0)
    used = np.flatnonzero(counts)
    rows = [
        ("1" if i == 0 else f"{2**i}–{2 ** (i + 1) - 1}", int(counts[i]), "bar")
        for i in range(int(used[-1]) + 1 if len(used) else 0)
    ]
    rows.append(("first use", int(arrays["first_use"].sum()), "first"))
    total = max(sum(count for _, count, _ in rows), 1)
    return Bars("reuse", [
        Bar(name, [(count, kind, f"{name}: {count:,} uses")], f"{100 * count / total:.1f} %")
        for name, count, kind in rows
    ])  # fmt: skip


def load_map(arrays: dict[str, np.ndarray], wide: int = MAP_WIDTH) -> Drawing:
    """Load of each expert [L, E] as a map, about so wide, whose cells say their numbers when pointed at."""
    routed, experts = arrays["tokens_routed"], arrays["experts"]
    L, E = routed.shape
    w, h = min(max(wide // E, 4), 28), 16 if L <= 32 else 12
    left, top = 30, 18
    numbered = range(0, E, 16 if E > 64 else 8 if E > 16 else 1)
    shapes: list[Shape] = [Text(left + w * e + w / 2, top - 5, str(e), "middle") for e in numbered]
    for i, layer in enumerate(arrays["layers"]):
        y = top + i * h
        shapes.append(Text(left - 6, y + h - 4, str(layer), "end"))
        mean = max(float(routed[i].sum()) / int(experts[i]), 1e-9)
        for e, count in enumerate(routed[i, : experts[i]].tolist()):
            tooltip = f"layer {layer}, expert {e}: {count:,} tokens, {count / mean:.2f} × the mean"
            shapes.append(Box(left + e * w, y, w - 1, h - 1, _load_kind(count / mean), tooltip))
    return Drawing("load", left + E * w + 20, top + L * h, shapes, fixed=True)


def _load_kind(ratio: float) -> str:
    if ratio == 0:
        return "none"
    return f"c{next(i for i, (_, most) in enumerate(LOAD_STEPS) if ratio <= most)}"
