"""Language models of one size whose feed-forwards differ: dense, experts, trees, and what they are measured against.

All have the same tokenizer, attention, optimiser and tokens; `moe` and the trees have as many neurons as `dense`, and
`dense_active` computes as much per token as they do. `fff_one` has one tree instead of two, of leaves twice as
wide. Controls: `frozen`, trees whose decisions stay random; `none`, one neuron. `fff_soft` is trained by the recipe of
arXiv 2308.14711 (a soft mixture, hardened in the second half). The best of each arm by the held-out ends of the
training texts is exported; the last text is no part of the training, and scored once for each model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from bench.studies.data import Texts, read_texts
from bench.studies.results import figure, mean_and_sd, plus_minus, save, table
from bench.studies.study import Done, Setting, Study, Trial, grouped
from lapinfer.errors import InputError
from lapinfer.spec import ModelSpec
from lapinfer.tensors import active_parameters
from lapinfer.train.config import Architecture, Config, Dense, Mixture, Training, Trees
from lapinfer.train.decoder import Decoder
from lapinfer.train.evaluation import validate
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
    "dense": "dense", "dense_active": "dense, equal active size", "moe": "16 experts, 2 per token",
    "fff": "2 trees of 8 leaves", "fff_one": "a tree of 8 leaves twice as wide",
    "fff_soft": "trees, soft then hardened", "frozen": "trees, frozen at random",
    "none": "one neuron (control)",
}  # fmt: skip


def arm(name: str, seed: int = 0) -> Config:
    """The configuration of an arm, which is that of weights/configs."""
    return Config(MODEL, **ARMS[name], training=replace(TRAINING, seed=seed))


def read(paths: Sequence[Path]) -> Texts:
    if len(paths) < 2:
        raise InputError("siblings: expected two texts or more; nothing is trained on the last one")
    return read_texts(paths)


def trials(data: Texts, setting: Setting) -> list[Trial]:
    small = replace(
        MODEL, vocab_size=300, max_position_embeddings=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    found = []
    for seed in range(setting.seeds):  # seeds outside: what is there after half of the time can be compared
        for name in ARMS:
            config = arm(name, seed)
            if setting.quick:
                config = replace(config, model=small, training=replace(config.training, steps=4, batch=2, warmup=1))
            arguments = {"arm": name, "config": config.as_dict(), "texts": data.identity}
            found.append(Trial(f"{name}/{seed}", arguments))
    return found


def run(arguments: dict[str, Any], data: Texts, folder: Path) -> dict[str, Any]:
    """Train one model; figures of the held-out ends, and of the last text."""
    config = Config.from_dict(arguments["config"])
    *texts, unseen = data.contents
    trained = train(config, texts, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = np.array(tokenizer.encode(unseen).ids, np.int64)
    return {
        "validation": trained.validation, "unseen": validate(trained.model, ids, len(unseen.encode())),
        "loss": trained.loss, "parameters": trained.parameters, "active_parameters": trained.active_parameters,
        "training_macs": training_macs(trained.model.spec, config), "curve": _curve(folder / "metrics.jsonl"),
        "folder": folder.name,
    }  # fmt: skip


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


def summarise(done: Sequence[Done], data: Texts, setting: Setting) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for (name,), of_arm in grouped(done, "arm").items():
        results = [entry.result for entry in of_arm]
        best = min(of_arm, key=lambda entry: entry.result["validation"]["ppl"])
        layers = [layer for result in results for layer in result["validation"].get("layers", ())]
        arms[name] = {
            **{key: results[0][key] for key in ("parameters", "active_parameters", "training_macs")},
            **{f"{label}_{key}": _spread(result[part].get(key) for result in results)
               for label, part in (("held_out", "validation"), ("unseen", "unseen"))
               for key in ("ppl", "soft_ppl", "bits_per_byte")},
            "max_load": max((layer["max_load"] for layer in layers), default=None),
            "dead": sum(layer["dead"] for layer in layers) if layers else None,
            "mass": sum(layer["mass"] for layer in layers) / len(layers) if layers else None,
            "best": {"seed": best.trial.arguments["config"]["training"]["seed"], **best.result},
        }  # fmt: skip
    *names, unseen = data.names
    return {"texts": names, "unseen_text": unseen, "config": done[0].trial.arguments["config"], "arms": arms}


def _spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, deviation and all of the figures that there are."""
    sample = [value for value in values if value is not None]
    if not sample:
        return None
    mean, sd = mean_and_sd(sample)
    return {"mean": mean, "sd": sd, "all": sample}


def text(summary: dict[str, Any]) -> str:
    def spread(value: dict[str, Any] | None, digits: int = 1) -> str:
        return "" if value is None else plus_minus((value["mean"], value["sd"]), digits)

    rows: list[tuple[object, ...]] = []
    for name, own in summary["arms"].items():
        sizes = (f"{own[key] / 1e6:.2f}" for key in ("parameters", "active_parameters", "training_macs"))
        rows.append((
            f"{name}: {WORDS[name]}", *sizes, spread(own["held_out_ppl"]), spread(own["unseen_ppl"]),
            spread(own["unseen_soft_ppl"]), spread(own["unseen_bits_per_byte"], 3),
            "" if own["max_load"] is None else f"{own['max_load']:.1f}", "" if own["dead"] is None else own["dead"],
        ))  # fmt: skip
    training = summary["config"]["training"]
    tokens = training["steps"] * training["batch"] * summary["config"]["model"]["max_position_embeddings"]
    header = (
        "feed-forwards", "parameters, M", "active, M", "training, M multiply-adds per token", "held-out perplexity",
        "unseen", "unseen, soft", "unseen, bits per byte", "max/mean load", "dead",
    )  # fmt: skip
    return (
        table(header, rows)
        + f"\nMean ± standard deviation of {summary['seeds']} seeds; load is the worst, and dead the sum, of all "
        f"layers and seeds. {training['steps']} steps, {tokens:,} tokens of {', '.join(summary['texts'])}, whose last "
        f"{training['validation']:.0%} are held out; unseen is {summary['unseen_text']}. Perplexities are of the "
        "chosen leaf or experts, per token of this tokenizer, and scored as `lapinfer perplexity` does.\n"
    )


def plot(summary: dict[str, Any], path: Path) -> None:
    fig, ((curves, points),) = figure(1, 2, width=11.0, height=4.2)
    for name, own in summary["arms"].items():
        curves.plot(*zip(*own["best"]["curve"], strict=True), label=name)
        seeds = own["unseen_ppl"]["all"]
        points.scatter([own["active_parameters"] / 1e6] * len(seeds), seeds, label=name, s=24)
    curves.set(xlabel="step", ylabel="held-out perplexity (best seed)", yscale="log")
    points.set(xlabel="parameters that a token uses, M", ylabel=f"perplexity on {summary['unseen_text']}, each seed")
    points.legend()
    save(fig, path)


STUDY = Study("siblings", read, trials, run, summarise, text, plot)
