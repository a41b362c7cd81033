"""How long a training step takes with dense, mixture-of-experts and tree feed-forwards of equal width.

There are no trials: time is measured when nothing else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.studies.data import Texts, read_texts
from bench.studies.results import figure, interleaved, plural, quartiles, save, table
from bench.studies.study import Done, Setting, Study, Trial
from lapinfer.machine import default_threads
from lapinfer.train.config import Config
from lapinfer.train.corpus import Batches, prepare
from lapinfer.train.decoder import Decoder
from lapinfer.train.loop import adamw, has_bf16, train_step

KINDS = {"dense": "dense", "moe": "experts", "fff": "tree", "active": "dense, active width"}
PARTS = 8
"""Leaves of the tree; experts are twice as many and half as wide, two per token: an eighth of the width is active."""


@dataclass(frozen=True, slots=True)
class Caps:
    """(hidden width, neurons of a feed-forward) of the models; a step's windows; rounds of all kinds, turn by turn."""

    sizes: tuple[tuple[int, int], ...] = ((128, 512), (192, 768), (256, 1024))
    layers: int = 4
    vocab: int = 2048
    context: int = 256
    batch: int = 16
    rounds: int = 9
    warm_up: int = 2


FULL = Caps()
QUICK = Caps(sizes=((32, 64),), layers=2, vocab=300, context=32, batch=2, rounds=2, warm_up=1)


def trials(data: Texts, setting: Setting) -> list[Trial]:
    caps = QUICK if setting.quick else FULL
    data.expect(10 * caps.context * caps.batch)
    return []


def run(arguments: dict[str, Any], data: Texts, folder: Path) -> dict[str, Any]:
    raise AssertionError("no trials")


def config(kind: str, hidden: int, width: int, caps: Caps) -> Config:
    """`active`: a dense feed-forward as wide as what a token uses of the others, without nodes and routers."""
    feed_forward: dict[str, Any] = {
        "dense": {"dense": {"intermediate_size": width}},
        "moe": {"moe": {"num_experts": 2 * PARTS, "moe_intermediate_size": width // (2 * PARTS)}},
        "fff": {"fff": {"depth": PARTS.bit_length() - 1, "leaf_width": width // PARTS}},
        "active": {"dense": {"intermediate_size": width // PARTS}},
    }[kind]
    return Config.from_dict({
        "model": {
            "vocab_size": caps.vocab, "max_position_embeddings": caps.context, "hidden_size": hidden,
            "num_hidden_layers": caps.layers, "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 64 or 1,
        },
        **feed_forward,
        "training": {"batch": caps.batch, "steps": 1000, "validation": 0.1},
    })  # fmt: skip


def stepper(settings: Config, batches: Batches, bf16: bool) -> Callable[[], float]:
    """A function that takes the next step of a new model, and returns its seconds."""
    torch.manual_seed(0)
    model = Decoder(settings).train()
    optimizer = adamw(model, settings.training)
    done = 0

    def step() -> float:
        nonlocal done
        windows = batches.at(done)
        began = time.perf_counter()
        train_step(model, optimizer, windows, done, bf16)
        seconds = time.perf_counter() - began
        done += 1
        return seconds

    return step


def summarise(finished: Sequence[Done], data: Texts, setting: Setting) -> dict[str, Any]:
    """A row for each size, precision and number of threads, with quartiles of each kind's seconds per step."""
    caps = QUICK if setting.quick else FULL
    _, corpus = prepare(data.contents, config("dense", *caps.sizes[0], caps))
    batches = Batches(corpus.ids, caps.context, caps.batch, 0)
    before = torch.get_num_threads()
    rows = []
    try:
        for threads in sorted({1, default_threads()}, reverse=True):
            torch.set_num_threads(threads)
            for precision in ("bf16", "f32"):
                for hidden, width in caps.sizes:
                    steps = {
                        kind: stepper(config(kind, hidden, width, caps), batches, precision == "bf16") for kind in KINDS
                    }
                    seconds = interleaved(steps, caps.rounds, caps.warm_up)
                    ratios = {
                        kind: [own / dense for own, dense in zip(times, seconds["dense"], strict=True)]
                        for kind, times in seconds.items()
                    }
                    rows.append({
                        "hidden": hidden, "width": width, "precision": precision, "threads": threads,
                        "seconds": {kind: quartiles(times) for kind, times in seconds.items()},
                        "of_dense": {kind: quartiles(values) for kind, values in ratios.items()},
                    })  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return {"caps": asdict(caps), "tokens": caps.batch * caps.context, "has_bf16": has_bf16(), "rows": rows}


def text(summary: dict[str, Any]) -> str:
    caps = summary["caps"]
    parts = []
    for threads in sorted({row["threads"] for row in summary["rows"]}):
        rows = [row for row in summary["rows"] if row["threads"] == threads]
        header = ("width", "neurons", "precision", *(f"{title}, ms" for title in KINDS.values()),
                  *(f"{title} / dense" for kind, title in KINDS.items() if kind != "dense"))  # fmt: skip
        parts += [
            f"## {plural(threads, 'thread')}\n",
            table(header, [
                (
                    row["hidden"], row["width"], row["precision"],
                    *(_spread(row["seconds"][kind], 1e3, 0 if row["seconds"]["dense"][1] > 0.1 else 1)
                      for kind in KINDS),
                    *(_spread(row["of_dense"][kind], 1, 2) for kind in KINDS if kind != "dense"),
                )
                for row in rows
            ]),
        ]  # fmt: skip
    parts.append(
        f"Medians (lower to upper quartile) of {caps['rounds']} steps per kind, the kinds turn by turn, after "
        f"{caps['warm_up']} that are not counted: a step is {caps['batch']} windows of {caps['context']} tokens of the "
        f"given texts, forward, backward and AdamW, of a model of {caps['layers']} layers with a vocabulary "
        f"of {caps['vocab']:,}; attention, embedding and head, which are alike, are part of it. All "
        f"feed-forwards but the last have the same neurons: experts are {2 * PARTS}, two per token; "
        f"the tree has {PARTS} leaves, all of which training computes; "
        f"the last has what a token uses of the others, 1/{PARTS}. Ratios are medians of each round's ratio.\n"
    )
    if not summary["has_bf16"]:
        parts.append("This processor does not multiply bfloat16: PyTorch does it by way of float32.\n")
    return "\n".join(parts)


def _spread(quarters: Sequence[float], scale: float, digits: int) -> str:
    low, mid, high = (f"{scale * value:.{digits}f}" for value in quarters)
    return f"{mid} ({low}–{high})"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Medians of a step's time by width, a panel for each precision and number of threads."""
    panels = list(dict.fromkeys((row["threads"], row["precision"]) for row in summary["rows"]))
    fig, (axes,) = figure(1, len(panels), width=3.2 * len(panels), height=3.4)
    for ax, (threads, precision) in zip(axes, panels, strict=True):
        rows = [row for row in summary["rows"] if (row["threads"], row["precision"]) == (threads, precision)]
        for i, (kind, title) in enumerate(KINDS.items()):
            quarters = [[1e3 * value for value in row["seconds"][kind]] for row in rows]
            spread = [[mid - low for low, mid, _ in quarters], [high - mid for _, mid, high in quarters]]
            places = [j + 0.2 * (i - 1.5) for j in range(len(rows))]
            ax.bar(places, [mid for _, mid, _ in quarters], 0.18, yerr=spread, label=title, error_kw={"linewidth": 0.8})
        ax.set_xticks(range(len(rows)), [f"{row['hidden']}\n{row['width']}" for row in rows])
        ax.set_title(f"{precision}, {plural(threads, 'thread')}", fontsize=10)
        ax.set_xlabel("width, neurons")
    axes[0].set_ylabel("ms per step")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(KINDS))
    save(fig, path)


STUDY = Study("step_time", read_texts, trials, run, summarise, text, plot)
