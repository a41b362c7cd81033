"""What the families with Mamba-2 share: its sizes, and where its rows stand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from lapinfer.families.config import Config
from lapinfer.families.decoder import rms_norm
from lapinfer.families.names import Source
from lapinfer.spec import LayerSpec, RecurrenceSpec

MOST_TAPS: Final = 1024
MOST_HEADS: Final = 4096


def mamba2(config: Config) -> RecurrenceSpec:
    """With the keys of Bamba and Granite; the gate comes before the norm, of the heads of a group."""
    config.expect(hidden_act="silu")
    config.know("mamba_chunk_size")  # how many positions transformers takes at once
    hidden = config.integer("hidden_size")
    width = config.integer("mamba_expand", 2, most=64) * hidden
    heads = config.integer("mamba_n_heads", 128, most=MOST_HEADS)
    if width % heads:
        raise config.wrong("mamba_n_heads", f"a divisor of mamba_expand · hidden_size, {width}")
    if config.get("mamba_d_head", "auto") != "auto" and config.integer("mamba_d_head") * heads != width:
        raise config.wrong("mamba_d_head", f"{width // heads}, mamba_expand · hidden_size / mamba_n_heads")
    groups = config.integer("mamba_n_groups", 1, most=heads)
    if heads % groups:
        raise config.wrong("mamba_n_groups", f"a divisor of mamba_n_heads, {heads}")
    least, most = step_limits(config)
    return RecurrenceSpec(
        "state_space",
        kernel=config.integer("mamba_d_conv", 4, most=MOST_TAPS),
        heads=heads,
        key_heads=groups,
        k_dim=config.integer("mamba_d_state", 256, most=MOST_HEADS),
        v_dim=width // heads,
        norm=rms_norm(config),
        norm_width=width // groups,
        gate_first=True,
        bias=config.flag("mamba_proj_bias", False),
        kernel_bias=config.flag("mamba_conv_bias", True),
        least_step=least,
        most_step=most,
    )


def step_limits(config: Config) -> tuple[float, float | None]:
    """`time_step_limit`: bounds of Δ; no upper one is infinity, which JSON has not."""
    key = "time_step_limit"
    limits: Any = config.get(key)
    if limits is None:
        return 0.0, None
    expected = "two numbers, the second one not below the first"
    if not isinstance(limits, list | tuple) or len(limits) != 2:
        raise config.wrong(key, expected)
    least, most = (math.inf if limit == {"__float__": "Infinity"} else limit for limit in limits)
    if not all(type(limit) in (int, float) for limit in (least, most)) or not 0 <= least <= most or least > 1e6:
        raise config.wrong(key, expected)
    return float(least), None if most > 1e6 else float(most)


def sources_of_mamba2(layer: LayerSpec, prefix: str, ours: str) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """All of a recurrence: in_proj has rows of (z, x, B, C, dt), the convolution columns of (x, B, C)."""
    if (mamba := layer.recurrence) is None:
        return
    values, keys, channels = mamba.values, mamba.keys, mamba.channels

    def columns(name: str, first: int) -> tuple[Source, ...]:
        """Of C, B and x, where x begins at `first`."""
        keys_at = first + values
        spans = ((keys_at + keys, keys_at + 2 * keys), (keys_at, keys_at + keys), (first, first + values))
        return tuple(Source(name, start, stop) for start, stop in spans)

    for suffix in ("weight", "bias") if mamba.bias else ("weight",):
        name, dt = f"{prefix}in_proj.{suffix}", values + channels
        rows = (*columns(name, values), Source(name, 0, values), Source(name, dt, dt + mamba.heads))
        bias = ".bias" if suffix == "bias" else ""
        yield f"{ours}mix_in{bias}", rows
        yield f"{ours}mix_out{bias}", (Source(f"{prefix}out_proj.{suffix}"),)
    for suffix in ("weight", "bias") if mamba.kernel_bias else ("weight",):
        yield f"{ours}conv.{suffix}", columns(f"{prefix}conv1d.{suffix}", 0)
    yield f"{ours}decay", (Source(f"{prefix}A_log"),)
    yield f"{ours}step", (Source(f"{prefix}dt_bias"),)
    yield f"{ours}skip", (Source(f"{prefix}D"),)
    yield f"{ours}mix_norm.weight", (Source(f"{prefix}norm.weight"),)
