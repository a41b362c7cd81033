"""llama.cpp's words for what config.json and published tensors say: shared by the families that GGUF files have.

The changes named here are those of llama.cpp's converter (conversion/llama.py, gemma.py, gpt2.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.families.config import MOST_LAYERS
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.gguf_rope import rope_scaling
from lapinfer.families.names import TensorNames

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


def decoder_config(
    metadata: Metadata,
    *,
    windows: bool = False,
    partial_rotary: bool = False,
    rope_freqs: bool = False,
    rope_factors: bool = False,
    layer_norm: str = "",
    log_multiplier: bool = False,
) -> dict[str, Any]:
    """The keys that Llama-shaped families have in common.

    windows, partial_rotary: whether the family has sliding windows, and heads of which only a part is rotated.
    layer_norm: of a family with layer norms, the key of config.json for their epsilon. log_multiplier: llama.cpp takes
    YaRN's (gguf_rope.py).
    rope_freqs, rope_factors: tensors that llama.cpp reads in the family (gguf_rope.py). UnsupportedError where it has
    not, and a file says so.
    """
    width, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    if heads < 1:
        raise CheckpointError(
            f"{metadata.where}: {metadata.architecture}.attention.head_count is {heads}, expected at least 1"
        )
    head_dim = metadata.integer("attention.key_length", width // heads)
    if head_dim < 1:
        raise metadata.wrong("attention.key_length", str(head_dim), "at least 1")
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise metadata.unsupported("keys and values of an attention head differ in length")
    config: dict[str, Any] = {}
    rotated = metadata.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        if not partial_rotary:
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
        layer_norm or "rms_norm_eps": metadata.number(f"attention.layer_norm_{'' if layer_norm else 'rms_'}epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 1e4),
        "hidden_act": "silu",
        **rope_scaling(metadata, freqs=rope_freqs, factors=rope_factors, log_multiplier=log_multiplier),
    }
    if metadata.get("attention.sliding_window"):
        if not windows:
            raise metadata.unsupported(f"a sliding window is not supported in {metadata.architecture}")
        config["sliding_window"] = metadata.integer("attention.sliding_window")
    return config


def sliding_layers(metadata: Metadata) -> dict[str, Any]:
    """`layer_types` where the file says which layers slide: a period, whose last layer does not, or a flag for each."""
    pattern, layers = metadata.raw("attention.sliding_window_pattern"), metadata.integer("block_count")
    if pattern is None or not 0 < layers <= MOST_LAYERS:
        return {}
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        slides = [pattern == 0 or i % pattern < pattern - 1 for i in range(layers)]
    elif isinstance(pattern, np.ndarray) and len(pattern) == layers:
        slides = [bool(slides) for slides in pattern]
    else:
        raise metadata.wrong("attention.sliding_window_pattern", str(pattern)[:40], f"a period, or {layers} flags")
    return {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}


def projection_biases(metadata: Metadata) -> dict[str, Any]:
    """Whether attention and feed-forward have biases throughout; of those that are there in part, the tensors tell."""
    return {
        "attention_bias": biased(metadata, "attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": biased(metadata, "ffn_gate", "ffn_up", "ffn_down"),
    }


def biased(metadata: Metadata, *modules: str) -> bool:
    """Whether these modules of the first layer all have biases."""
    return all(f"blk.0.{module}.bias" in metadata.tensors for module in modules)


@dataclass(frozen=True, slots=True)
class GGUF:
    """What llama.cpp makes of a family: its architecture, and what its converter does to tensors.

    config: the keys of config.json from the metadata. permuted: query and key rows are interleaved, for llama.cpp's
    rotation of neighbouring pairs. norms_plus_one: 1 is added to the weights of norms. layers: the key of config.json
    that says how many layers there are. called: modules that it calls otherwise than in other architectures.
    regrouped: the rows of a fused matrix, published head by head, come as all queries, all keys, all values.
    """

    architecture: str
    config: Callable[[Metadata], dict[str, Any]] = decoder_config
    permuted: bool = False
    norms_plus_one: bool = False
    layers: str = "num_hidden_layers"
    regrouped: bool = False
    called: Mapping[str, str] = field(default_factory=dict)


def published_name(gguf: GGUF, names: TensorNames, module: str, layer: str | None) -> str | None:
    """What a family's published files call a GGUF module (of a layer, or None); None: the family has no such module."""
    module = gguf.called.get(module, module)
    if module == "output":
        return f"{names.heads[0]}{names.head_modules[0]}"
    prefix = names.prefixes[0] if layer is None else f"{names.prefixes[0]}{names.layers}.{int(layer)}."
    for part, index, count in PARTS.get(module, ()):
        modules = names.modules.get(part, ())
        if len(modules) == count:
            return prefix + modules[index]
    return None
