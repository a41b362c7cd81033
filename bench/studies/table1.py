"""Table 1 of arXiv 2308.14711, its MNIST columns: dense networks and trees of the same training width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from bench.studies import classify, engine
from bench.studies.classify import Recipe, pixels
from bench.studies.data import Images, read_mnist
from bench.studies.results import figure, mean_and_sd, plural, plus_minus, save, table, width_axis
from bench.studies.study import Done, Setting, Study, Trial, grouped

WIDTHS, LEAVES = (16, 32, 64, 128), (8, 4, 2, 1)
RECIPE = Recipe("sgd", 0.2, batch=256, epochs=40, patience=10, look_every=5)
NAMES = {"ff": "FF", "soft": "FFF, the paper's recipe", "straight": "FFF, straight-through"}
BATCHES = (1, 256)
"""Images at once, of which the time is measured."""
PAPER: dict[tuple[int, int], tuple[float, float, float | None]] = {
    (0, 16): (98.0, 95.2, None), (0, 32): (100.0, 96.6, None), (0, 64): (100.0, 97.7, None),
    (0, 128): (100.0, 98.1, None),
    (8, 16): (94.6, 93.1, 1.13), (8, 32): (96.5, 93.9, 1.50), (8, 64): (97.7, 94.2, 2.20), (8, 128): (99.3, 94.9, 3.39),
    (4, 16): (91.6, 90.8, 1.33), (4, 32): (96.2, 93.1, 1.35), (4, 64): (96.7, 93.3, 2.33), (4, 128): (97.6, 93.6, 3.29),
    (2, 16): (92.1, 90.3, 1.19), (2, 32): (94.0, 91.4, 1.48), (2, 64): (95.2, 92.1, 2.33), (2, 128): (96.2, 92.4, 3.47),
    (1, 16): (91.7, 89.9, 1.04), (1, 32): (94.4, 92.0, 1.26), (1, 64): (94.5, 91.4, 1.91), (1, 128): (94.1, 92.0, 3.93),
}  # fmt: skip
"""(leaf, 0 for FF; training width): M_A and G_A in %, and the speed-up, as published: the best of 10 runs."""


def trials(data: Images, setting: Setting) -> list[Trial]:
    """All images train each network (`images`: 0), nine tenths of them, which the seed draws."""
    widths, leaves, recipe, images = WIDTHS, LEAVES, RECIPE, 0
    if setting.quick:
        widths, leaves, recipe, images = (16, 32), (8, 1), replace(RECIPE, epochs=2), 3000
    cells = [("ff", width, 0) for width in widths]
    cells += [(arm, width, leaf) for arm in classify.TREES for leaf in leaves for width in widths]
    shared = {"data": data.identity, "images": images}
    return [
        Trial(
            f"{arm}/{width}/{leaf}/{seed}",
            {"arm": arm, "width": width, "leaf": leaf, "seed": seed, "recipe": recipe.as_dict(arm), **shared},
        )
        for seed in range(setting.seeds) for arm, width, leaf in cells
    ]  # fmt: skip


def run(arguments: dict[str, Any], data: Images, folder: Path) -> dict[str, Any]:
    few, seed = arguments["images"] or len(data.train), arguments["seed"]
    train, held_out = classify.divided(classify.labelled(data.train[:few], data.train_labels[:few]), seed)
    torch.manual_seed(seed)
    network = classify.network_of(arguments["arm"], train.x.shape[1], arguments["width"], arguments["leaf"])
    fitted = classify.fit(network, train, held_out, Recipe(**arguments["recipe"]), seed)
    figures, classes = classify.tested(network, classify.labelled(data.test, data.test_labels))
    engine.save(folder, network, classes)
    return {**asdict(fitted), "test": figures}


def summarise(done: Sequence[Done], data: Images, setting: Setting) -> dict[str, Any]:
    tests = pixels(data.test)
    cells = grouped(done, "arm", "width", "leaf")
    rows = [_row(arm, width, leaf, runs, tests.shape[1]) for (arm, width, leaf), runs in cells.items()]
    differ = 0
    for one in done:
        trained = engine.load(one.folder)
        differ += int(np.count_nonzero(engine.classes_of(trained.weights, tests) != trained.classes))
    _add_times(rows, cells, tests, setting.quick)
    recipe = done[0].trial.arguments["recipe"]
    return {
        "rows": rows, "test_images": len(tests), "trained_on": done[0].trial.arguments["images"] or len(data.train),
        "compared": len(done) * len(tests), "differ": differ, "epochs": recipe["epochs"],
        "patience": recipe["patience"], "look_every": recipe["look_every"],
    }  # fmt: skip


def _row(arm: str, width: int, leaf: int, runs: Sequence[Done], inputs: int) -> dict[str, Any]:
    """A cell's figures over its seeds; accuracies in %."""
    results = [one.result for one in runs]
    best = max(results, key=lambda result: result["watched"])
    row: dict[str, Any] = {"arm": arm, "width": width, "leaf": leaf, "best_seed": results.index(best)}
    for name, values, chosen in (
        ("M_A", [r["memorised"] for r in results], max(r["memorised"] for r in results)),
        ("G_A", [r["test"]["accuracy"] for r in results], best["test"]["accuracy"]),
    ):
        row[name] = [100 * value for value in (chosen, *mean_and_sd(values))]
    if leaf:
        row["soft"] = [100 * value for value in mean_and_sd(r["test"]["soft"] for r in results)]
        row |= {key: fmean(r["test"][key] for r in results) for key in ("entropy", "mass", "max_load", "dead")}
        depth = (width // leaf).bit_length() - 1
        out = classify.CLASSES
        row["bound"] = width * (inputs + out) / (depth * inputs + leaf * (inputs + out))
    row["paper"] = list(PAPER[leaf, width])
    row["epochs"] = fmean(r["epochs"] for r in results)
    row["ended"] = {why: sum(r["why"] == why for r in results) for why in sorted({r["why"] for r in results})}
    return row


def _add_times(rows: list[dict[str, Any]], cells: dict[Any, list[Done]], tests: np.ndarray, quick: bool) -> None:
    """Microseconds of the best network of each cell, and how many times less than the dense one of its width."""
    for width in sorted({row["width"] for row in rows}):
        of_width = [row for row in rows if row["width"] == width]
        networks = {
            f"{row['arm']}/{row['leaf']}": engine.load(
                cells[row["arm"], width, row["leaf"]][row["best_seed"]].folder
            ).weights
            for row in of_width
        }
        for batch in BATCHES:
            took = engine.microseconds(networks, tests, batch, 2 if quick else 21)
            for row in of_width:
                us = took[f"{row['arm']}/{row['leaf']}"]
                row.setdefault("us", {})[str(batch)] = us
                row.setdefault("speed_up", {})[str(batch)] = took["ff/0"] / us


def text(summary: dict[str, Any]) -> str:
    accuracies = table(
        ("model", "width", "leaf", "M_A best", "M_A mean ± sd", "G_A best", "G_A mean ± sd", "G_A soft",
         "paper M_A", "paper G_A", "epochs"),
        (
            (NAMES[r["arm"]], r["width"], r["leaf"] or "–", f"{r['M_A'][0]:.1f}", plus_minus(r["M_A"][1:]),
             f"{r['G_A'][0]:.1f}", plus_minus(r["G_A"][1:]), plus_minus(r["soft"]) if r["leaf"] else "–",
             r["paper"][0], r["paper"][1], f"{r['epochs']:.0f}")
            for r in summary["rows"]
        ),
    )  # fmt: skip
    trees = table(
        ("model", "width", "leaf", "node entropy", "mass", "max/mean load", "dead leaves", "multiply-adds",
         *(f"batch {batch}" for batch in BATCHES), "paper"),
        (
            (NAMES[r["arm"]], r["width"], r["leaf"], f"{r['entropy']:.3f}", f"{r['mass']:.3f}", f"{r['max_load']:.1f}",
             f"{r['dead']:.1f} of {r['width'] // r['leaf']}", f"{r['bound']:.2f}×",
             *(f"{r['speed_up'][str(batch)]:.2f}×" for batch in BATCHES), f"{r['paper'][2]:.2f}×")
            for r in summary["rows"] if r["leaf"]
        ),
    )  # fmt: skip
    diverged = sum(r["ended"].get("diverged", 0) for r in summary["rows"])
    capped = sum(r["ended"].get("cap", 0) for r in summary["rows"])
    runs = sum(sum(r["ended"].values()) for r in summary["rows"])
    return f"""Accuracies in %, {plural(summary["seeds"], "seed")} per row, of the chosen leaf (soft: of the mixture).

{accuracies}
Trees on the test images (means over seeds), and how many times faster than the dense network of their width.

{trees}
M_A is the best accuracy on the images trained on (nine tenths of {summary["trained_on"]:,}), looked at every \
{summary["look_every"]} epochs and at the end; G_A that on the {summary["test_images"]:,} test images, at the epoch \
that was best on the last tenth; the best is the seed that was best there. The paper's are the best of 10 runs.

Training ended after {summary["patience"]} epochs without a better accuracy on that tenth, or after \
{summary["epochs"]} epochs: the latter in {capped} of {runs} trainings. {diverged} ended with a loss that was no number.

Times are those of the engine's float32 layers on one thread, weights in caches, inputs drawn from the test images; \
the paper's are of its own machine. "Multiply-adds" are the dense network's by the tree's (nodes on the path, and a \
leaf).

The engine and PyTorch found different classes for {summary["differ"]} of {summary["compared"]:,} images, over all \
trained networks.
"""


def plot(summary: dict[str, Any], path: Path) -> None:
    fig, ((*by_arm, speed),) = figure(1, 3, width=13.0, height=4.8)
    rows = summary["rows"]
    leaves = sorted({r["leaf"] for r in rows if r["leaf"]}, reverse=True)
    lines = {"k": ("FF", 0), **{f"C{i}": (f"FFF, leaf {leaf}", leaf) for i, leaf in enumerate(leaves)}}
    for ax, arm in zip(by_arm, classify.TREES, strict=True):
        for color, (label, leaf) in lines.items():
            of_leaf = [r for r in rows if r["leaf"] == leaf and r["arm"] in (arm, "ff")]
            widths = [r["width"] for r in of_leaf]
            means, sds = ([r["G_A"][i] for r in of_leaf] for i in (1, 2))
            ax.errorbar(widths, means, sds, color=color, marker="o", ms=4, capsize=2, label=label)
            ax.plot(widths, [r["paper"][1] for r in of_leaf], f"{color}:", lw=1)
            if leaf and arm == "soft":
                speed.plot(widths, [r["speed_up"]["1"] for r in of_leaf], f"{color}o-", ms=4)
                speed.plot(widths, [r["bound"] for r in of_leaf], f"{color}:", lw=1)
        ax.set_title(NAMES[arm])
        ax.set_ylabel("accuracy on test images, %")
    by_arm[0].sharey(by_arm[1])
    by_arm[0].plot([], [], "k:", lw=1, label="dotted: the paper's; on the right, multiply-adds")
    speed.axhline(1, color="0.7", lw=1)
    speed.set_yscale("log", base=2)
    speed.yaxis.set_major_formatter("{x:g}×")
    speed.set_title("speed by that of FF, batch 1")
    fig.legend(*by_arm[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    for ax in (*by_arm, speed):
        width_axis(ax, (r["width"] for r in rows))
    save(fig, path)


STUDY = Study("table1", read_mnist, trials, run, summarise, text, plot)
