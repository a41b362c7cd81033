"""A small language model whose feed-forwards are mixtures, trained with or without noise and a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench.studies.data import Texts
from bench.studies.results import described_load
from lapinfer.train.config import Config
from lapinfer.train.corpus import Batches, prepare
from lapinfer.train.decoder import Decoder
from lapinfer.train.evaluation import validate
from lapinfer.train.loop import adamw, train_step
from lapinfer.train.routed import add_records, balances_of, max_over_mean


@dataclass(frozen=True, slots=True)
class Caps:
    """Sizes and steps; importance and load are weighed as in arXiv 1701.06538, switch as in 2101.03961."""

    layers: int = 2
    hidden: int = 64
    experts: int = 16
    top_k: int = 2
    neurons: int = 32
    vocab: int = 1024
    context: int = 128
    batch: int = 16
    steps: int = 1500
    every: int = 25
    validation: float = 0.05
    importance: float = 0.1
    load: float = 0.1
    switch: float = 0.01


FULL, QUICK = Caps(), Caps(vocab=300, context=32, hidden=32, batch=4, steps=12, every=4, validation=0.1)


def config(noise: bool, penalty: bool, seed: int, quick: bool) -> Config:
    """The configuration of a cell."""
    c = QUICK if quick else FULL
    weights = {"switch": 0.0, "z_loss": 0.0}
    if penalty:
        weights |= {"importance": c.importance} | ({"load": c.load} if noise else {"switch": c.switch})
    return Config.from_dict({
        "model": {
            "vocab_size": c.vocab, "max_position_embeddings": c.context, "hidden_size": c.hidden,
            "num_hidden_layers": c.layers, "num_attention_heads": 4, "num_key_value_heads": 2, "qk_norm": True,
        },
        "moe": {
            "num_experts": c.experts, "num_experts_per_tok": c.top_k, "moe_intermediate_size": c.neurons,
            "norm_topk_prob": c.top_k > 1, "noise": noise, **weights,
        },
        "training": {
            "steps": c.steps, "batch": c.batch, "warmup": min(20, c.steps // 3), "precision": "f32", "seed": seed,
            "validation": c.validation,
        },
    })  # fmt: skip


def check(texts: Texts, quick: bool) -> None:
    """InputError when there is too little text for a vocabulary, or a validation."""
    c = QUICK if quick else FULL
    texts.expect(8 * c.context * max(round(1 / c.validation), 2))


def run(arguments: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """Train a cell's model for one seed; loads of the held-out text, and how they went while it was trained."""
    c = QUICK if arguments["quick"] else FULL
    settings = config(arguments["noise"], arguments["penalty"], arguments["seed"], arguments["quick"])
    _, corpus = prepare(texts.contents, settings)
    batches = Batches(corpus.ids, settings.length, c.batch, arguments["seed"])
    torch.manual_seed(arguments["seed"])
    model = Decoder(settings).train()
    optimizer = adamw(model, settings.training)
    steps, max_load = [], []
    recent = balances_of(model)
    for step in range(c.steps):
        train_step(model, optimizer, batches.at(step), step, bf16=False)
        add_records(recent, model)
        if (step + 1) % c.every == 0:
            steps.append(step + 1)
            max_load.append(max(max_over_mean(balance.load) for balance in recent))
            recent = balances_of(model)
    balances = balances_of(model)
    figures = validate(model, corpus.held_out, corpus.held_out_bytes, balances)
    layers = [described_load(balance.load, c.top_k, balance.entropy / balance.batches) for balance in balances]
    return {**figures, "layers": layers, "steps": steps, "max_load_by_step": max_load}
