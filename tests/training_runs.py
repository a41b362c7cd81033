"""Tiny runs of the trainer, for tests here and in processes of their own."""

from __future__ import annotations

import random
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"dense": {"intermediate_size": 40}},
    "moe": {"moe": {"num_experts": 4, "moe_intermediate_size": 12, "noise": True, "importance": 0.1, "load": 0.1}},
    "fff": {"fff": {"depth": 2, "leaf_width": 10, "region_leak": 0.05, "hardening": 0.5}},
}


def text(words: int = 4000, seed: int = 0) -> str:
    """Sentences of few words, so that a tiny model learns something of them in seconds."""
    rng = random.Random(seed)
    nouns, verbs = ["dog", "cat", "bird", "fish", "horse", "mouse"], ["sees", "likes", "hears", "follows", "finds"]
    lines = [
        f"the {rng.choice(nouns)} {rng.choice(verbs)} a {rng.choice(nouns)} {rng.randint(1, 99)} times."
        for _ in range(words // 7)
    ]
    return "\n".join(lines)


def values(kind: str, **training: Any) -> dict[str, Any]:
    """Sections of a configuration."""
    defaults = {
        "steps": 12, "batch": 4, "warmup": 2, "log_every": 1, "validate_every": 5, "save_every": 5,
        "precision": "f32", "validation": 0.2,
    }  # fmt: skip
    return {
        "model": {
            "vocab_size": 300, "max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        **deepcopy(KINDS[kind]),
        "training": defaults | training,
    }  # fmt: skip


def run(kind: str, out: Path) -> None:
    """A run that is long enough to be killed."""
    from lapinfer.train import Config, train

    train(Config.from_dict(values(kind, steps=40)), [text()], out)


def main(kind: str, out: str) -> None:
    import torch

    torch.set_num_threads(1)
    run(kind, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
