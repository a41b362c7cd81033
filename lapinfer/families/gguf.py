"""llama.cpp's words for what config.json and published tensors say: shared by the families that GGUF files have.

The changes named here are those of llama.cpp's converter (conversion/llama.py, gemma.py, gpt2.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families.names import TensorNames

VECTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that say what config.json says."""

PARTS: Final[Mapping[str, tuple[tuple[str, int, int], ...]]] = {
    "token_embd": (("embed", 0, 1),),
    "position_embd": (("positions", 0, 1),),
    "output_norm": (("norm", 0, 1),),
    "attn_norm": (("attn_norm", 0, 1),),
    "attn_q": (("qkv", 0, 3),),
    "attn_k": (("qkv", 1, 3),),
    "attn_v": (("qkv", 2, 3),),
    "attn_qkv": (("qkv", 0, 1),),
    "attn_q_norm": (("q_norm", 0, 1),),
    "attn_k_norm": (("k_norm", 0, 1),),
    "attn_output": (("o", 0, 1),),
    "post_attention_norm": (("attn_post_norm", 0, 1),),
    "ffn_norm": (("ff_norm", 0, 1),),
    "ffn_gate": (("gate_up", 0, 2),),
    "ffn_up": (("up", 0, 1), ("gate_up", 1, 2), ("gate_up", 0, 1)),
    "ffn_down": (("down", 0, 1),),
    "post_ffw_norm": (("ff_post_norm", 0, 1),),
}
"""GGUF module -> (our part, which of its published modules, of how many), the first that a family has."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A GGUF file's header: typed reading of its `architecture.key` values; `where` names the file in errors.

    tensors: their shapes, rows first. vectors: values of those of VECTORS that it has in float32.
    """

    where: str
    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    vectors: Mapping[str, np.ndarray]

    def get(self, key: str) -> Any:
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, np.ndarray):  # one value per layer: only a constant one has a place in config.json
            if not value.size or (value != value[0]).any():
                raise self.unsupported(f"{self.architecture}.{key} differs between layers")
            value = value[0].item()
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return self._typed(key, default, int, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        # Through float32's shortest text: 1e-5 is stored as 9.999999747378752e-06.
        value = float(str(np.float32(self._typed(key, default, (int, float), "a number"))))
        if not math.isfinite(value):
            raise CheckpointError(f"{self.where}: {self.architecture}.{key} is {value}, expected a finite number")
        return value

    def vector(self, name: str) -> np.ndarray:
        if name not in self.vectors:
            raise CheckpointError(f"{self.where}: tensor {name!r} is missing or no vector of F32")
        return self.vectors[name]

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.where}: {what}")

    def _typed(self, key: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, kind) or isinstance(value, bool) or abs(value) > 1e30:
            got = "missing" if value is None else f"{str(value)[:40]}"
            raise CheckpointError(f"{self.where}: {self.architecture}.{key} is {got}, expected {expected}")
        return value


def decoder_config(
    metadata: Metadata, *, theta: float = 1e4, windows: bool = False, partial_rotary: bool = False
) -> dict[str, Any]:
    """The keys that Llama-shaped families have in common; `theta` is the family's default base of rotary positions.

    windows, partial_rotary: whether the family has sliding windows, and heads of which only a part is rotated.
    UnsupportedError where it has not, and a file says so.
    """
    width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    if heads < 1:
        raise CheckpointError(
            f"{metadata.where}: {metadata.architecture}.attention.head_count is {heads}, expected at least 1"
        )
    head_dim = metadata.integer("attention.key_length", width // heads)
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise metadata.unsupported("keys and values of an attention head differ in length")
    config: dict[str, Any] = {}
    rotated = metadata.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        if not partial_rotary or head_dim < 1:
            raise metadata.unsupported(f"rotates {rotated} of {head_dim} dimensions of a head")
        config["partial_rotary_factor"] = rotated / head_dim
    config |= {
        "num_hidden_layers": metadata.integer("block_count"),
        "max_position_embeddings": metadata.integer("context_length"),
        "hidden_size": width,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", theta),
        "hidden_act": "silu",
        **_rope_scaling(metadata),
    }
    if metadata.get("attention.sliding_window"):
        if not windows:
            raise metadata.unsupported(f"a sliding window is not supported in {metadata.architecture}")
        config["sliding_window"] = metadata.integer("attention.sliding_window")
    return config


def projection_biases(metadata: Metadata) -> dict[str, Any]:
    """Whether attention and feed-forward have biases: only the tensors say it."""
    attention = [f"blk.0.attn_{part}.bias" in metadata.tensors for part in ("q", "k", "v", "output")]
    feed_forward = [f"blk.0.ffn_{part}.bias" in metadata.tensors for part in ("gate", "up", "down")]
    for part, biases in (("attention", attention), ("feed-forward", feed_forward)):
        if any(biases) and not all(biases):
            raise metadata.unsupported(f"only some of the {part} projections have a bias")
    return {"attention_bias": all(attention), "mlp_bias": all(feed_forward)}


@dataclass(frozen=True, slots=True)
class GGUF:
    """What llama.cpp makes of a family: its architecture, and what its converter does to tensors.

    config: the keys of config.json from the metadata. permuted: query and key rows are interleaved, for llama.cpp's
    rotation of neighbouring pairs. norms_plus_one: 1 is added to the weights of norms.
    """

    architecture: str
    config: Callable[[Metadata], dict[str, Any]] = decoder_config
    permuted: bool = False
    norms_plus_one: bool = False


def published_name(names: TensorNames, module: str, layer: str | None) -> str | None:
    """What a family's published files call a GGUF module (of a layer, or None); None: the family has no such module."""
    if module == "output":
        return f"{names.heads[0]}lm_head"
    prefix = names.prefixes[0] if layer is None else f"{names.prefixes[0]}{names.layers}.{int(layer)}."
    for part, index, count in PARTS.get(module, ()):
        modules = names.modules.get(part, ())
        if len(modules) == count:
            return prefix + modules[index]
    return None


def _rope_scaling(metadata: Metadata) -> dict[str, Any]:
    if "rope_freqs.weight" in metadata.tensors:
        return {"rope_scaling": _llama3(metadata, metadata.vector("rope_freqs.weight"))}
    if "rope_factors_long.weight" in metadata.tensors:
        original = metadata.integer("rope.scaling.original_context_length")
        factors = {f"{w}_factor": metadata.vector(f"rope_factors_{w}.weight").tolist() for w in ("short", "long")}
        return {
            "rope_scaling": {"rope_type": "longrope", **factors, "original_max_position_embeddings": original},
            "original_max_position_embeddings": original,
        }
    kind = metadata.get("rope.scaling.type") or "none"
    if kind == "none":
        return {}
    scaling: dict[str, Any] = {"rope_type": str(kind)[:40], "factor": metadata.number("rope.scaling.factor", 1.0)}
    if metadata.get("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
    return {"rope_scaling": scaling}


def _llama3(metadata: Metadata, factors: np.ndarray) -> dict[str, Any]:
    """GGUF stores what Llama 3's rule gives; the rule's parameters are found again, and checked."""
    factor, theta = float(factors.max()), metadata.number("rope.freq_base", 1e4)
    for original in (8192, metadata.integer("context_length")):
        with np.errstate(all="ignore"):
            turn = 2 * np.pi * np.float64(theta) ** (np.arange(len(factors)) / len(factors))
            smooth = np.clip((original / turn - 1) / 3, 0, 1)
            same = np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3)
        if same:
            rule = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return rule | {"original_max_position_embeddings": original}
    raise metadata.unsupported("rope_freqs.weight does not follow the rule of Llama 3")
