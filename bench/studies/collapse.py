"""Do experts collapse, and what keeps them from it: noise, a penalty for uneven loads, both, or neither.

On the clustered task of arXiv 2208.02813 (clustered.py), and in a small language model (routed_text.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.studies import clustered, routed_text
from bench.studies.data import Texts, read_texts
from bench.studies.results import figure, mean_and_sd, plus_minus, save, table
from bench.studies.study import Done, Setting, Study, Trial, grouped

CELLS = {"neither": (False, False), "noise": (True, False), "penalty": (False, True), "both": (True, True)}
"""(noise, penalty) by name."""
TASKS = {"nonlinear": "clustered, cubic experts", "linear": "clustered, linear experts", "text": "language model"}
PUBLISHED = {"nonlinear": (0.9946, 0.0055), "linear": (0.9299, 0.0211)}
"""Accuracy in the paper's setting 1, with noise and no penalty: mean and deviation."""
HALF = 0.5
"""An expert that gets a larger share of the tokens has collapsed its layer."""


def trials(data: Texts, setting: Setting) -> list[Trial]:
    routed_text.check(data, setting.quick)
    found = []
    for task in TASKS:
        texts = {"texts": data.identity} if task == "text" else {}
        for cell, (noise, penalty) in CELLS.items():
            for seed in range(setting.seeds):
                arguments = {"task": task, "noise": noise, "penalty": penalty, "seed": seed, "quick": setting.quick}
                found.append(Trial(f"{task}/{cell}/seed-{seed}", arguments | texts))
    return found


def run(arguments: dict[str, Any], data: Texts, folder: Path) -> dict[str, Any]:
    """One training; nothing is kept in `folder`."""
    return routed_text.run(arguments, data) if arguments["task"] == "text" else clustered.run(arguments)


def summarise(finished: Sequence[Done], data: Texts, setting: Setting) -> dict[str, Any]:
    """Figures of each task and cell over its seeds."""
    names = {flags: cell for cell, flags in CELLS.items()}
    rows = [
        {"task": task, "cell": names[noise, penalty], **_figures(task, [done.result for done in runs])}
        for (task, noise, penalty), runs in grouped(finished, "task", "noise", "penalty").items()
    ]
    own, text = ((m.QUICK if setting.quick else m.FULL) for m in (clustered, routed_text))
    return {"rows": rows, "clustered": asdict(own), "text": asdict(text) | {"tokens": text.batch * text.context}}


def _figures(task: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the trials of a cell; a trial's figures are those of its worst layer, dead experts those of all layers."""
    layers = [result["layers"] for result in results]
    figures: dict[str, Any] = {
        "trials": len(results),
        "collapsed": sum(any(layer["share"] > HALF for layer in trial) for trial in layers),
        "max_load": [max(layer["max_load"] for layer in trial) for trial in layers],
        "effective": [min(layer["effective"] for layer in trial) for trial in layers],
        "entropy": [fmean(layer["entropy"] for layer in trial) for trial in layers],
        "dead": [sum(layer["dead"] for layer in trial) for trial in layers],
        "experts": sum(len(layer["load"]) for layer in layers[0]),
        "steps": results[0]["steps"], "max_load_by_step": [result["max_load_by_step"] for result in results],
    }  # fmt: skip
    for name in ("ppl", "bits_per_byte") if task == "text" else ("accuracy", "used_clusters"):
        figures[name] = [result[name] for result in results]
    return figures


def text(summary: dict[str, Any]) -> str:
    parts = []
    for task, title in TASKS.items():
        rows = [row for row in summary["rows"] if row["task"] == task]
        if not rows:
            continue
        judged = ("perplexity", "bits per byte") if task == "text" else ("accuracy", "paper's")
        header = ("noise", "penalty", *judged, "collapsed", "max/mean load", "worst", "experts in use", "dead",
                  "router's entropy")  # fmt: skip
        parts += [f"## {title[0].upper()}{title[1:]}\n", table(header, [_row(row) for row in rows])]
    c, t = summary["clustered"], summary["text"]
    parts += [
        "Mean ± standard deviation over seeds. Loads are those of inputs that were not trained on, without noise; a "
        "trial's figure is that of its worst layer, and dead experts are those of all layers. Experts in use are the "
        "exponential of the loads' entropy: all when they are even, 1 when one has everything. The router's entropy is "
        "that of its probabilities, in nats, a mean over inputs and layers. Collapsed are trials in which, in some "
        f"layer, one expert gets more than {'half' if HALF == 0.5 else HALF} of all inputs.\n",
        f"Clustered: {c['samples']:,} samples to train on and as many to test, {c['steps']} steps of all of them, "
        f"{clustered.EXPERTS} experts, top 1; noise is U[0, 1) on each logit, the penalty {c['importance']:g} × "
        f"importance + {c['switch']:g} × Switch. Judged at the step of the lowest training loss: normalised gradients "
        "do not become small, and what was learned may be lost again. The paper's figures are those of noise "
        "without a penalty; the 50 % of guessing is the floor.\n",
        f"Language model: {t['layers']} layers, width {t['hidden']}, {t['experts']} experts of {t['neurons']} neurons, "
        f"top {t['top_k']}, {t['steps']} steps of {t['tokens']:,} tokens. Noise is that of noisy top-k gating, with "
        "routers that begin at zero; without noise they begin small and random. The penalty is "
        f"{t['importance']:g} × importance + {t['load']:g} × load with noise; without it, where there is no load loss, "
        f"{t['importance']:g} × importance + {t['switch']:g} × Switch.\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    noise, penalty = CELLS[row["cell"]]
    if row["task"] == "text":
        judged: tuple[str, str] = (_mean(row["ppl"], 1), _mean(row["bits_per_byte"], 3))
    else:
        paper = plus_minus(PUBLISHED[row["task"]], 2, 100) + " %" if row["cell"] == "noise" else "–"
        judged = _mean(row["accuracy"], 2, 100) + " %", paper
    return (
        "yes" if noise else "no", "yes" if penalty else "no", *judged, f"{row['collapsed']} of {row['trials']}",
        _mean(row["max_load"], 2), f"{max(row['max_load']):.2f}", _mean(row["effective"], 1),
        f"{_mean(row['dead'], 1)} of {row['experts']}", _mean(row["entropy"], 2),
    )  # fmt: skip


def _mean(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    return plus_minus(mean_and_sd(values), digits, scale)


def plot(summary: dict[str, Any], path: Path) -> None:
    """Max/mean load of the worst layer, step by step in training, a thin line a seed and a thick one for their mean."""
    fig, axes = figure(len(TASKS), len(CELLS), width=11.0, height=7.0)
    for panels, (task, title) in zip(axes, TASKS.items(), strict=True):
        rows = {row["cell"]: row for row in summary["rows"] if row["task"] == task}
        top = max((max(max(line) for line in row["max_load_by_step"]) for row in rows.values()), default=1.0)
        for ax, (cell, row) in zip(panels, rows.items(), strict=True):
            for line in row["max_load_by_step"]:
                ax.plot(row["steps"], line, color="tab:blue", alpha=0.4, linewidth=0.8)
            means = [fmean(values) for values in zip(*row["max_load_by_step"], strict=True)]
            ax.plot(row["steps"], means, color="tab:blue")
            ax.set(ylim=(0.9, 1.05 * top))
            ax.axhline(1, color="gray", linewidth=0.8, linestyle=":")
            ax.set_title(f"{title}\n{cell}: {row['collapsed']} of {row['trials']} collapsed", fontsize=9)
        panels[0].set_ylabel("max/mean load")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    save(fig, path)


STUDY = Study("collapse", read_texts, trials, run, summarise, text, plot, seeds=5)
