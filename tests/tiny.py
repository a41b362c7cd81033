"""Tiny random checkpoints of every family, made by transformers: for parity tests of the oracle and of the kernels.

    folder, ids, logits = make(case, tmp_path)

`CASES` switch each option on and off: grouped and single key/value heads, heads narrower or wider than D / H, biases,
windows shorter than the prompt, tied and untied heads, rope scaling beyond the original context, odd widths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 21
"""Tokens in a prompt: longer than every window and every original context below."""


@dataclass(frozen=True)
class Case:
    """A `model_type` and the keywords of its transformers config class."""

    family: str
    name: str
    config: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


BASE = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _case(family: str, name: str, rope: dict[str, Any] | None = None, **config: Any) -> Case:
    scaled = {"rope_parameters": {"rope_theta": 1000.0, **rope}} if rope else {}
    return Case(family, name, BASE | scaled | config)


def _gpt2(name: str, **config: Any) -> Case:
    sizes = {"vocab_size": 101, "n_embd": 40, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return Case("gpt2", name, sizes | {"bos_token_id": 1, "eos_token_id": 2} | config)


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.7, 2.9, 4.3]}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

CASES = [
    _gpt2("plain"),
    _gpt2("options", n_inner=72, activation_function="gelu", tie_word_embeddings=False, scale_attn_weights=False),
    _gpt2("by_layer", activation_function="relu", n_embd=36, n_layer=3, scale_attn_by_inverse_layer_idx=True),
    _case("llama", "plain"),
    _case("llama", "odd", hidden_size=40, intermediate_size=90, vocab_size=131, num_hidden_layers=3),
    _case("llama", "tied_mha", tie_word_embeddings=True, num_key_value_heads=4),
    _case("llama", "bias_mqa", attention_bias=True, mlp_bias=True, num_key_value_heads=1, head_dim=20),
    _case("llama", "linear", {"rope_type": "linear", "factor": 2.5}),
    _case("llama", "llama3", _LLAMA3 | {"original_max_position_embeddings": 16}, head_dim=32),
    _case("llama", "yarn", _YARN, head_dim=32),
    _case("llama", "yarn_mscale", _YARN | {"mscale": 0.7, "mscale_all_dim": 1.1, "beta_fast": 8.0, "truncate": False}),
    _case("llama", "longrope", _LONG | {"original_max_position_embeddings": 16, "factor": 4.0}, head_dim=8),
    _case("mistral", "window", sliding_window=7),
    _case("mistral", "full", sliding_window=None, head_dim=16, tie_word_embeddings=True),
    _case("qwen2", "plain"),
    _case("qwen2", "window", use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    _case(
        "qwen2",
        "layer_types",
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    _case("qwen3", "plain", head_dim=16),
    _case("qwen3", "bias", head_dim=24, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1),
    _case("qwen3", "window", head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    _case("phi3", "plain"),
    _case("phi3", "partial", {"rope_type": "default", "partial_rotary_factor": 0.5}, sliding_window=9),
    _case(
        "phi3",
        "longrope_long",
        _LONG | {"partial_rotary_factor": 0.5},
        hidden_size=64,
        original_max_position_embeddings=16,
        tie_word_embeddings=True,
    ),
    _case(
        "phi3",
        "longrope_short",
        _LONG | {"partial_rotary_factor": 0.5},
        hidden_size=64,
        original_max_position_embeddings=32,
    ),
    _case("gemma2", "plain", head_dim=16, sliding_window=6, query_pre_attn_scalar=24),
    _case(
        "gemma2",
        "options",
        head_dim=12,
        sliding_window=6,
        attention_bias=True,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        num_hidden_layers=3,
        tie_word_embeddings=False,
    ),
    _case("gemma3_text", "plain", rope_parameters=_GEMMA3_ROPE, head_dim=16, sliding_window=6, num_hidden_layers=7),
    _case(
        "gemma3_text",
        "options",
        rope_parameters=_GEMMA3_ROPE,
        head_dim=20,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=24,
        final_logit_softcapping=20.0,
        attention_bias=True,
        num_key_value_heads=1,
    ),
    _case("olmo2", "plain"),
    _case("olmo2", "options", attention_bias=True, tie_word_embeddings=True, num_key_value_heads=4, hidden_size=40),
    _case("granite", "plain"),
    _case(
        "granite",
        "multipliers",
        embedding_multiplier=12.0,
        attention_multiplier=0.15,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    _case("smollm3", "plain", num_hidden_layers=4),
    _case(
        "smollm3",
        "options",
        no_rope_layers=[0, 1],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
]


def prompt(vocab: int, length: int = PROMPT, seed: int = 0) -> list[int]:
    """Token ids, reproducible."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, length)]


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that make every part matter: matrices that keep sizes near one, norms and biases away from 1 and 0."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return noise * np.float32(1.5 / np.sqrt(min(shape)))
    return noise * np.float32(0.3) + np.float32(0.0 if name.endswith("bias") else 0.8)


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
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(random_tensor(name, tuple(parameter.shape), rng)))
    return model


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
"""Expected logits that serve where torch is absent; `python tests/tiny.py` writes them anew."""

KEPT = 4
"""How many of the last positions' logits a golden file keeps."""


def write_golden() -> None:
    """One file a case: config.json, names and shapes of stored tensors (a seed gives their values), logits."""
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        model = build(case.family, case.config)
        ids = prompt(case.config["vocab_size"])
        config = {k: v for k, v in model.config.to_dict().items() if k != "transformers_version"}
        shapes = {name: list(p.shape) for name, p in sorted(model.named_parameters())}
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
    write_golden()
