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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bench.studies import vit_training
from bench.studies.images import read_images
from bench.studies.study import Done, Setting, Study, Trial, mean_and_sd, table
from bench.studies.turns import interleaved, quartiles
from bench.studies.vit import NEURONS, ViT
from lapinfer.errors import CheckpointError, InputError
from lapinfer.layers.repeated import Repeated
from lapinfer.layers.sizes import table_3

WEIGHTS = "model.safetensors"
"""In a trial's folder."""
STRAIGHT = "straight"
RECIPES: tuple[str, ...] = ("5", "10", "frozen", STRAIGHT)
"""How trees are trained (vit_training.RECIPES); the last is not the paper's, which takes the best of the others."""
PUBLISHED = {0: (1.0, 84.7), 32: (2.44, 83.6), 16: (2.80, 83.2), 8: (3.29, 82.8), 4: (3.39, 81.6), 2: (3.47, 80.1),
             1: (3.93, 79.8)}  # fmt: skip
"""Speed-up of the feed-forwards on an A100 at batches of 2,048, and accuracy, by the neurons of a leaf; 0 is dense."""
AGREEMENT = 1e-4
BATCHES = 4
"""Of vit_training.TOKENS real activations, which a layer is timed with, one after the other."""
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


def trials(setting: Setting) -> list[Trial]:
    if len(setting.data) != 1:
        raise InputError(f"table3: expected one folder, with MNIST or CIFAR-10, got {len(setting.data)} paths")
    caps, data = QUICK if setting.quick else FULL, setting.data[0]
    vit_training.split(read_images(data), caps.train, caps.valid, caps.test)
    cells = [(0, "dense")]
    for leaf in (32, 1) if setting.quick else [size.leaf for size in table_3(NEURONS)]:
        cells += [(leaf, recipe) for recipe in (RECIPES[1:] if setting.quick else RECIPES)]
    return [
        Trial(
            (f"leaf-{leaf}/{recipe}" if leaf else "dense") + f"/seed-{seed}",
            {"data": str(data.resolve()), "leaf": leaf, "recipe": recipe, "seed": seed, "caps": asdict(caps)},
        )
        for leaf, recipe in cells
        for seed in range(setting.seeds)
    ]


def run(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a model, judge it in PyTorch and in the engine, and leave its weights for `summarise`."""
    caps = Caps(**arguments["caps"])
    images = vit_training.split(read_images(Path(arguments["data"])), caps.train, caps.valid, caps.test)
    fitted = vit_training.fit(images, arguments["leaf"], arguments["recipe"], caps.epochs, arguments["seed"])
    figures = vit_training.judge(fitted.model, images, caps.in_engine)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(fitted.model.state_dict(), folder / WEIGHTS)
    return {
        "epoch": fitted.epoch, "valid": max(fitted.valid), "valid_by_epoch": fitted.valid, **figures,
    }  # fmt: skip


def summarise(finished: Sequence[Done], setting: Setting) -> dict[str, Any]:
    """A row a leaf size, of the paper's recipe with the best mean validation accuracy, and one straight-through; the
    speed is that of the seed with the best validation accuracy."""
    caps = QUICK if setting.quick else FULL
    images = read_images(setting.data[0])
    data = vit_training.split(images, caps.train, caps.valid, caps.test)
    cells: dict[tuple[int, bool], dict[str, list[Done]]] = {}
    for done in finished:
        leaf, recipe = done.trial.arguments["leaf"], done.trial.arguments["recipe"]
        cells.setdefault((leaf, recipe == STRAIGHT), {}).setdefault(recipe, []).append(done)
    sizes = {size.leaf: size for size in table_3(NEURONS)}
    rows, timed = [], {}
    for (leaf, straight), by_h in cells.items():
        valid = {h: fmean(done.result["valid"] for done in runs) for h, runs in by_h.items()}
        h = max(valid, key=valid.__getitem__)
        chosen = by_h[h]
        best = max(chosen, key=lambda done: done.result["valid"])
        rows.append({
            "leaf": leaf, "straight": straight, "h": h if leaf else None, "size": asdict(sizes[leaf]) if leaf else None,
            "accuracy": mean_and_sd(done.result["accuracy"] for done in chosen),
            "accuracy_by_h": {name: mean_and_sd(d.result["accuracy"] for d in runs) for name, runs in by_h.items()},
            "valid_by_h": valid, "epochs": [done.result["epoch"] for done in chosen],
            "engine": _worst([done.result["engine"] for runs in by_h.values() for done in runs]),
            **(_balance(chosen) if leaf else {}),
        })  # fmt: skip
        timed[_key(rows[-1])] = _repeated(best, data.test[0])
    spent = interleaved({leaf: partial(_seconds, layers) for leaf, layers in timed.items()}, caps.rounds, 1)
    for layer in (layer for layers in timed.values() for layer in layers):
        layer.close()
    for row in rows:
        times = spent[_key(row)]
        row["us"] = [1e6 * value for value in quartiles(times)]
        row["speed_up"] = quartiles([dense / own for dense, own in zip(spent[DENSE], times, strict=True)])
    return {"data": images.name, "caps": asdict(caps), "tokens": vit_training.TOKENS, "rows": rows}


DENSE = "dense"


def _key(row: dict[str, Any]) -> str:
    """A row's name in tables."""
    return f"{row['leaf']}{', straight-through' if row['straight'] else ''}" if row["leaf"] else DENSE


def _worst(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several trials: the largest difference, and the sums of what should be zero."""
    return {
        "trials": len(found), "difference": max(f["difference"] for f in found),
        **{key: sum(f[key] for f in found) for key in ("flips", "tokens", "other_predictions", "images")},
        "same_accuracy": all(f["accuracy"] == f["accuracy_of_torch"] for f in found),
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
    path = best.folder / WEIGHTS
    model = ViT(x.shape[1], x.shape[2], best.trial.arguments["leaf"])
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the weights of {best.trial.name} ({error}); delete trials.jsonl") from error
    made = []
    for module, inputs in zip(model.feed_forwards, vit_training.activations(model, x, MOST_INPUTS), strict=True):
        layer = vit_training.engine_layer(module)
        made.append(Repeated.of_layer(layer, inputs, vit_training.TOKENS, BATCHES))
    return made


def text(summary: dict[str, Any]) -> str:
    caps, rows, name = summary["caps"], summary["rows"], summary["data"]
    proxy = name != "CIFAR-10"
    dense = next(row for row in rows if not row["leaf"])
    lines = [
        f"Data: {name}{', a proxy: the paper has CIFAR-10' if proxy else ''}. {caps['train']:,} images to train on for "
        f"{caps['epochs']} epochs, {caps['valid']:,} to choose the epoch and h, {caps['test']:,} at most to test; "
        f"{summary['seeds']} {'seed' if summary['seeds'] == 1 else 'seeds'} of each h.\n",
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


def _percent(found: Sequence[float]) -> str:
    mean, sd = found
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd else "")


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in summary["rows"] if row["leaf"] and not row["straight"]]
    other = [row for row in summary["rows"] if row["straight"]]
    dense = next(row for row in summary["rows"] if not row["leaf"])
    at, labels = range(len(rows)), [str(row["leaf"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(at, [row["speed_up"][1] for row in rows], "o-", label="engine, one thread")
    left.plot(at, [row["speed_up"][1] for row in other], "v-", label="straight-through")
    left.plot(at, [PUBLISHED[row["leaf"]][0] for row in rows], "s--", color="gray", label="paper, A100")
    left.plot(at, [NEURONS / row["size"]["inference_size"] for row in rows], ":", color="black", label="by neurons")
    left.set(ylabel="speed-up of the feed-forwards", yscale="log")
    left.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    right.errorbar(
        at, [100 * row["accuracy"][0] / dense["accuracy"][0] for row in rows],
        [100 * row["accuracy"][1] / dense["accuracy"][0] for row in rows], fmt="o-", label=f"{summary['data']}, hard",
    )  # fmt: skip
    right.plot(at, [100 * row["soft_accuracy"][0] / dense["accuracy"][0] for row in rows], "^:", label="soft")
    right.plot(at, [100 * row["accuracy"][0] / dense["accuracy"][0] for row in other], "v-", label="straight-through")
    paper = [100 * PUBLISHED[row["leaf"]][1] / PUBLISHED[0][1] for row in rows]
    right.plot(at, paper, "s--", color="gray", label="paper, CIFAR-10")
    right.set(ylabel="accuracy, % of the dense model's")
    for axes in (left, right):
        axes.set_xticks(at, labels)
        axes.set_xlabel("neurons of a leaf")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


STUDY = Study(
    "table3", trials, run,
    summarise, text, plot, seeds=1,
)  # fmt: skip
