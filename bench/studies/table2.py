"""Table 2 of arXiv 2308.14711 in shape, on MNIST: dense networks, noisy top-2 mixtures and trees by training width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.studies import classify
from bench.studies.classify import MIXTURE, TOP_K, Labelled, Recipe
from bench.studies.data import Images, read_mnist
from bench.studies.results import figure, mean_and_sd, plural, plus_minus, save, table, width_axis
from bench.studies.study import Done, Setting, Study, Trial, grouped

WIDTHS = (64, 128, 256, 512, 1024)
LEAF, EXPERT = 32, 16
"""32 neurons are computed of each image: a leaf, or TOP_K experts."""
IMAGES = 4000
SCALE = 10
"""Epochs of the paper are divided by this: its cap of 7,000, patience of 350 and plateaus of 250."""
RECIPE = Recipe("adam", 1e-3, batch=328, epochs=7000 // SCALE, patience=350 // SCALE, halve_after=250 // SCALE)
"""batch: the same number of steps an epoch as 4,096 of 50,000 images make."""
MODELS = {
    "ff": "FF", "moe": f"MoE, experts of {EXPERT}, top {TOP_K}", "soft": f"FFF, leaf {LEAF}, the paper's recipe",
    "straight": f"FFF, leaf {LEAF}, straight-through",
}  # fmt: skip
TASKS = {"M_A": "memorisation of random labels", "G_A": "accuracy on test images"}
PAPER: dict[tuple[str, int], tuple[float, int, float, int]] = {
    ("ff", 64): (87.2, 307, 49.3, 55), ("moe", 64): (57.8, 5354, 29.4, 4880), ("soft", 64): (85.8, 302, 45.9, 22),
    ("ff", 128): (95.5, 200, 51.5, 46), ("moe", 128): (62.0, 6074, 33.6, 938), ("soft", 128): (90.1, 305, 45.5, 22),
    ("ff", 256): (99.9, 105, 52.0, 48), ("moe", 256): (62.4, 2001, 33.9, 372), ("soft", 256): (91.2, 244, 44.4, 17),
    ("ff", 512): (99.9, 85, 52.4, 31), ("moe", 512): (65.4, 3834, 34.5, 315), ("soft", 512): (96.2, 175, 43.7, 10),
    ("ff", 1024): (99.9, 82, 53.0, 21), ("moe", 1024): (65.3, 1575, 35.2, 327), ("soft", 1024): (96.0, 180, 41.3, 9),
}  # fmt: skip
"""(model, training width): M_A in %, its epochs, G_A in %, its epochs, as published, on CIFAR-10."""


def trials(data: Images, setting: Setting) -> list[Trial]:
    """`images` of all, which the seed draws, train each network on either task."""
    widths, images, recipe = WIDTHS, IMAGES, RECIPE
    if setting.quick:
        widths, images = (64, 256), 400
        recipe = replace(RECIPE, batch=50, epochs=6, patience=3, halve_after=2)
    shared = {"data": data.identity, "images": images}
    return [
        Trial(
            f"{model}/{width}/{task}/{seed}",
            {"model": model, "width": width, "task": task, "seed": seed, "recipe": recipe.as_dict(model), **shared},
        )
        for seed in range(setting.seeds) for width in widths for model in MODELS for task in TASKS
    ]  # fmt: skip


def run(arguments: dict[str, Any], data: Images, folder: Path) -> dict[str, Any]:
    seed, model, recipe = arguments["seed"], arguments["model"], Recipe(**arguments["recipe"])
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data.train), generator=draw)[: arguments["images"]].numpy()
    images = classify.labelled(data.train[rows], data.train_labels[rows])
    torch.manual_seed(seed)
    part = EXPERT if model == "moe" else LEAF
    network = classify.network_of(model, images.x.shape[1], arguments["width"], part)
    if arguments["task"] == "M_A":
        scored = Labelled(images.x, torch.randint(classify.CLASSES, (len(images),), generator=draw))
        fitted = classify.fit(network, scored, scored, recipe, seed)
    else:
        scored = classify.labelled(data.test, data.test_labels)
        fitted = classify.fit(network, *classify.divided(images, seed), recipe, seed)
    return {**asdict(fitted), "scored": classify.tested(network, scored)[0]}


def summarise(done: Sequence[Done], data: Images, setting: Setting) -> dict[str, Any]:
    cells: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for (model, width, task), runs in grouped(done, "model", "width", "task").items():
        cells.setdefault((model, width), {})[task] = [one.result for one in runs]
    recipe, images = done[0].trial.arguments["recipe"], done[0].trial.arguments["images"]
    ended = [one.result["why"] for one in done]
    return {
        "rows": [_row(model, width, cell) for (model, width), cell in cells.items()], "images": images,
        "recipe": {key: recipe[key] for key in ("batch", "epochs", "patience", "halve_after")},
        "ended": {why: ended.count(why) for why in sorted(set(ended))},
    }  # fmt: skip


def _row(model: str, width: int, cell: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A cell's figures over its seeds; accuracies in %."""
    paper = PAPER["soft" if model == "straight" else model, width]
    row: dict[str, Any] = {"model": model, "width": width, "paper": list(paper)}
    for task, results in cell.items():
        best = max(results, key=lambda result: result["watched"])
        accuracies = [result["scored"]["accuracy"] for result in results]
        figures: dict[str, Any] = {
            "accuracy": [100 * value for value in (best["scored"]["accuracy"], *mean_and_sd(accuracies))],
            "epoch": [best["epoch"], *mean_and_sd(result["epoch"] for result in results)],
            "capped": sum(result["why"] == "cap" for result in results),
        }
        for key in ("soft", "entropy", "mass", "max_load", "dead"):
            if key in results[0]["scored"]:
                factor = 100 if key == "soft" else 1
                figures[key] = factor * fmean(result["scored"][key] for result in results)
        row[task] = figures
    return row


def text(summary: dict[str, Any]) -> str:
    recipe = summary["recipe"]
    accuracies = table(
        ("model", "width", "M_A best", "M_A mean ± sd", "epochs", "G_A best", "G_A mean ± sd", "epochs",
         "paper M_A", "epochs", "paper G_A", "epochs"),
        (
            (MODELS[r["model"]], r["width"], *(cell for task in TASKS for cell in _cells(r[task])), *r["paper"])
            for r in summary["rows"]
        ),
    )  # fmt: skip
    routed = table(
        ("model", "width", *(f"{task} {what}" for task in TASKS for what in ("max/mean load", "dead", "mass", "soft"))),
        (
            (MODELS[r["model"]], r["width"], *(cell for task in TASKS for cell in _routing(r[task])))
            for r in summary["rows"] if r["model"] != "ff"
        ),
    )  # fmt: skip
    ended = ", ".join(f"{count} {_ENDS[why]}" for why, count in summary["ended"].items())
    return f"""Accuracies in %, {plural(summary["seeds"], "seed")} per row, without noise and of the chosen leaf; the \
paper's are of CIFAR-10, and for the shape alone.

{accuracies}
What chose whom, means over seeds: on the memorised images, and on the test images (soft: accuracy of the mixture).

{routed}
M_A is the share of {summary["images"]:,} images whose random labels were learnt, G_A the accuracy on the test images \
of a network trained on nine tenths of {summary["images"]:,} images, at the epoch that was best on the other tenth; \
epochs are those until the best accuracy on what was watched. They differ from seed to seed in images, labels and \
weights.

All have Adam at 0.001, halved when the accuracy in training has not risen for {recipe["halve_after"]} epochs, in \
batches of {recipe["batch"]}; training ends after {recipe["patience"]} epochs without a better accuracy, or after \
{recipe["epochs"]} (paper: plateaus of 250, batches of 4,096, 350 and 7,000). Of all trainings {ended}.

Trees have h = {classify.TREES["soft"][1]:g} from the first step on, or (straight-through) are trained as the chosen \
leaf with the gradient of the mixture, and balance {classify.TREES["straight"][0].balance:g}; mixtures have noisy \
top-{TOP_K} gating with importance and load losses of {MIXTURE.importance:g}, and (width / {EXPERT}) experts, so that \
{LEAF} neurons of an image are computed by all but FF, beside what chooses them.
"""


_ENDS = {
    "patience": "ended for want of a better accuracy", "cap": "at the cap", "perfect": "with all labels right",
    "diverged": "with a loss that was no number",
}  # fmt: skip


def _cells(task: dict[str, Any]) -> tuple[str, str, str]:
    (best, *accuracy), (_, *epoch) = task["accuracy"], task["epoch"]
    return f"{best:.1f}", plus_minus(accuracy), plus_minus(epoch, 0)


def _routing(task: dict[str, Any]) -> tuple[str, str, str, str]:
    soft = f"{task['soft']:.1f}" if "soft" in task else "–"
    return f"{task['max_load']:.1f}", f"{task['dead']:.1f}", f"{task['mass']:.2f}", soft


def plot(summary: dict[str, Any], path: Path) -> None:
    fig, axes = figure(2, 2, width=9.5, height=7.0)
    for column, (task, title) in enumerate(TASKS.items()):
        for i, (model, name) in enumerate(MODELS.items()):
            rows = [r for r in summary["rows"] if r["model"] == model]
            widths = [r["width"] for r in rows]
            for ax, key, paper in ((axes[0, column], "accuracy", 0), (axes[1, column], "epoch", 1)):
                _, means, sds = zip(*(r[task][key] for r in rows), strict=True)
                ax.errorbar(widths, means, sds, color=f"C{i}", marker="o", ms=4, capsize=2, label=name)
                if model != "straight":
                    ax.plot(widths, [r["paper"][2 * column + paper] for r in rows], f"C{i}:", lw=1)
        axes[0, column].set_title(title)
        axes[0, column].set_ylabel("accuracy, %")
        axes[1, column].set_ylabel("epochs to it")
        axes[1, column].set_yscale("log")
        axes[1, column].axhline(summary["recipe"]["epochs"], color="0.7", lw=1)
    axes[0, 0].plot([], [], "k:", lw=1, label="dotted: the paper's, CIFAR-10")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for ax in axes.flat:
        width_axis(ax, (r["width"] for r in summary["rows"]))
    save(fig, path)


STUDY = Study("table2", read_mnist, trials, run, summarise, text, plot)
