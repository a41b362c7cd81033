"""What families' tests are written with: tests/families/NAME.py, one file per module of lapinfer/families.

A file may have, and what it lacks is as in Llama's:

    CASES     tiny models that switch each option of the family on and off (tiny.py)
    SIZES     the least that a config.json must say, beside its model_type
    REFUSED   (word in the message, keys of a config.json) that would be computed wrongly here
    WRONG     (word in the message, keys of a config.json) that cannot be true

A family without a file has one case, plain, with BASE's sizes.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lapinfer.families import families, family_of_model_type


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


def case(family: str, name: str, rope: dict[str, Any] | None = None, /, **config: Any) -> Case:
    scaled = {"rope_parameters": {"rope_theta": 1000.0, **rope}} if rope else {}
    return Case(family, name, BASE | scaled | config)


QWEN_MOE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
}
HYBRID: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
DELTA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "full_attention_interval": 3,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
MAMBA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 4,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}
MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "attention_bias": True,
    "tie_word_embeddings": True,
}


def experts(family: str, name: str, rope: dict[str, Any] | None = None, /, **config: Any) -> Case:
    """Of a family that calls the number of experts num_local_experts, and their width intermediate_size."""
    sizes = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40}
    return case(family, name, rope, **sizes | config)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.7, 2.9, 4.3]}

USUAL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
"""The least that a config.json of most families must say."""

FEW_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}
LATENT_SIZES = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
}
MIXED = ["conv", "full_attention", "conv", "conv", "full_attention"]


def of_family(name: str) -> ModuleType | None:
    """The test file of a family."""
    known = importlib.util.find_spec(f"families.{name}") is not None
    return importlib.import_module(f"families.{name}") if known else None


def of_model_type(model_type: str, what: str, default: Any) -> Any:
    """What the test file says of the family of this model_type."""
    name = family_of_model_type(model_type)
    return default if name is None else getattr(of_family(name), what, default)


def all_cases() -> list[Case]:
    """The cases of all families, which are found in lapinfer's registry."""
    return [
        found
        for name, family in families().items()
        for found in getattr(of_family(name), "CASES", [case(family.model_types[0], "plain")])
    ]
