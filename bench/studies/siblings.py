"""Language models of one size whose feed-forwards differ: dense, experts, trees, and what they are measured against.

All have the same tokenizer, attention, optimiser and tokens; `moe` and the trees have as many neurons as `dense`, and
`dense_active` computes as much for a token as they do. `fff_one` has one tree instead of two, of leaves twice as
wide. Controls: `frozen`, trees whose decisions stay random; `none`, one neuron. `fff_soft` is trained by the recipe of
arXiv 2308.14711 (a soft mixture, hardened in the second half). The best of each arm by the held-out ends of the
training texts is exported; the last text is no part of the training, and scored once for each model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from bench.studies.study import Done, Setting, Study, Trial, mean_and_sd, table
from lapinfer.errors import InputError
from lapinfer.spec import ModelSpec
from lapinfer.tensors import active_parameters
from lapinfer.train.config import Architecture, Config, Dense, Mixture, Training, Trees
from lapinfer.train.corpus import read_texts
from lapinfer.train.decoder import Decoder
from lapinfer.train.evaluation import perplexity
from lapinfer.train.fff import FFF, soft_forward
from lapinfer.train.loop import train

MODEL = Architecture(
    vocab_size=2048, max_position_embeddings=256, hidden_size=192, num_hidden_layers=4, num_attention_heads=6,
    num_key_value_heads=3,
)  # fmt: skip
TRAINING = Training(steps=2000, batch=8, learning_rate=2e-3, save_every=200, validate_every=100)
TREES = Trees(depth=3, leaf_width=48, trees=2)
ARMS: dict[str, dict[str, Any]] = {
    "dense": {"dense": Dense(768)},
    "dense_active": {"dense": Dense(97)},  # two leaves or experts of 48, and what chooses them
    "moe": {"moe": Mixture(16, 2, 48)},
    "fff": {"fff": TREES},
    "fff_one": {"fff": Trees(depth=3, leaf_width=96)},
    "fff_soft": {"fff": replace(TREES, forward="soft", balance=0.0, hardening=3.0)},
    "frozen": {"fff": replace(TREES, forward="hardened", balance=0.0)},
    "none": {"dense": Dense(1)},
}
SHIPPED = ("dense", "dense_active", "moe", "fff")
WORDS = {
    "dense": "dense", "dense_active": "dense, equal active size", "moe": "16 experts, 2 a token",
    "fff": "2 trees of 8 leaves", "fff_one": "a tree of 8 leaves twice as wide",
    "fff_soft": "trees, soft then hardened", "frozen": "trees, frozen at random",
    "none": "one neuron (control)",
}  # fmt: skip


def arm(name: str, seed: int = 0) -> Config:
    """The configuration of an arm, which is that of weights/configs."""
    return Config(MODEL, **ARMS[name], training=replace(TRAINING, seed=seed))


def trials(setting: Setting) -> list[Trial]:
    if len(setting.data) < 2:
        raise InputError("siblings: expected two texts or more; nothing is trained on the last one")
    read_texts(setting.data)
    texts = [str(path.resolve()) for path in setting.data]
    found = []
    for seed in range(setting.seeds):  # seeds outside: what is there after half of the time can be compared
        for name in ARMS:
            config = arm(name, seed)
            if setting.quick:
                small = replace(MODEL, vocab_size=300, max_position_embeddings=64, hidden_size=24, num_hidden_layers=2,
                                num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
                config = replace(config, model=small, training=replace(config.training, steps=4, batch=2, warmup=1))
            found.append(Trial(f"{name}/{seed}", {"arm": name, "config": config.as_dict(), "texts": texts}))
    return found


def run(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one model; figures of the held-out ends, and of the last text."""
    config = Config.from_dict(arguments["config"])
    *texts, unseen = read_texts(arguments["texts"])
    trained = train(config, texts, folder)
    return {
        "validation": trained.validation, "unseen": _unseen(trained.model, folder, unseen), "loss": trained.loss,
        "parameters": trained.parameters, "active_parameters": trained.active_parameters,
        "training_macs": training_macs(trained.model.spec, config), "curve": _curve(folder / "metrics.jsonl"),
        "folder": folder.name,
    }  # fmt: skip


def _unseen(model: Decoder, folder: Path, text: str) -> dict[str, float]:
    ids = np.array(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids, np.int64)
    found = perplexity(model, ids, model.spec.context)
    figures = {"ppl": found.ppl, "error": found.error}
    figures["bits_per_byte"] = math.log2(found.ppl) * len(ids) / len(text.encode())
    if any(isinstance(module, FFF) for module in model.modules()):
        with soft_forward(model):
            figures["soft_ppl"] = perplexity(model, ids, model.spec.context).ppl
    return figures


def training_macs(spec: ModelSpec, config: Config) -> int:
    """Multiply-adds with weights of one token going forward in training: all leaves of a tree, chosen experts alone."""
    if config.moe is not None:
        return active_parameters(spec)
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(config).parameters() if p.ndim > 1)


def _curve(path: Path) -> list[tuple[int, float]]:
    """(step, held-out perplexity) of a run."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["validation"]["ppl"]) for line in lines if "validation" in line]


def summarise(done: Sequence[Done], setting: Setting) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for name in ARMS:
        of_arm = [entry for entry in done if entry.trial.arguments["arm"] == name]
        results = [entry.result for entry in of_arm]
        best = min(of_arm, key=lambda entry: entry.result["validation"]["ppl"])
        layers = [layer for result in results for layer in result["validation"].get("layers", ())]
        arms[name] = {
            **{key: results[0][key] for key in ("parameters", "active_parameters", "training_macs")},
            **{f"held_out_{key}": _spread(r["validation"].get(key) for r in results)
               for key in ("ppl", "soft_ppl", "bits_per_byte")},
            **{f"unseen_{key}": _spread(r["unseen"].get(key) for r in results)
               for key in ("ppl", "soft_ppl", "bits_per_byte")},
            "max_load": max((layer["max_load"] for layer in layers), default=None),
            "dead": sum(layer["dead"] for layer in layers) if layers else None,
            "mass": sum(layer["mass"] for layer in layers) / len(layers) if layers else None,
            "best": {"seed": best.trial.arguments["config"]["training"]["seed"], **best.result},
        }  # fmt: skip
    config = done[0].trial.arguments["config"]
    names = [Path(path).name for path in done[0].trial.arguments["texts"]]
    return {"texts": names[:-1], "unseen_text": names[-1], "config": config, "arms": arms}


def _spread(values: Any) -> dict[str, Any] | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    mean, deviation = mean_and_sd(found)
    return {"mean": mean, "sd": deviation, "all": found}


def text(summary: dict[str, Any]) -> str:
    def spread(value: dict[str, Any] | None, digits: int = 1) -> str:
        return "" if value is None else f"{value['mean']:.{digits}f} ± {value['sd']:.{digits}f}"

    rows: list[tuple[object, ...]] = []
    for name, found in summary["arms"].items():
        rows.append((
            f"{name}: {WORDS[name]}", f"{found['parameters'] / 1e6:.2f}", f"{found['active_parameters'] / 1e6:.2f}",
            f"{found['training_macs'] / 1e6:.2f}", spread(found["held_out_ppl"]), spread(found["unseen_ppl"]),
            spread(found["unseen_soft_ppl"]), spread(found["unseen_bits_per_byte"], 3),
            "" if found["max_load"] is None else f"{found['max_load']:.1f}",
            "" if found["dead"] is None else found["dead"],
        ))  # fmt: skip
    training = summary["config"]["training"]
    tokens = training["steps"] * training["batch"] * summary["config"]["model"]["max_position_embeddings"]
    header = (
        "feed-forwards", "parameters, M", "active, M", "training, M multiply-adds a token", "held-out perplexity",
        "unseen", "unseen, soft", "unseen, bits a byte", "max/mean load", "dead",
    )  # fmt: skip
    return (
        table(header, rows)
        + f"\nMean ± standard deviation of {summary['seeds']} seeds; load is the worst, and dead the sum, of all "
        f"layers and seeds. {training['steps']} steps, {tokens:,} tokens of {', '.join(summary['texts'])}, whose last "
        f"{training['validation']:.0%} are held out; unseen is {summary['unseen_text']}. Perplexities are of the "
        "chosen leaf or experts, a token of this tokenizer, and scored as `lapinfer perplexity` does.\n"
    )


def plot(summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, points) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, found in summary["arms"].items():
        curves.plot(*zip(*found["best"]["curve"], strict=True), label=name)
        seeds = found["unseen_ppl"]["all"]
        points.scatter([found["active_parameters"] / 1e6] * len(seeds), seeds, label=name, s=24)
    curves.set(xlabel="step", ylabel="held-out perplexity (best seed)", yscale="log")
    points.set(xlabel="parameters that a token uses, M", ylabel=f"perplexity on {summary['unseen_text']}, each seed")
    points.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


STUDY = Study(
    "siblings", trials, run, summarise, text, plot,
)  # fmt: skip
