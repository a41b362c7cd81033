"""Rotary positions from config.json: default, linear, llama3, yarn and longrope.

Formulas and their order in float32 follow transformers/modeling_rope_utils.py. Newer files carry
`rope_parameters`, older ones `rope_theta` beside `rope_scaling`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.families.config import Config
from lapinfer.spec import RopeSpec

KINDS: Final = ("default", "linear", "llama3", "yarn", "longrope")
KEYS: Final = (
    "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta",
    "partial_rotary_factor", "short_mscale", "long_mscale", "finetuned",
)  # fmt: skip
"""Of all rules together: a rule makes nothing of another's, here as in transformers."""

LAYER_TYPES: Final = ("full_attention", "sliding_attention")


def rope_section(config: Config, theta: float = 10_000.0) -> Config:
    """One flat object of rope parameters, from either spelling; `theta` is the family's default base."""
    older, newer = config.section("rope_scaling"), config.section("rope_parameters")
    section = older if older.values else newer
    for layer_type in LAYER_TYPES:
        if layer_type in section:
            raise section.unsupported(layer_type, f"one set of rope parameters for all layers of {config.where}")
    section = section.with_defaults(rope_theta=config.number("rope_theta", theta))
    if "partial_rotary_factor" in config:
        section = section.with_defaults(partial_rotary_factor=config.get("partial_rotary_factor"))
    if "original_max_position_embeddings" in config:  # outside, it wins
        section = section.replaced(original_max_position_embeddings=config.get("original_max_position_embeddings"))
    return section


def rope_sections_by_layer_type(
    config: Config, theta: float = 1e6, sliding_theta: float = 1e4
) -> tuple[Config, Config]:
    """Rope parameters of full and of sliding layers, as Gemma 3 has them; `rope_scaling` is for the full ones.

    theta, sliding_theta: the family's default bases.
    """
    both = config.section("rope_parameters")
    if both.values and not any(layer_type in both for layer_type in LAYER_TYPES):
        raise config.unsupported("rope_parameters", f"an object for each of {', '.join(LAYER_TYPES)}")
    full, sliding = (both.section(layer_type) for layer_type in LAYER_TYPES)
    return (
        full.under(config.section("rope_scaling")).with_defaults(rope_theta=config.number("rope_theta", theta)),
        sliding.with_defaults(rope_theta=config.number("rope_local_base_freq", sliding_theta)),
    )


def rope_kind(section: Config) -> str:
    """The name of the rule, under either of its keys."""
    return section.text("rope_type", section.text("type", "default"))


def rope_spec(section: Config, head_dim: int, context: int, partial: bool = False) -> RopeSpec:
    """RopeSpec of a flat object of rope parameters; `partial` where a family rotates only a part of each head."""
    kind = rope_kind(section)
    section.know(*KEYS)
    if kind not in KINDS:
        raise section.unsupported("rope_type" if "rope_type" in section else "type", ", ".join(KINDS))
    part = section.number("partial_rotary_factor", 1.0, most=1.0)
    if part != 1.0 and not partial:
        raise section.unsupported("partial_rotary_factor", "1.0 in this family")
    dim = int(head_dim * part)
    if dim < 2 or dim % 2:
        raise CheckpointError(f"{section.where}: {dim} of {head_dim} dimensions of a head are rotated, expected pairs")

    theta = section.number("rope_theta", least=1.001, most=1e15)
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # The power in float64, then rounded: the same bits on every platform.
    wavelength = np.power(np.float64(np.float32(theta)), exponent.astype(np.float64)).astype(np.float32)
    inv_freq, scale = 1 / wavelength, 1.0
    if kind == "linear":
        inv_freq = inv_freq / np.float32(section.number("factor", least=1e-3, most=1e6))
    elif kind == "llama3":
        inv_freq = _llama3(section, inv_freq, context)
    elif kind == "yarn":
        inv_freq, scale = _yarn(section, wavelength, theta, context)
    elif kind == "longrope":
        return _longrope(section, wavelength, context)
    return RopeSpec(dim, _floats(inv_freq), scale)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values.astype(np.float32))


def _llama3(section: Config, inv_freq: np.ndarray, context: int) -> np.ndarray:
    """Long waves divided by `factor`, short ones kept, those between interpolated."""
    factor = np.float32(section.number("factor", least=1e-3, most=1e6))
    low, high = section.number("low_freq_factor", most=1e6), section.number("high_freq_factor", most=1e6)
    if low >= high:
        raise section.wrong("low_freq_factor", f"less than high_freq_factor, {high:g}")
    original = section.integer("original_max_position_embeddings", context)
    turn = np.float32(2 * math.pi) / inv_freq  # positions in one full turn
    smooth = (np.float32(original) / turn - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    return np.where(turn < original / high, inv_freq, np.where(turn > original / low, inv_freq / factor, between))


def _yarn(section: Config, wavelength: np.ndarray, theta: float, context: int) -> tuple[np.ndarray, float]:
    """Interpolation for slow pairs, extrapolation for fast ones, a ramp between (YaRN, arXiv:2309.00071)."""
    original = section.integer("original_max_position_embeddings", context)
    factor = section.number("factor", context / original, least=1e-3, most=1e6)
    dim = 2 * len(wavelength)

    def mscale(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = mscale(1.0)
    if section.get("mscale") and section.get("mscale_all_dim"):
        scale = mscale(section.number("mscale", most=1e3)) / mscale(section.number("mscale_all_dim", most=1e3))
    scale = section.number("attention_factor", scale, least=1e-3, most=1e3)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(section.number("beta_fast", 32.0, most=1e6))
    high = pair_that_turns(section.number("beta_slow", 1.0, most=1e6))
    if section.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = 1 - ramp
    return 1 / (np.float32(factor) * wavelength) * (1 - kept) + 1 / wavelength * kept, scale


def _longrope(section: Config, wavelength: np.ndarray, context: int) -> RopeSpec:
    """One list of divisors for contexts up to the original length, another beyond it (arXiv:2402.13753)."""
    original = section.integer("original_max_position_embeddings", context, least=2)
    factor = section.number("factor", context / original, least=1e-3, most=1e6)
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    scale = section.number("attention_factor", scale, least=1e-3, most=1e3)
    short, long = (
        _floats(1 / (np.array(section.numbers(f"{which}_factor", len(wavelength)), np.float32) * wavelength))
        for which in ("short", "long")
    )
    return RopeSpec(2 * len(wavelength), short, scale, long_context=original, long_inv_freq=long, long_scale=scale)
