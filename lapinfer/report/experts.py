"""Which experts a model's tokens were routed to: texts run through it, a table, and files (.json, .npz, .html)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lapinfer import __version__
from lapinfer.errors import InputError
from lapinfer.progress import Phase, Progress, silent
from lapinfer.report.document import Part, Section, document
from lapinfer.report.drawing import Table
from lapinfer.report.expert_charts import LOAD_KEYS, load_map, recorded_distinct_chart, reuse_chart
from lapinfer.report.outputs import check_ending, write_whole
from lapinfer.report.pieces import figure, heat_map, items, legend, meanings, table
from lapinfer.report.tables import aligned
from lapinfer.report.texts import chunk, text_ids

if TYPE_CHECKING:
    from lapinfer.runtime.routing import Routing
    from lapinfer.spec import ModelSpec
    from lapinfer.text.language_model import LanguageModel


def run_texts(
    model: LanguageModel,
    texts: Sequence[str],
    ctx: int = 512,
    chunks: int | None = None,
    progress: Progress = silent,
) -> None:
    """Run texts in chunks of ctx tokens, each a fresh sequence, as the perplexity report does; at most `chunks` a text.

    A text's last chunk may be shorter. Where the tokenizer begins texts with BOS, it takes the place of each chunk's
    first token.
    """
    engine = model.model
    if not 1 <= ctx <= engine.ctx:
        raise InputError(f"ctx: expected 1 to {engine.ctx} (the model's context), got {ctx}")
    pieces: list[np.ndarray] = []
    for text in texts:
        ids = text_ids(model, text)
        pieces += [chunk(model, ids, start, ctx) for start in range(0, len(ids), ctx)][:chunks]
    if not pieces:
        raise InputError("the text is empty: at least one token is needed")
    phase = Phase("reading", "chunks")
    for done, piece in enumerate(pieces):
        progress(phase, done, len(pieces))
        with engine.lock:
            model.forget()
            engine.prefill(piece)
    progress(phase, len(pieces), len(pieces))


def experts_a_token(spec: ModelSpec) -> int:
    """Routed experts that a token gets in a layer; 0 in a dense model."""
    routers = [layer.feed_forward.router for layer in spec.layers]
    return max((router.top_k for router in routers if router is not None), default=0)


def check_path(path: Path, *, force: bool = False) -> str | None:
    """InputError when no report can be written to this path: called before the work that it is about.

    With `force` it may be where another file is; this is then told.
    """
    return check_ending(path, WRITERS, force=force)


def write(path: Path, routing: Routing, name: str = "", *, force: bool = False) -> None:
    """Write what was recorded, in the form that the path's ending says: whole, or not at all.

    An older report is replaced; InputError where another file is, unless `force`.
    """
    check_path(path, force=force)
    write_whole(path, WRITERS[path.suffix.lower()](routing, name), force=force)


def to_json(routing: Routing, name: str = "") -> bytes:
    """Model, version, `Routing.summary()` and `Routing.arrays()` as lists."""
    arrays = {key: value.tolist() for key, value in routing.arrays().items()}
    value = {"lapinfer": __version__, "model": name, "summary": routing.summary(), "arrays": arrays}
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def to_npz(routing: Routing, name: str = "") -> bytes:
    """`Routing.arrays()`, the model's name as `model`, and the version as `lapinfer`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {"lapinfer": np.array(__version__), "model": np.array(name), **routing.arrays()}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def to_html(routing: Routing, name: str = "") -> bytes:
    """One page that needs nothing else."""
    arrays, summary = routing.arrays(), routing.summary()
    steps, layers = summary["steps"], len(summary["layers"])
    introduction = (
        f"{summary['tokens']:,} tokens in {steps:,} step{'s' * (steps != 1)}, "
        f"{layers} routed layer{'s' * (layers != 1)},\n"
        f"{span(arrays['experts'])} experts each, {span(arrays['top_k'])} per token. lapinfer {__version__}"
    )
    distinct = recorded_distinct_chart(arrays, summary["step_sizes"])
    load = load_map(
        "Tokens that each expert got, by layer",
        "expert",
        arrays["layers"].tolist(),
        arrays["tokens_routed"],
        arrays["experts"].tolist(),
    )
    parts: list[Part] = [
        Section("found", "What was found", "", items("answers", found(summary))),
        Section("load", "Load", "A row per layer, a column per expert; colours say how many tokens an expert got, "
                "by the mean of its layer.", legend(LOAD_KEYS) + heat_map(load)),
        (Section("steps", "Different experts in a step", "Mean over the layers. A step reads the weights of each "
                 "expert that any of its tokens got, once.", figure(distinct)),
         Section("reuse", "Tokens since an expert's last use", "Share of all uses. A cache of experts lives on short "
                 "distances.", figure(reuse_chart(arrays)))),
        Section("layers", "Layers", "", layer_table(summary, name or "all") +
                meanings([(head, meaning) for head, (meaning, _) in columns(summary).items()])),
    ]  # fmt: skip
    return document(f"Experts of {name}" if name else "Experts", introduction, parts).encode()


def found(summary: dict[str, Any]) -> list[str]:
    """The answers, in plain words."""
    layers = summary["layers"]
    if not summary["tokens"] or not layers:
        return ["No token was routed."]
    busiest = max(layers, key=lambda layer: layer["max_over_mean"])
    unused, experts = (sum(layer[name] for layer in layers) for name in ("unused", "experts"))
    again, chance = (100 * np.mean([layer[name] for layer in layers]) for name in ("repeat_share", "repeat_chance"))
    step = min(summary["step_sizes"], key=lambda step: step["tokens"])
    return [
        f"The busiest expert got {busiest['max_over_mean']:.1f} times the mean of its layer, {busiest['layer']}.",
        f"{unused:,} of {experts:,} experts were never used." if unused else f"All {experts:,} experts were used.",
        f"A step of {step['tokens']:.4g} token{'s' * (step['tokens'] != 1)} touches {step['distinct']:.1f} of "
        f"{experts / len(layers):.4g} experts per layer; with even loads, chance would touch {step['uniform']:.1f}.",
        f"A token has {again:.0f} % of its experts in common with the token before; independent tokens would have "
        f"{chance:.0f} %.",
    ]


WRITERS: dict[str, Callable[[Routing, str], bytes]] = {".json": to_json, ".npz": to_npz, ".html": to_html}

COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "layer": ("Layer of the model, from 0", lambda row: str(row["layer"])),
    "experts": ("Routed experts, and how many a token gets", lambda row: f"{row['experts']}, {row['top_k']}"),
    "entropy": ("Of the load, in bits", lambda row: f"{row['entropy']:.2f}"),
    "of max": ("Entropy by that of equal loads", lambda row: f"{100 * row['entropy_share']:.1f} %"),
    "max/mean": ("Load of the busiest expert by the mean", lambda row: f"{row['max_over_mean']:.2f}"),
    "unused": ("Experts that no token got", lambda row: str(row["unused"])),
    "distinct": ("Different experts in a step, on average", lambda row: f"{row['distinct_per_step']:.1f}"),
    "reuse": ("Half of the uses come at most so many tokens after the last", lambda row: str(row["reuse_median"])),
    "repeat": ("Experts that the token before had, too", lambda row: f"{100 * row['repeat_share']:.1f} %"),
    "chance": ("The same for independent tokens", lambda row: f"{100 * row['repeat_chance']:.1f} %"),
}
"""Columns of a layer's row: heading, its meaning, and the cell from a layer of `Routing.summary()`."""

OF_TREES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "nats": (
        "Mean entropy of a node's decision; sure ones have 0",
        lambda r: f"{r['node_entropy']:.3f}",
    ),
    "mass": ("Weight that the chosen leaf has in the soft mixture", lambda r: f"{100 * r['leaf_mass']:.1f} %"),
}
"""Further ones where layers are trees."""


def columns(summary: dict[str, Any]) -> dict[str, tuple[str, Callable[[dict[str, Any]], str]]]:
    """Those that a summary has something to say in."""
    trees = any(layer["node_entropy"] > 0 or layer["leaf_mass"] < 1 for layer in summary["layers"])
    return COLUMNS | OF_TREES if trees else COLUMNS


def layer_table(summary: dict[str, Any], of: str) -> str:
    """HTML: a row for each layer of a model of this name."""
    shown = columns(summary)
    rows = [[cell(layer) for _, cell in shown.values()] for layer in summary["layers"]]
    return table(Table(f"Routing by layer, {of}", list(shown), rows))


def span(values: Sequence[int] | np.ndarray) -> str:
    low, high = int(min(values)), int(max(values))
    return str(low) if low == high else f"{low}–{high}"


def text_table(routing: Routing) -> str:
    """For the terminal: a row for each layer, then a line for each size of step."""
    summary = routing.summary()
    shown = columns(summary)
    rows = [list(shown), *([show(layer) for _, show in shown.values()] for layer in summary["layers"])]
    lines = [aligned(rows), "", f"{summary['tokens']:,} tokens in {summary['steps']:,} steps"]
    lines += [
        f"steps of {step['tokens']:,.4g} token{'s' * (step['tokens'] != 1)}: "
        f"{step['distinct']:.1f} different experts per layer "
        f"(independent tokens: {step['by_load']:.1f} with these loads, {step['uniform']:.1f} with equal ones)"
        for step in summary["step_sizes"]
    ]
    return "\n".join(lines)
