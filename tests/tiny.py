"""Tiny random checkpoints of every family, made by transformers: for parity tests of the oracle and of the kernels.

    folder, ids, logits = make(case, tmp_path)

`CASES` (tests/families) switch each option on and off: grouped and single key/value heads, heads narrower or wider
than D / H, biases, windows shorter than the prompt, tied and untied heads, rope scaling beyond the original context,
odd widths; one expert per token or all of them, shared experts of any width, dense layers between, groups, weights of
every kind; layers of convolutions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from family_cases import Case as Case
from family_cases import all_cases

PROMPT = 21
"""Tokens in a prompt: longer than every window and every original context below."""


CASES = all_cases()


def prompt(vocab: int, length: int = PROMPT, seed: int = 0) -> list[int]:
    """Token ids, reproducible."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, length)]


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that make every part matter: matrices that keep sizes near one, norms and biases away from 1 and 0."""
    noise = np.asarray(rng.standard_normal(shape, dtype=np.float32))
    if len(shape) > 1 and not name.endswith("bias"):
        few = shape[-2] < 16  # a router
        return noise * np.float32(1.5 / np.sqrt(shape[-1] if few else min(shape[-2:])))
    return np.asarray(noise * np.float32(0.3) + np.float32(0.0 if name.endswith("bias") else 0.8))


def build(model_type: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A transformers model in float32 with eager attention and random weights."""
    import torch
    import transformers

    torch.set_num_threads(1)
    made = transformers.AutoConfig.for_model(model_type, **json.loads(json.dumps(config)))
    made.dtype = "float32"
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager").float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in stored_parameters(model).items():
            parameter.copy_(torch.from_numpy(random_tensor(name, tuple(parameter.shape), rng)))
    return model


def stored_parameters(model: Any) -> dict[str, Any]:
    """Parameters, and buffers that are saved with them, by name."""
    stored = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return dict(sorted({**dict(model.named_parameters()), **buffers}.items()))


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    """What transformers computes: [T, V] float32."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def make(case: Case, folder: Path, length: int = PROMPT) -> tuple[Path, list[int], np.ndarray]:
    """Saves the case's checkpoint below `folder`: (its folder, token ids, transformers' logits [T, V])."""
    model = build(case.family, case.config)
    ids = prompt(case.config["vocab_size"], length)
    path = folder / str(case)
    model.save_pretrained(path)
    return path, ids, logits_of(model, ids)


GOLDEN = Path(__file__).parent / "golden"
"""Expected logits that serve where torch is absent; `python tests/tiny.py` writes those that are missing, and
`python tests/tiny.py NAME …` these cases anew."""

KEPT = 4
"""How many of the last positions' logits a golden file keeps."""


def write_golden(names: Collection[str]) -> None:
    """One file per case: config.json, names and shapes of stored tensors (a seed gives their values), logits."""
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        if (GOLDEN / f"{case}.npz").exists() if not names else str(case) not in names:
            continue
        model = build(case.family, case.config)
        ids = prompt(case.config["vocab_size"])
        config = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
        shapes = {name: list(p.shape) for name, p in stored_parameters(model).items()}
        text = json.dumps({"config": config, "shapes": shapes})
        packed = {"json": np.frombuffer(text.encode(), np.uint8), "logits": logits_of(model, ids)[-KEPT:]}
        np.savez_compressed(GOLDEN / f"{case}.npz", **packed)


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int], np.ndarray]:
    """(config.json, stored tensors by their published names, token ids, logits [KEPT, V] of the last positions)."""
    with np.load(path, allow_pickle=False) as file:
        told, logits = json.loads(file["json"].tobytes()), file["logits"]
    rng = np.random.default_rng(0)
    stored = {name: random_tensor(name, tuple(shape), rng) for name, shape in told["shapes"].items()}
    return told["config"], stored, prompt(told["config"]["vocab_size"]), logits


if __name__ == "__main__":
    write_golden(sys.argv[1:])
