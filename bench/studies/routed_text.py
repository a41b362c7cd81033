"""A small language model whose feed-forwards are mixtures, trained with or without noise and a penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.studies.loads import described, max_over_mean
from lapinfer.errors import InputError
from lapinfer.train.config import Config
from lapinfer.train.corpus import Batches, encode, read_texts, split, train_tokenizer
from lapinfer.train.decoder import Decoder
from lapinfer.train.evaluation import perplexity
from lapinfer.train.loop import adamw, train_step
from lapinfer.train.record import Balance


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


def caps(quick: bool) -> dict[str, Any]:
    """For the summary."""
    c = QUICK if quick else FULL
    return asdict(c) | {"tokens": c.batch * c.context}


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


def check(texts: Sequence[str], quick: bool) -> None:
    """InputError when there is too little text for a vocabulary, or a validation."""
    c = QUICK if quick else FULL
    needed = 8 * c.context * max(round(1 / c.validation), 2)
    if (size := sum(map(len, texts))) < needed:
        raise InputError(f"the texts have {size:,} characters; the study needs at least {needed:,}")


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train a cell's model for one seed; loads of the held-out text, and how they went while it was trained."""
    c = QUICK if arguments["quick"] else FULL
    made = config(arguments["noise"], arguments["penalty"], arguments["seed"], arguments["quick"])
    trained_on, held_out = split(read_texts(arguments["texts"]), c.validation)
    corpus = encode(train_tokenizer(trained_on, c.vocab), trained_on, held_out, made)
    batches = Batches(corpus.ids, made.length, c.batch, arguments["seed"])
    torch.manual_seed(arguments["seed"])
    model = Decoder(made).train()
    optimizer = adamw(model, made.training)
    steps, seen = [], []
    recent = [Balance() for _ in model.routed]
    for step in range(c.steps):
        train_step(model, optimizer, batches.at(step), step, bf16=False)
        for module, balance in zip(model.routed, recent, strict=True):
            assert module.record is not None
            balance.add(module.record)
        if (step + 1) % c.every == 0:
            steps.append(step + 1)
            seen.append(max(max_over_mean(b.load) for b in recent if b.load is not None))
            recent = [Balance() for _ in model.routed]
    balances = [Balance() for _ in model.routed]
    found = perplexity(model, corpus.held_out, c.context, balances)
    return {
        "ppl": found.ppl, "error": found.error,
        "bits_per_byte": math.log2(found.ppl) * len(corpus.held_out) / corpus.held_out_bytes,
        "layers": [described(b.load, c.top_k, b.entropy / b.batches) for b in balances if b.load is not None],
        "steps": steps, "max_load_by_step": seen,
    }  # fmt: skip
