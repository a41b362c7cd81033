"""Tiny random checkpoints of every family, made by transformers: for parity tests of the oracle and of the kernels.

    folder, ids, logits = make(case, tmp_path)

`CASES` switch each option on and off: grouped and single key/value heads, heads narrower or wider than D / H, biases,
windows shorter than the prompt, tied and untied heads, rope scaling beyond the original context, odd widths;
one expert a token or all of them, shared experts of any width, dense layers between, groups, weights of every kind;
layers of convolutions.
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

    @property
    def routed(self) -> bool:
        """Whether it has experts."""
        return "num_experts_per_tok" in self.config


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


def _case(family: str, name: str, rope: dict[str, Any] | None = None, /, **config: Any) -> Case:
    scaled = {"rope_parameters": {"rope_theta": 1000.0, **rope}} if rope else {}
    return Case(family, name, BASE | scaled | config)


def _gpt2(name: str, **config: Any) -> Case:
    sizes = {"vocab_size": 101, "n_embd": 40, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return Case("gpt2", name, sizes | {"bos_token_id": 1, "eos_token_id": 2} | config)


_QWEN_MOE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
}
_LFM2: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
_MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "attention_bias": True,
    "tie_word_embeddings": True,
}


def _experts(family: str, name: str, rope: dict[str, Any] | None = None, /, **config: Any) -> Case:
    """Of a family that calls the number of experts num_local_experts, and their width intermediate_size."""
    sizes = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40}
    return _case(family, name, rope, **sizes | config)


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
    _experts("mixtral", "plain"),
    _experts("mixtral", "window_top1", num_experts_per_tok=1, sliding_window=7, head_dim=16, tie_word_embeddings=True),
    _experts("mixtral", "every_expert", num_local_experts=4, num_experts_per_tok=4, intermediate_size=24),
    _case("qwen2_moe", "plain", **_QWEN_MOE, shared_expert_intermediate_size=48),
    _case(
        "qwen2_moe",
        "dense_layer",
        **_QWEN_MOE | {"num_experts_per_tok": 3},
        shared_expert_intermediate_size=40,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        num_hidden_layers=3,
        qkv_bias=False,
        tie_word_embeddings=True,
    ),
    _case(
        "qwen2_moe",
        "sparse_step",
        **_QWEN_MOE | {"num_experts_per_tok": 1},
        shared_expert_intermediate_size=16,
        decoder_sparse_step=2,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
    _case("qwen3_moe", "plain", **_QWEN_MOE | {"num_experts": 7}, head_dim=16),
    _case(
        "qwen3_moe",
        "options",
        **_QWEN_MOE | {"num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 40},
        norm_topk_prob=True,
        mlp_only_layers=[0],
        num_hidden_layers=3,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        tie_word_embeddings=True,
    ),
    _case("olmoe", "plain", num_experts=8, num_experts_per_tok=3, intermediate_size=28),
    _case(
        "olmoe",
        "clip",
        num_experts=5,
        num_experts_per_tok=2,
        intermediate_size=24,
        hidden_size=40,
        num_key_value_heads=4,
        clip_qkv=0.4,
        norm_topk_prob=True,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    _experts("granitemoe", "plain"),
    _experts("granitemoe", "multipliers", **_MULTIPLIERS, num_local_experts=9, num_experts_per_tok=4),
    _experts("granitemoeshared", "plain", shared_intermediate_size=80),
    _experts("granitemoeshared", "uneven", **_MULTIPLIERS, intermediate_size=24, shared_intermediate_size=50),
    _experts("granitemoeshared", "not_shared", num_experts_per_tok=1, shared_intermediate_size=0),
    _experts("phimoe", "plain", router_jitter_noise=0.2),
    _experts(
        "phimoe",
        "biases",
        router_jitter_noise=0.05,
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=9,
        head_dim=20,
    ),
    _experts(
        "phimoe",
        "longrope_short",
        _LONG | {"original_max_position_embeddings": 32, "short_mscale": 1.2, "long_mscale": 1.4},
        head_dim=8,
        num_local_experts=2,
        tie_word_embeddings=True,
        lm_head_bias=True,
    ),
    _experts(
        "phimoe",
        "longrope_long",  # transformers 5.24 never takes the long factors of this family: here they are the short ones
        _LONG
        | {"long_factor": _LONG["short_factor"], "original_max_position_embeddings": 16}
        | {"short_mscale": 1.2, "long_mscale": 1.4},
        head_dim=8,
        router_jitter_noise=0.0,
    ),
    _case("deepseek_v2", "plain", **_DEEPSEEK, q_lora_rank=None, first_k_dense_replace=1),
    _case(
        "deepseek_v2",
        "groups",
        **_DEEPSEEK,
        q_lora_rank=28,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        n_shared_experts=1,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    _case(
        "deepseek_v2",
        "yarn",
        _YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
        **_DEEPSEEK | {"n_routed_experts": 5, "num_experts_per_tok": 1},
        q_lora_rank=None,
        attention_bias=True,
        n_shared_experts=1,
    ),
    _case("deepseek_v3", "plain", **_DEEPSEEK, q_lora_rank=28, n_group=1, topk_group=1, first_k_dense_replace=0),
    _case(
        "deepseek_v3",
        "groups",
        **_DEEPSEEK | {"n_routed_experts": 9, "num_experts_per_tok": 4},
        q_lora_rank=None,
        n_group=3,
        topk_group=2,
        n_shared_experts=3,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        num_hidden_layers=3,
    ),
    _case(
        "deepseek_v3",
        "yarn",
        _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        **_DEEPSEEK,
        q_lora_rank=28,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=0,
        rope_interleave=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    _case("lfm2", "plain", **_LFM2, block_multiple_of=40),
    _case(
        "lfm2",
        "options",
        hidden_size=40,
        intermediate_size=50,
        num_hidden_layers=4,
        full_attn_idxs=[1],
        conv_bias=True,
        conv_L_cache=4,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=False,
    ),
    _case(
        "lfm2",
        "multiplier",
        {"rope_type": "linear", "factor": 2.0},
        **_LFM2,
        conv_L_cache=1,
        block_multiple_of=24,
        block_ffn_dim_multiplier=1.3,
        head_dim=16,
        num_key_value_heads=1,
    ),
    _case("lfm2_moe", "plain", **_LFM2, **_QWEN_MOE, num_dense_layers=1),
    _case(
        "lfm2_moe",
        "options",
        **_LFM2,
        **_QWEN_MOE | {"num_experts": 5, "num_experts_per_tok": 3},
        hidden_size=40,
        num_dense_layers=0,
        conv_bias=True,
        conv_L_cache=5,
        use_expert_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        tie_word_embeddings=False,
    ),
    _case(
        "lfm2_moe",
        "every_expert",
        **_LFM2 | {"layer_types": ["conv", "conv", "full_attention"]},
        **_QWEN_MOE | {"num_experts": 4, "num_experts_per_tok": 4},
        conv_L_cache=2,
        use_expert_bias=False,
        routed_scaling_factor=0.5,
    ),
    _experts("gpt_oss", "yarn", _YARN | {"truncate": False}, head_dim=16, sliding_window=5),
    _experts(
        "gpt_oss",
        "layer_types",
        {"rope_type": "linear", "factor": 2.0},
        head_dim=12,
        num_local_experts=4,
        num_experts_per_tok=4,
        hidden_size=96,  # much wider than the experts: some of their values are beyond what they are clamped to
        intermediate_size=12,
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        sliding_window=6,
        attention_bias=False,
        tie_word_embeddings=True,
    ),
]


def prompt(vocab: int, length: int = PROMPT, seed: int = 0) -> list[int]:
    """Token ids, reproducible."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, length)]


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that make every part matter: matrices that keep sizes near one, norms and biases away from 1 and 0."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1 and not name.endswith("bias"):
        few = shape[-2] < 16  # a router
        return noise * np.float32(1.5 / np.sqrt(shape[-1] if few else min(shape[-2:])))
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
    write_golden()
