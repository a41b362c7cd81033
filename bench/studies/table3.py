"""Table 3 of arXiv 2308.14711: fast feedforward trees in a vision transformer, accuracy against speed.

The paper has CIFAR-10. With MNIST's folder this is a proxy of it: the speed of layers of the same sizes can be
compared, accuracy only between rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.repeated import Repeated
from bench.studies import engine, vit
from bench.studies.data import Images, read_images
from bench.studies.results import (
    figure,
    interleaved,
    mean_and_sd,
    plural,
    plus_minus,
    quartiles,
    save,
    table,
)
from bench.studies.study import Done, Setting, Study, Trial, grouped
from bench.studies.vit import NEURONS, ViT
from lapinfer.layers.sizes import table_3

STRAIGHT = "straight"
RECIPES: tuple[str, ...] = ("5", "10", "frozen", STRAIGHT)
"""How trees are trained (vit.RECIPES); the last is not the paper's, which takes the best of the others."""
PUBLISHED = {0: (1.0, 84.7), 32: (2.44, 83.6), 16: (2.80, 83.2), 8: (3.29, 82.8), 4: (3.39, 81.6), 2: (3.47, 80.1),
             1: (3.93, 79.8)}  # fmt: skip
"""Speed-up of the feed-forwards on an A100 at batches of 2,048, and accuracy, by the neurons of a leaf; 0 is dense."""
AGREEMENT = 1e-4
BATCHES = 4
"""Of vit.TOKENS real activations, which a layer is timed with, one after the other."""
MOST_INPUTS = 50_000
"""Activations of a layer that the batches are drawn from."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a study has of images and epochs."""

    train: int
    valid: int
    test: int
    epochs: int
    in_engine: int
    rounds: int


FULL = Caps(train=5000, valid=1000, test=10_000, epochs=15, in_engine=2000, rounds=25)
QUICK = Caps(train=256, valid=64, test=100, epochs=1, in_engine=50, rounds=3)


def caps_of(setting: Setting) -> Caps:
    return QUICK if setting.quick else FULL


def trials(data: Images, setting: Setting) -> list[Trial]:
    caps = caps_of(setting)
    vit.split(data, caps.train, caps.valid, caps.test)
    cells = [(0, "dense")]
    for leaf in (32, 1) if setting.quick else [size.leaf for size in table_3(NEURONS)]:
        cells += [(leaf, recipe) for recipe in (RECIPES[1:] if setting.quick else RECIPES)]
    shared = {"data": data.identity, "caps": asdict(caps)}
    return [
        Trial(
            (f"leaf-{leaf}/{recipe}" if leaf else "dense") + f"/seed-{seed}",
            {"leaf": leaf, "recipe": recipe, "seed": seed, **shared},
        )
        for leaf, recipe in cells
        for seed in range(setting.seeds)
    ]


def run(arguments: dict[str, Any], data: Images, folder: Path) -> dict[str, Any]:
    """Train a model, judge it in PyTorch and in the engine, and leave its weights for `summarise`."""
    caps = Caps(**arguments["caps"])
    images = vit.split(data, caps.train, caps.valid, caps.test)
    fitted = vit.fit(images, arguments["leaf"], arguments["recipe"], caps.epochs, arguments["seed"])
    figures, classes = vit.judge(fitted.model, images.test, caps.in_engine)
    engine.save(folder, fitted.model, classes)
    return {"epoch": fitted.epoch, "valid": max(fitted.valid), "valid_by_epoch": fitted.valid, **figures}


def summarise(finished: Sequence[Done], data: Images, setting: Setting) -> dict[str, Any]:
    """A row per leaf size, of the paper's recipe with the best mean validation accuracy, and one straight-through; the
    speed is that of the seed with the best validation accuracy."""
    caps = caps_of(setting)
    test = vit.split(data, caps.train, caps.valid, caps.test).test.x
    cells: dict[tuple[int, bool], dict[str, list[Done]]] = {}
    for (leaf, recipe), runs in grouped(finished, "leaf", "recipe").items():
        cells.setdefault((leaf, recipe == STRAIGHT), {})[recipe] = runs
    sizes = {size.leaf: size for size in table_3(NEURONS)}
    rows, timed = [], {}
    for (leaf, straight), by_h in cells.items():
        valid = {h: fmean(done.result["valid"] for done in runs) for h, runs in by_h.items()}
        h = max(valid, key=valid.__getitem__)
        best = max(by_h[h], key=lambda done: done.result["valid"])
        accuracy = {name: mean_and_sd(done.result["accuracy"] for done in runs) for name, runs in by_h.items()}
        rows.append({
            "leaf": leaf, "straight": straight, "h": h if leaf else None, "size": asdict(sizes[leaf]) if leaf else None,
            "accuracy": accuracy[h], "accuracy_by_h": accuracy, "valid_by_h": valid,
            "epochs": [done.result["epoch"] for done in by_h[h]],
            "engine": _worst([done.result["engine"] for runs in by_h.values() for done in runs]),
            **(_balance(by_h[h]) if leaf else {}),
        })  # fmt: skip
        timed[_key(rows[-1])] = _repeated(best, test)
    seconds = interleaved({key: partial(_seconds, layers) for key, layers in timed.items()}, caps.rounds, 1)
    for layer in (layer for layers in timed.values() for layer in layers):
        layer.close()
    for row in rows:
        times = seconds[_key(row)]
        row["us"] = [1e6 * value for value in quartiles(times)]
        row["speed_up"] = quartiles([dense / own for dense, own in zip(seconds[DENSE], times, strict=True)])
    return {"data": data.name, "caps": asdict(caps), "tokens": vit.TOKENS, "rows": rows}


DENSE = "dense"


def _key(row: dict[str, Any]) -> str:
    """A row's name in tables."""
    return f"{row['leaf']}{', straight-through' if row['straight'] else ''}" if row["leaf"] else DENSE


def _worst(engines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several trials: the largest difference, and the sums of what should be zero."""
    return {
        "trials": len(engines), "difference": max(each["difference"] for each in engines),
        **{key: sum(each[key] for each in engines) for key in ("flips", "tokens", "other_predictions", "images")},
        "same_accuracy": all(each["accuracy"] == each["accuracy_of_torch"] for each in engines),
    }  # fmt: skip


def _balance(chosen: list[Done]) -> dict[str, Any]:
    """Means over trials of a layer's means and of all layers' dead leaves; the largest load of any layer."""
    layers = [layer for done in chosen for layer in done.result["layers"]]
    return {
        "soft_accuracy": mean_and_sd(done.result["soft_accuracy"] for done in chosen),
        "entropy": fmean(layer["entropy"] for layer in layers), "mass": fmean(layer["mass"] for layer in layers),
        "max_load": max(layer["max_load"] for layer in layers),
        "dead": sum(layer["dead"] for layer in layers) / len(chosen),
    }  # fmt: skip


def _seconds(layers: list[Repeated]) -> float:
    """Of all layers for a batch of tokens."""
    return sum(layer.seconds() for layer in layers)


def _repeated(best: Done, x: torch.Tensor) -> list[Repeated]:
    """A trial's layers as the engine has them, with what comes into each when the test images go through the model."""
    model = ViT(x.shape[1], x.shape[2], best.trial.arguments["leaf"])
    engine.load(best.folder, model)
    return [
        Repeated.of_layer(vit.engine_layer(module), inputs, vit.TOKENS, BATCHES)
        for module, inputs in zip(model.feed_forwards, vit.activations(model, x, MOST_INPUTS), strict=True)
    ]


def text(summary: dict[str, Any]) -> str:
    caps, rows, name = summary["caps"], summary["rows"], summary["data"]
    proxy = name != "CIFAR-10"
    dense = next(row for row in rows if not row["leaf"])
    lines = [
        f"Data: {name}{', a proxy: the paper has CIFAR-10' if proxy else ''}. {caps['train']:,} images to train on for "
        f"{caps['epochs']} epochs, {caps['valid']:,} to choose the epoch and h, {caps['test']:,} at most to test; "
        f"{plural(summary['seeds'], 'seed')} of each h.\n",
        table(
            ("feed-forward", "depth", "training size", "inference width", "inference size", "speed-up", "paper's",
             "G_A", f"paper's{' (CIFAR-10)' if proxy else ''}", "of dense", "paper's", "h"),
            [_row(row, dense) for row in rows],
        ),
        table(
            ("leaf", "G_A soft", "G_A hard", "entropy", "mass", "max/mean load", "dead leaves of", "µs"),
            [
                (
                    _key(row), _percent(row["soft_accuracy"]), _percent(row["accuracy"]), f"{row['entropy']:.3f}",
                    f"{row['mass']:.3f}", f"{row['max_load']:.1f}", f"{row['dead']:g} of {4 << row['size']['depth']}",
                    f"{row['us'][1]:.0f}",
                )
                for row in rows
                if row["leaf"]
            ],
        ),
        table(
            ("leaf", *(f"G_A h = {h}" for h in _all_h(rows))),
            [
                (row["leaf"], *(_percent(row["accuracy_by_h"][h]) for h in _all_h(rows)))
                for row in rows
                if row["leaf"] and not row["straight"]
            ],
        ),
        _engine_sentence(rows),
        f"Speed-up is of the four feed-forwards alone: {summary['tokens']:,} tokens, float32, one thread, on the test "
        f"images' activations, against the engine's dense layers of the first row ({dense['us'][1]:.0f} µs), "
        "turn by turn (medians); the paper's is of an A100. G_A is the test accuracy, hard, of the epoch and the h "
        "that were best on the validation images; frozen is the paper's h = ∞; straight-through (the chosen leaf, with "
        "the gradient of the mixture, and a balance) is not the paper's. Entropy is that of a decision in nats, mass "
        "the chosen leaf's share of the mixture (both means over layers), load that of the worst layer; leaves are "
        "those of four layers.",
        "Accuracies after so few images and epochs are below what the architectures can reach; the paper trained until "
        "plateaus, hundreds of epochs.",
    ]  # fmt: skip
    return "\n".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _row(row: dict[str, Any], dense: dict[str, Any]) -> tuple[object, ...]:
    speed, accuracy = PUBLISHED[row["leaf"]]
    size = row["size"]
    sizes = ("–", NEURONS, NEURONS, NEURONS) if size is None else (
        size["depth"], size["training_size"], size["inference_width"], size["inference_size"]
    )  # fmt: skip
    return (
        f"FFF ℓ = {_key(row)}" if row["leaf"] else f"FF w = {NEURONS}", *sizes, f"{row['speed_up'][1]:.2f}",
        f"{speed:.2f}", _percent(row["accuracy"]), accuracy, f"{row['accuracy'][0] / dense['accuracy'][0]:.1%}",
        f"{accuracy / PUBLISHED[0][1]:.1%}", row["h"] or "–",
    )  # fmt: skip


def _all_h(rows: list[dict[str, Any]]) -> list[str]:
    return list(next(row["accuracy_by_h"] for row in rows if row["leaf"]))


def _percent(mean_sd: Sequence[float]) -> str:
    return plus_minus(mean_sd, 2, 100) if mean_sd[1] else f"{100 * mean_sd[0]:.2f}"


def _engine_sentence(rows: list[dict[str, Any]]) -> str:
    worst = [row["engine"] for row in rows]
    difference = max(w["difference"] for w in worst)
    flips, tokens = sum(w["flips"] for w in worst), sum(w["tokens"] for w in worst)
    others, images = sum(w["other_predictions"] for w in worst), sum(w["images"] for w in worst)
    return (
        f"Exported to the engine, the feed-forwards of {sum(w['trials'] for w in worst)} models differ from PyTorch's "
        f"hard forward by {difference:.1e} at most "
        f"({'within' if difference <= AGREEMENT else 'more than'} {AGREEMENT:g}) on their own activations, and choose "
        f"another leaf for {flips} of {tokens:,} tokens. With them in place of the models' own, {others} of {images:,} "
        "predictions are others; accuracy is "
        f"{'the same' if all(w['same_accuracy'] for w in worst) else 'not the same'}."
    )


def plot(summary: dict[str, Any], path: Path) -> None:
    trees = [row for row in summary["rows"] if row["leaf"]]
    rows, straight = ([row for row in trees if row["straight"] == wanted] for wanted in (False, True))
    places = range(len(rows))
    dense = next(row for row in summary["rows"] if not row["leaf"])["accuracy"][0]

    def of_dense(rows: list[dict[str, Any]], key: str, part: int = 0) -> list[float]:
        return [100 * row[key][part] / dense for row in rows]

    fig, ((speed, accuracy),) = figure(1, 2, width=9.0, height=3.6)
    speed.plot(places, [row["speed_up"][1] for row in rows], "o-", label="engine, one thread")
    speed.plot(places, [row["speed_up"][1] for row in straight], "v-", label="straight-through")
    speed.plot(places, [PUBLISHED[row["leaf"]][0] for row in rows], "s--", color="gray", label="paper, A100")
    speed.plot(places, [NEURONS / row["size"]["inference_size"] for row in rows], "k:", label="by neurons")
    speed.set(ylabel="speed-up of the feed-forwards", yscale="log")
    speed.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    accuracy.errorbar(places, of_dense(rows, "accuracy"), of_dense(rows, "accuracy", 1), fmt="o-",
                      label=f"{summary['data']}, hard")  # fmt: skip
    accuracy.plot(places, of_dense(rows, "soft_accuracy"), "^:", label="soft")
    accuracy.plot(places, of_dense(straight, "accuracy"), "v-", label="straight-through")
    paper = [100 * PUBLISHED[row["leaf"]][1] / PUBLISHED[0][1] for row in rows]
    accuracy.plot(places, paper, "s--", color="gray", label="paper, CIFAR-10")
    accuracy.set(ylabel="accuracy, % of the dense model's")
    for ax in (speed, accuracy):
        ax.set_xticks(places, [str(row["leaf"]) for row in rows])
        ax.set_xlabel("neurons of a leaf")
        ax.legend()
    save(fig, path)


STUDY = Study("table3", read_images, trials, run, summarise, text, plot, seeds=1)
