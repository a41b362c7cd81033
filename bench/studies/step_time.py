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

from bench.studies.study import Done, Setting, Study, Trial, table
from bench.studies.turns import interleaved, quartiles
from lapinfer.errors import InputError
from lapinfer.machine import default_threads
from lapinfer.train.config import Config
from lapinfer.train.corpus import Batches, encode, read_texts, split, train_tokenizer
from lapinfer.train.decoder import Decoder
from lapinfer.train.loop import adamw, has_bf16, train_step

KINDS = {"dense": "dense", "moe": "experts", "fff": "tree", "active": "dense, active width"}
PARTS = 8
"""Leaves of the tree; experts are twice as many and half as wide, two a token: an eighth of the width is active."""


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


def trials(setting: Setting) -> list[Trial]:
    if not setting.data:
        raise InputError("step_time: expected texts, whose tokens are trained on")
    caps = QUICK if setting.quick else FULL
    needed = 10 * caps.context * caps.batch
    if (size := sum(map(len, read_texts(setting.data)))) < needed:
        raise InputError(f"the texts have {size:,} characters; the study needs at least {needed:,}")
    return []


def run(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
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


def stepper(made: Config, batches: Batches, bf16: bool) -> Callable[[], float]:
    """A function that takes the next step of a new model, and gives its seconds."""
    torch.manual_seed(0)
    model = Decoder(made).train()
    optimizer = adamw(model, made.training)
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


def summarise(finished: Sequence[Done], setting: Setting) -> dict[str, Any]:
    """A row for each size, precision and number of threads, with quartiles of each kind's seconds a step."""
    caps = QUICK if setting.quick else FULL
    trained_on, held_out = split(read_texts(setting.data), 0.1)
    made = config("dense", *caps.sizes[0], caps)
    corpus = encode(train_tokenizer(trained_on, caps.vocab), trained_on, held_out, made)
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
                    rows.append({
                        "hidden": hidden, "width": width, "precision": precision, "threads": threads,
                        "seconds": {kind: quartiles(found) for kind, found in seconds.items()},
                        "of_dense": {
                            kind: quartiles([a / b for a, b in zip(found, seconds["dense"], strict=True)])
                            for kind, found in seconds.items()
                        },
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
            f"## {threads} {'thread' if threads == 1 else 'threads'}\n",
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
        f"Medians (lower to upper quartile) of {caps['rounds']} steps a kind, the kinds turn by turn, after "
        f"{caps['warm_up']} that are not counted: a step is {caps['batch']} windows of {caps['context']} tokens of the "
        f"given texts, forward, backward and AdamW, of a model of {caps['layers']} layers with a vocabulary "
        f"of {caps['vocab']:,}; attention, embedding and head, which are alike, are part of it. All "
        f"feed-forwards but the last have the same neurons: experts are {2 * PARTS}, two a token; "
        f"the tree has {PARTS} leaves, all of which training computes; "
        f"the last has what a token uses of the others, 1/{PARTS}. Ratios are medians of each round's ratio.\n"
    )
    if not summary["has_bf16"]:
        parts.append("This processor does not multiply bfloat16: PyTorch does it by way of float32.\n")
    return "\n".join(parts)


def _spread(found: Sequence[float], scale: float, digits: int) -> str:
    low, mid, high = (f"{scale * value:.{digits}f}" for value in found)
    return f"{mid} ({low}–{high})"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Medians of a step's time by width, a panel for each precision and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["threads"], row["precision"]) for row in summary["rows"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), layout="constrained", squeeze=False)
    for ax, (threads, precision) in zip(axes[0], panels, strict=True):
        rows = [row for row in summary["rows"] if (row["threads"], row["precision"]) == (threads, precision)]
        for i, (kind, title) in enumerate(KINDS.items()):
            found = [[1e3 * value for value in row["seconds"][kind]] for row in rows]
            spread = [[mid - low for low, mid, _ in found], [high - mid for _, mid, high in found]]
            places = [j + 0.2 * (i - 1.5) for j in range(len(rows))]
            ax.bar(places, [mid for _, mid, _ in found], 0.18, yerr=spread, label=title, error_kw={"linewidth": 0.8})
        ax.set_xticks(range(len(rows)), [f"{row['hidden']}\n{row['width']}" for row in rows])
        ax.set_title(f"{precision}, {threads} {'thread' if threads == 1 else 'threads'}", fontsize=10)
        ax.set_xlabel("width, neurons")
    axes[0][0].set_ylabel("ms a step")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(KINDS), frameon=False)
    figure.savefig(path)
    plt.close(figure)


STUDY = Study(
    "step_time", trials, run, summarise, text, plot,
)  # fmt: skip
