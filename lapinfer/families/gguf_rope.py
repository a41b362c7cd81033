"""Rotary positions of a GGUF file as config.json says them, after llama.cpp's rules (src/llama-model.cpp).

A factor counts as linear scaling unless a type says otherwise, an old key has it under another name, and frequencies
that were changed in another way stand in a tensor.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.families.gguf_metadata import Metadata

TYPES: Final = ("none", "linear", "yarn", "longrope")
USUAL: Final = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
                "yarn_log_multiplier": 0.0}  # fmt: skip
"""What llama.cpp takes in these architectures, whatever the file says: with other values it would compute something
else than the model's publisher."""


def rope_scaling(
    metadata: Metadata, *, freqs: bool = False, factors: bool = False, log_multiplier: bool = False
) -> dict[str, Any]:
    """`rope_scaling`, and what stands beside it; {} without scaling.

    freqs: the family takes rope_freqs.weight, and the two rope_factors where the type is longrope; factors: it takes
    those whatever the type; log_multiplier: it takes YaRN's, as mscale and as mscale_all_dim. CheckpointError and
    UnsupportedError for what contradicts itself or is not known.
    """
    kind = metadata.text("rope.scaling.type", "linear")
    if kind not in TYPES:
        raise metadata.unsupported(f"rope.scaling.type is {kind[:40]!r}, known are {', '.join(TYPES)}")
    factor = 1.0 if (stated := _factor(metadata)) and kind == "none" else stated
    stretch = metadata.number("rope.scaling.attn_factor", 1.0)
    longrope = "rope_factors_long.weight" in metadata.tensors
    if "rope_freqs.weight" in metadata.tensors:
        if not freqs or longrope or kind == "longrope" or factor != 1 or stretch != 1:
            raise metadata.unsupported("rope_freqs.weight is not known in this architecture, or beside another scaling")
        return {"rope_scaling": _stored(metadata, metadata.vector("rope_freqs.weight"))}
    if longrope or kind == "longrope":
        if not (factors or (freqs and kind == "longrope")) or factor != 1:
            raise metadata.unsupported("LongRoPE is not known in this architecture, or beside another scaling")
        return _longrope(metadata, stretch)
    if kind == "yarn":
        return {"rope_scaling": _yarn(metadata, factor, stretch, log_multiplier)}
    if stretch != 1:
        raise metadata.unsupported(
            f"rope.scaling.attn_factor is {stretch:g}, which is known with yarn and longrope only"
        )
    metadata.raw("rope.scaling.original_context_length")  # linear scaling doesn't depend on it
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}} if factor != 1 else {}


def _factor(metadata: Metadata) -> float:
    new, old = "rope.scaling.factor", "rope.scale_linear"
    factor = metadata.number(new if metadata.get(new) is not None else old, 0.0)
    metadata.raw(old)
    if factor < 0:
        raise metadata.wrong(new, f"{factor:g}", "a positive number")
    return factor or 1.0  # llama.cpp takes 0 as 1


def _yarn(metadata: Metadata, factor: float, stretch: float, log_multiplier: bool) -> dict[str, Any]:
    for key, usual in USUAL.items():
        if log_multiplier and key == "yarn_log_multiplier":
            continue
        if (value := metadata.number(f"rope.scaling.{key}", usual)) not in (usual, -1.0):
            raise metadata.unsupported(
                f"rope.scaling.{key} is {value:g}, expected {usual:g}: llama.cpp reads no other in this architecture"
            )
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": _original(metadata),
    }
    if log_multiplier and (both := metadata.number("rope.scaling.yarn_log_multiplier", 0.0)):
        scaling |= {"mscale": both, "mscale_all_dim": both}
    if stretch != 1:  # it is multiplied with what YaRN says
        scaling["attention_factor"] = stretch * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
    return scaling


def _longrope(metadata: Metadata, stretch: float) -> dict[str, Any]:
    original = _original(metadata)
    factors = {f"{w}_factor": metadata.vector(f"rope_factors_{w}.weight").tolist() for w in ("short", "long")}
    return {
        "rope_scaling": {
            "rope_type": "longrope",
            **factors,
            "attention_factor": stretch,
            "original_max_position_embeddings": original,
        },
        "original_max_position_embeddings": original,
    }


def _original(metadata: Metadata) -> int:
    return metadata.integer("rope.scaling.original_context_length", metadata.integer("context_length"))


def _stored(metadata: Metadata, factors: np.ndarray) -> dict[str, Any]:
    """GGUF stores what Llama 3's rule gives; the rule's parameters are found again, and checked.

    Factors of another rule are said as they are: LongRoPE's lists, equal for all lengths.
    """
    if not factors.size or not np.isfinite(factors).all() or factors.min() <= 0:
        raise CheckpointError(f"{metadata.where}: tensor 'rope_freqs.weight' has values that are no positive numbers")
    factor, theta = float(factors.max()), metadata.number("rope.freq_base", 1e4)
    metadata.raw("rope.scaling.original_context_length")
    for original in (8192, metadata.integer("context_length")):
        with np.errstate(all="ignore"):
            turn = 2 * np.pi * np.float64(theta) ** (np.arange(len(factors)) / len(factors))
            smooth = np.clip((original / turn - 1) / 3, 0, 1)
            same = np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3)
        if same:
            rule = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return rule | {"original_max_position_embeddings": original}
    values = factors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": values,
        "long_factor": values,
        "attention_factor": 1.0,
        "original_max_position_embeddings": metadata.integer("context_length"),
    }
