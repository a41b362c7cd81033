"""Charts of what was routed: loads, different experts in a step, uses again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lapinfer.report.charts import kind_keys, letter, title
from lapinfer.report.drawing import Axis, Bar, Bars, Chart, Key, Line, Mark, Table
from lapinfer.report.measured import Measured
from lapinfer.runtime.chance import expected_means

THEORY = (Key("line uniform", "by chance: equal loads", "line"),
          Key("line load", "by chance: these loads", "line"))  # fmt: skip
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


def noun(m: Measured) -> str:
    return "leaves" if m.kind == "fff" else "experts"


@dataclass(frozen=True, slots=True)
class LoadMap:
    """A row for each layer, a column for each expert or leaf, or for neighbours together.

    noun: what a column is; columns: their numbers; rows: (layer, its mean load, [(tokens, kind of colour)]).
    """

    caption: str
    noun: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, float, Sequence[tuple[int, str]]]]


def load_map(
    caption: str, noun: str, layers: Sequence[int], load: np.ndarray, experts: Sequence[int], merged: int = 1
) -> LoadMap:  # fmt: skip
    """load: tokens [L, cells], of `merged` neighbours each; experts: of each layer."""
    cells = load.shape[1]
    names = [str(e * merged) if merged == 1 else f"{e * merged}–{(e + 1) * merged - 1}" for e in range(cells)]
    rows = []
    for layer, counts, E in zip(layers, load, experts, strict=True):
        own = counts[: -(-E // merged)].tolist()
        mean = sum(own) / len(own)
        rows.append((str(layer), mean, [(count, _load_kind(count / (mean or 1))) for count in own]))
    return LoadMap(caption, noun, names, rows)


def _load_kind(ratio: float) -> str:
    if ratio == 0:
        return "none"
    return f"c{next(i for i, (_, most) in enumerate(LOAD_STEPS) if ratio <= most)}"


def distinct_chart(i: int, m: Measured) -> Chart:
    """Different experts of a layer by tokens in a step: to be expected, and of steps that were run."""
    assert m.routed is not None
    of = noun(m)
    marks = [Mark(b.tokens, b.distinct, f"mark {m.kind}", f"{b.tokens} sequences: {b.distinct:.1f} {of}")
             for b in m.batches if b.distinct is not None]  # fmt: skip
    neighbours = [Mark(n, v, "mark near", f"{n:.0f} neighbouring tokens: {v:.1f} {of}", radius=4, square=True)
                  for n, v in m.routed.prompts]  # fmt: skip
    keys = [Key(f"mark {m.kind}", "measured: sequences together"),
            Key("mark near", "measured: neighbours in a text", "square")]  # fmt: skip
    measured = {b.tokens: f"{b.distinct:.1f}" for b in m.batches if b.distinct is not None}
    prompts = {int(n): f"{v:.1f}" for n, v in m.routed.prompts}
    chance = [{int(n): f"{v:.1f}" for n, v in points if n == int(n)} for points in (m.routed.uniform, m.routed.by_load)]
    columns = [*chance, measured, prompts]
    table = Table(
        f"Different {of} per layer, by tokens in a step of {title(i, m)}",
        ["tokens", *(key.label for key in (*THEORY, *keys))],
        [[str(n), *(column.get(n, "") for column in columns)] for n in sorted({*measured, *prompts})],
    )
    experts = float(np.mean(m.routed.experts))
    return _distinct(of, experts, m.routed.uniform, m.routed.by_load, [*neighbours, *marks], keys, table)


def recorded_distinct_chart(arrays: dict[str, np.ndarray], step_sizes: Sequence[dict[str, float]]) -> Chart:
    """The same of a `Routing` that was recorded: arrays and step_sizes are its own."""
    tokens = 2.0 ** np.arange(0, np.log2(LARGEST_BATCH) + 0.1, 0.25)
    uniform, by_load = (np.stack([tokens, mean], axis=1).tolist() for mean in expected_means(arrays, tokens))
    marks = [
        Mark(
            min(step["tokens"], LARGEST_BATCH), step["distinct"], "mark moe",
            f"{step['steps']:,} step{'s' * (step['steps'] != 1)} of {step['tokens']:.4g} tokens: "
            f"{step['distinct']:.1f} different experts; "
            f"by chance {step['by_load']:.1f} with these loads, {step['uniform']:.1f} with equal ones",
        )
        for step in step_sizes
    ]  # fmt: skip
    keys = [Key("mark moe", "measured")]
    table = Table(
        "Different experts per layer, by tokens in a step", ["tokens in a step", "steps",
        *(key.label for key in (*THEORY, *keys))],
        [[f"{s['tokens']:.4g}", f"{s['steps']:,}", *(f"{s[name]:.1f}" for name in ("uniform", "by_load", "distinct"))]
         for s in step_sizes],
    )  # fmt: skip
    return _distinct("experts", float(arrays["experts"].mean()), uniform, by_load, marks, keys, table)


def _distinct(
    noun: str, experts: float, uniform: Sequence[Sequence[float]], by_load: Sequence[Sequence[float]],
    marks: Sequence[Mark], keys: Sequence[Key], table: Table,
) -> Chart:  # fmt: skip
    lines = [Line([(n, v) for n, v in points], kind) for points, kind in ((uniform, "uniform"), (by_load, "load"))]
    x = Axis("tokens in a step", 1, uniform[-1][0])
    y = Axis(f"different {noun} per layer", 0, 1.03 * experts, log=False)
    return Chart(table.caption, x, y, lines, marks, [*THEORY, *keys], table)


def distinct_shares_chart(models: Sequence[Measured]) -> Chart:
    """Share of a layer's experts or leaves that a step touches, of all routed models together."""
    lines, marks, rows = [], [], []
    for i, m in enumerate(models):
        if m.routed is None:
            continue
        percent = 100 / float(np.mean(m.routed.experts))
        for points, dashes in ((m.routed.uniform, " uniform"), (m.routed.by_load, "")):
            lines.append(Line([(n, percent * v) for n, v in points], m.kind + dashes))
        points = [(b.tokens, percent * b.distinct) for b in m.batches if b.distinct is not None]
        marks += [Mark(x, y, f"mark {m.kind}", label=letter(i) if x == points[-1][0] else "", radius=3.5)
                  for x, y in points]  # fmt: skip
        rows += [[title(i, m), str(n), f"{share:.0f} %"] for n, share in points]
    x = Axis("tokens in a step", 1, max(x for line in lines for x, _ in line.points))
    y = Axis("% of a layer's experts or leaves touched", 0, 105, log=False)
    keys = [replace(key, label=f"{key.label}, measured") for key in kind_keys([m for m in models if m.routed])]
    table = Table("Share of a layer's experts or leaves touched", ["model", "tokens in a step", "touched"], rows)
    return Chart(table.caption, x, y, lines, marks, [THEORY[0], replace(THEORY[1], kind="line near"), *keys], table)


def reuse_chart(arrays: dict[str, Any]) -> Bars:
    """Share of the uses of experts, all layers, by the tokens since the last one; below them first uses."""
    counts = arrays["reuse"].sum(axis=0)
    used = np.flatnonzero(counts)
    rows = [
        ("1 token ago" if i == 0 else f"{2**i}–{2 ** (i + 1) - 1} tokens ago", int(counts[i]), "bar")
        for i in range(int(used[-1]) + 1 if len(used) else 0)
    ]
    rows.append(("first use", int(arrays["first_use"].sum()), "first"))
    total = max(sum(count for _, count, _ in rows), 1)
    shares = [f"{100 * count / total:.1f} %" for _, count, _ in rows]
    bars = [Bar(name, [(count, kind, f"{name}: {count:,} uses, {share}")], share)
            for (name, count, kind), share in zip(rows, shares, strict=True)]  # fmt: skip
    table = Table(
        "Uses of experts by the tokens since the last one", ["last use", "uses", "share"],
        [[name, f"{count:,}", share] for (name, count, _), share in zip(rows, shares, strict=True)],
    )  # fmt: skip
    return Bars(table.caption, bars, [], table)
