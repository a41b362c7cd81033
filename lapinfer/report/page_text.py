"""What a report's page says in words and figures: what was found, the table, what words mean, how it was measured."""

from __future__ import annotations

from collections.abc import Callable

from lapinfer.report.against import Figures, against_dense
from lapinfer.report.charts import KINDS, taken, title
from lapinfer.report.drawing import Table, megabytes, short
from lapinfer.report.measured import Machine, Measured, Report, Step
from lapinfer.report.roofline import BUSY

OVER = 1.03
"""Shares of the roofline up to this are the roofline itself, as well as it can be measured."""

ROWS: dict[str, tuple[str, Callable[[Machine, Measured], str]]] = {
    "touched per token, metered": ("MB, while running", lambda _, m: megabytes(m.decode.bytes)),
    "touched per token, predicted": ("MB, from the spec alone", lambda _, m: megabytes(_predicted(m))),
    "weights": ("MB in memory, from the spec", lambda _, m: megabytes(m.weight_bytes)),
    "resident": ("MB held, as the system says", lambda _, m: megabytes(m.resident) if m.resident else "not measured"),
    "decode": ("tokens per second", lambda _, m: _speed(m.decode)),
    "decode, of roofline": ("%", lambda machine, m: _share(machine, m, m.decode)),
    "prompt": ("tokens per second", lambda _, m: _speed(m.prompt)),
    "prompt, of roofline": ("%", lambda machine, m: _share(machine, m, m.prompt)),
    "perplexity": ("lower is better", lambda _, m: _perplexity(m)),
    "parameters": ("in all", lambda _, m: short(m.parameters)),
    "active parameters": ("that a token uses", lambda _, m: short(m.active)),
    "format": ("bits per weight", lambda _, m: f"{m.format}, {m.bits:.2f}"),
    "multiply-adds": ("per decoded token, counted", lambda _, m: short(m.decode.macs)),
}
"""Of the table: name, unit, cell."""

WORDS = (
    ("touched", "What a token has to read from memory to be computed: weights with their scales, keys and values, once "
     "each. Metered while running, and predicted from the spec alone."),
    ("weights", "All weights of the model as they are packed, whether a token reads them or not."),
    ("resident", "Memory that the process held for the model, as the system says: weights, of a file only those that "
     "were read so far, the KV cache, and buffers."),
    (KINDS["dense"], "Every token uses all weights of the feed-forward."),
    (KINDS["moe"], "The feed-forward is cut into experts, of which a router chooses some for each token."),
    (KINDS["fff"], "The feed-forward is trees whose leaves are small feed-forwards: in each, a token goes to one."),
    ("KV cache", "Keys and values of the positions before, which attention reads again for each token."),
    ("head", "The matrix that gives a score to each word of the vocabulary."),
    ("decode, prompt", "Writing one token after the other; reading many tokens in one step."),
    ("roofline", "The least time that bytes and multiply-adds allow on this machine: 100 % cannot be beaten by a model "
     "that is larger than the caches."),
    ("perplexity", "How unsure the model is of each next token of a text: of 20, as if it chose among 20."),
)  # fmt: skip


def found(report: Report) -> list[str]:
    """The answers, in plain words."""
    models = report.models
    of_one_text = len({bool(m.ppl[2]) for m in models if m.ppl}) == 1  # else cards' texts beside this report's
    return against_dense([
        Figures(title(i, m), m.parameters, m.active, m.weight_bytes, m.decode.bytes, m.decode.speeds,
                m.ppl[0] if m.ppl and of_one_text else None, m.paired)
        for i, m in enumerate(models)
    ]) or [_alone(i, m) for i, m in enumerate(models)]  # fmt: skip


def cautions(report: Report) -> list[str]:
    """What must be known before speeds are believed."""
    machine, lines = report.machine, []
    cached = [title(i, m) for i, m in enumerate(report.models) if _in_caches(machine, m)]
    if cached:
        lines.append(
            f"The caches of this processor ({megabytes(machine.caches)} MB) can hold the weights of "
            f"{', '.join(cached)}, so reading them takes next to no time: of larger models, speeds follow bytes more "
            "closely."
        )
    if machine.slowest < BUSY * machine.bandwidth:
        lines.append("Other programs ran meanwhile: speeds are lower than they could be. Bytes are exact.")
    return lines


def _alone(i: int, m: Measured) -> str:
    """Of a model that there is nothing to compare with."""
    share = 100 * m.decode.bytes / taken(m)
    return (
        f"A token of {title(i, m)} touches {megabytes(m.decode.bytes)} MB, {share:.0f} % of the "
        f"{megabytes(taken(m))} MB that weights and KV cache take in memory. It decodes "
        f"{m.decode.speed:,.0f} tokens per second."
    )


def figures(report: Report) -> tuple[Table, list[str]]:
    """Figures of all models, and the unit of each row."""
    machine, models = report.machine, report.models
    rows = [[name, *(cell(machine, m) for m in models)] for name, (_, cell) in ROWS.items()]
    contexts = sorted({m.context for m in models})
    seen = f"{contexts[0]:,}" if len(contexts) == 1 else f"{contexts[0]:,} to {contexts[-1]:,}"
    caption = f"A decoded token sees {seen} positions, and a prompt is as long"
    names = [title(i, m) for i, m in enumerate(models)]
    return Table(caption, ["figure", *names], rows), [unit for unit, _ in ROWS.values()]


def _predicted(m: Measured) -> int:
    return sum(m.decode.predicted.values())


def _speed(step: Step) -> str:
    return f"{step.speed:,.0f} " + f"± {100 * step.spread:.0f} %".replace(" ", "\N{NO-BREAK SPACE}")


def _share(machine: Machine, m: Measured, step: Step) -> str:
    share = machine.share(step, m.arithmetic)
    return "above the roof" if share > OVER and not _in_caches(machine, m) else f"{100 * share:.0f} %"


def _in_caches(machine: Machine, m: Measured) -> bool:
    return m.weight_bytes <= machine.caches


def _perplexity(m: Measured) -> str:
    if m.ppl is None:
        return m.unscored
    value, error, tokens = m.ppl
    if not tokens:
        return f"{value:.2f}"
    return f"{value:.2f} ± {error:.2f}" if value < 1e4 else f"{value:.1e}"


def notes(report: Report) -> list[str]:
    """How the figures came about."""
    models = report.models
    off = [m.name for m in models if _predicted(m) != m.decode.bytes]
    agree = f"they differ for {', '.join(off)}: that is a bug" if off else "they agree to the byte here"
    scored = sorted({f"{m.ppl[2]:.0f}" for m in models if m.ppl and m.ppl[2]})
    from_card = [m.name for m in models if m.ppl and not m.ppl[2]]
    without_tokenizer = [m.name for m in models if m.text == "random"]
    lines = [
        f"Touched bytes are predicted from the spec alone, and metered while running; {agree}.",
        "Resident memory is what the process gave back when the model was closed. The buffers of a prompt's step may "
        "be most of a small model's.",
        f"Speeds are measured, medians of steps{_order(models)} Multiply-adds are counted, attention's included.",
        "± is half the distance between the quartiles of the steps. A ratio of speeds is the median of those of each "
        "turn, with the range that it may have; where that could be 1, or models took no turns, it is not told.",
        "% of roofline: the least time that bytes and multiply-adds allow on this machine, by the time taken. Where "
        "activations have 16 bits, as small models' have by default, a product takes two of int8: their prompts cannot "
        "reach the roof.",
        *_above_the_roof(report),
    ]
    if scored:
        lines.append(
            f"Perplexity is of {report.text}, {', '.join(scored)} tokens scored. Of a short text, it is rough."
        )
    if from_card:
        lines.append(f"Perplexity of {', '.join(from_card)} is from their cards: of a whole novel that they never saw.")
    if any("random" in m.unscored for m in models):
        lines.append("Models with random weights have real costs and no quality: that was not measured.")
    if without_tokenizer:
        lines.append(
            f"No tokenizer, so random token ids were run, and were routed unlike text: {', '.join(without_tokenizer)}."
        )
    return lines


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
    lines: list[str] = []
    if small:
        lines.append(f"More than 100 %: the weights of {', '.join(small)} fit {caches}.")
    if others:
        lines.append(
            f"Above the roof: {', '.join(others)} do not fit {caches}, so the bandwidth was measured too low: other "
            "programs ran meanwhile. Measure again on a quiet machine."
        )
    if machine.slowest < BUSY * machine.bandwidth:
        lines.append(
            f"Bandwidth was measured before and after each turn: it went from {machine.slowest / 1e9:.1f} to "
            f"{machine.bandwidth / 1e9:.1f} GB/s, so other programs ran meanwhile."
        )
    return lines
