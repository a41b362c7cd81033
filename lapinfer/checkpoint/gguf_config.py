"""A Hugging Face config from the metadata of a GGUF file, as far as GGUF's keys say what config.json would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lapinfer.checkpoint.gguf_file import GGUFFile
from lapinfer.errors import CheckpointError, UnsupportedError

MODEL_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "gpt2": "gpt2", "olmo2": "olmo2", "granite": "granite", "smollm3": "smollm3",
}  # fmt: skip
"""GGUF architecture -> model_type."""

LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, the only ones whose queries are scaled by hidden/heads: GGUF does not say it."""


class Keys:
    """Typed reading of `architecture.key` metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in MODEL_TYPES:
            raise UnsupportedError(
                f"{file.path}: has architecture {str(architecture)[:40]!r}, supported are {', '.join(MODEL_TYPES)}"
            )
        self.architecture: str = architecture

    def get(self, key: str) -> Any:
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, np.ndarray):  # one value a layer: only a constant one has a place in config.json
            if not value.size or (value != value[0]).any():
                raise UnsupportedError(f"{self.file.path}: {self.architecture}.{key} differs between layers")
            value = value[0].item()
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return self._typed(key, default, int, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        # Through float32's shortest text: 1e-5 is stored as 9.999999747378752e-06.
        value = float(str(np.float32(self._typed(key, default, (int, float), "a number"))))
        if not math.isfinite(value):
            raise CheckpointError(f"{self.file.path}: {self.architecture}.{key} is {value}, expected a finite number")
        return value

    def _typed(self, key: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, kind) or isinstance(value, bool) or abs(value) > 1e30:
            got = "missing" if value is None else f"{str(value)[:40]}"
            raise CheckpointError(f"{self.file.path}: {self.architecture}.{key} is {got}, expected {expected}")
        return value


def config_of(file: GGUFFile) -> dict[str, Any]:
    """The config.json of a GGUF file; UnsupportedError for what it could only say wrongly."""
    keys = Keys(file)
    architecture = keys.architecture
    if str(file.metadata.get("split.count", 1)) not in ("0", "1"):  # it may be an array, in a damaged file
        raise UnsupportedError(f"{file.path}: is one of several parts; join them with: llama-gguf-split --merge")
    if keys.get("expert_count"):
        raise UnsupportedError(f"{file.path}: is a mixture of experts, which is not supported from GGUF")
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor 'token_embd.weight' is missing")
    config: dict[str, Any] = {
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_token_ids(file),
    }
    if architecture == "gpt2":
        return config | {
            "n_layer": keys.integer("block_count"),
            "n_positions": keys.integer("context_length"),
            "n_embd": keys.integer("embedding_length"),
            "n_inner": keys.integer("feed_forward_length"),
            "n_head": keys.integer("attention.head_count"),
            "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
        }
    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    if heads < 1:
        raise CheckpointError(f"{file.path}: {architecture}.attention.head_count is {heads}, expected at least 1")
    head_dim = keys.integer("attention.key_length", width // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{file.path}: keys and values of an attention head differ in length")
    rotated = keys.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        if architecture != "phi3" or head_dim < 1:
            raise UnsupportedError(f"{file.path}: rotates {rotated} of {head_dim} dimensions of a head")
        config["partial_rotary_factor"] = rotated / head_dim
    theta = keys.number("rope.freq_base", 1e6 if architecture == "gemma3" else 1e4)
    config |= {
        "num_hidden_layers": keys.integer("block_count"),
        "max_position_embeddings": keys.integer("context_length"),
        "hidden_size": width,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "hidden_act": "silu",
        **_rope_scaling(keys),
        **_window(keys),
    }
    if architecture in ("llama", "granite", "smollm3"):
        config |= _biases(file)
    if architecture.startswith("gemma"):
        whole = config["num_hidden_layers"] == LARGEST_GEMMA[architecture]
        config["query_pre_attn_scalar"] = width / heads if whole else head_dim
        config["hidden_activation"] = "gelu_pytorch_tanh"
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            value = keys.get(key)
            config[key] = keys.number(key) if value else None
    if architecture == "gemma3":
        config["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 1e4)
    if architecture == "granite":
        config |= {
            "attention_multiplier": keys.number("attention.scale", head_dim**-0.5),
            "embedding_multiplier": keys.number("embedding_scale", 1.0),
            "residual_multiplier": keys.number("residual_scale", 1.0),
            "logits_scaling": keys.number("logit_scale", 1.0),
        }
    return config


def _token_ids(file: GGUFFile) -> dict[str, Any]:
    def ids(*names: str) -> list[int]:
        found = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names)
        return list(dict.fromkeys(i for i in found if type(i) is int))

    eos = ids("eos", "eot", "eom")
    return {"bos_token_id": next(iter(ids("bos")), None), "eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def _biases(file: GGUFFile) -> dict[str, Any]:
    attention = [f"blk.0.attn_{part}.bias" in file.tensors for part in ("q", "k", "v", "output")]
    feed_forward = [f"blk.0.ffn_{part}.bias" in file.tensors for part in ("gate", "up", "down")]
    for names, found in (("attention", attention), ("feed-forward", feed_forward)):
        if any(found) and not all(found):
            raise UnsupportedError(f"{file.path}: only some of the {names} projections have a bias")
    return {"attention_bias": all(attention), "mlp_bias": all(feed_forward)}


def _window(keys: Keys) -> dict[str, Any]:
    window = keys.get("attention.sliding_window")
    if keys.architecture == "phi3":
        return {"sliding_window": keys.integer("attention.sliding_window", 0) or None}
    if not window:
        return {}
    if keys.architecture == "llama":
        return {"sliding_window": keys.integer("attention.sliding_window"), "model_type": "mistral"}
    if not keys.architecture.startswith("gemma"):
        raise UnsupportedError(f"{keys.file.path}: a sliding window is not supported in {keys.architecture}")
    return {"sliding_window": keys.integer("attention.sliding_window")}


def _rope_scaling(keys: Keys) -> dict[str, Any]:
    file = keys.file
    if "rope_freqs.weight" in file.tensors:
        return {"rope_scaling": _llama3(keys, _vector(file, "rope_freqs.weight"))}
    if "rope_factors_long.weight" in file.tensors:
        original = keys.integer("rope.scaling.original_context_length")
        factors = {f"{w}_factor": _vector(file, f"rope_factors_{w}.weight").tolist() for w in ("short", "long")}
        return {
            "rope_scaling": {"rope_type": "longrope", **factors, "original_max_position_embeddings": original},
            "original_max_position_embeddings": original,
        }
    kind = keys.get("rope.scaling.type") or "none"
    if kind == "none":
        return {}
    scaling: dict[str, Any] = {"rope_type": str(kind)[:40], "factor": keys.number("rope.scaling.factor", 1.0)}
    if keys.get("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    return {"rope_scaling": scaling}


def _vector(file: GGUFFile, name: str) -> np.ndarray:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type != "F32" or len(tensor.shape) != 1:
        raise CheckpointError(f"{file.path}: tensor {name!r} is missing or no vector of F32")
    return file.rows(name).reshape(-1).view(np.float32)


def _llama3(keys: Keys, factors: np.ndarray) -> dict[str, Any]:
    """GGUF stores what Llama 3's rule gives; the rule's parameters are found again, and checked."""
    factor, theta = float(factors.max()), keys.number("rope.freq_base", 1e4)
    for original in (8192, keys.integer("context_length")):
        with np.errstate(all="ignore"):
            turn = 2 * np.pi * np.float64(theta) ** (np.arange(len(factors)) / len(factors))
            smooth = np.clip((original / turn - 1) / 3, 0, 1)
            same = np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3)
        if same:
            rule = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return rule | {"original_max_position_embeddings": original}
    raise UnsupportedError(f"{keys.file.path}: rope_freqs.weight does not follow the rule of Llama 3")
