"""The ops of a recurrence: a short convolution, the states of heads, and a gated norm, between two matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapinfer.kernels.operands import ONE, STORE, TILES
from lapinfer.quant import GROUP
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.cost import Cost, Remembered
from lapinfer.runtime.kv import inputs_of_convolution, state_blocks, state_bytes, states
from lapinfer.runtime.sizes import padded
from lapinfer.spec import NormSpec, RecurrenceSpec

GROUPS_PER_CHUNK = 4
"""Groups of columns of the convolution, as in build/convolution.py."""


def recurrence(build: ModelOps, layer: int, spec: RecurrenceSpec, norm: NormSpec | None, post: NormSpec | None) -> None:
    """Norm, the matrix to heads, their convolution, states and gated norm, and the matrix back."""
    p, D, part = f"layers.{layer}.", build.spec.hidden, "recurrence"
    build.norm(p + "attn_norm", norm, layer, part, build.activation_kind(p + "mix_in"))
    bias = build.vector(p + "mix_in.bias", spec.in_rows) if spec.bias else None
    build.matmul(p + "mix_in", layer, part, build.tiles, STORE, out=build.qkv, bias=bias, logical=(spec.in_rows, D))
    _convolve(build, layer, spec)
    _heads(build, layer, spec)
    _gated_norm(build, layer, spec)
    bias = build.vector(p + "mix_out.bias", D) if spec.bias else None
    build.sublayer_end(p + "mix_out", p + "attn_post_norm", post, layer, part, build.tiles, bias, (D, spec.values))


def _places(build: ModelOps) -> dict[str, Any]:
    return {"pos": build.step.pos, "slot": build.step.slot}


def _convolve(build: ModelOps, layer: int, spec: RecurrenceSpec) -> None:
    p, C, groups = f"layers.{layer}.", spec.channels, padded(spec.channels) // GROUP
    weight = np.zeros((spec.kernel, padded(C)), np.float32)
    weight[:, :C] = build.weights.tensor(p + "conv.weight").T
    build.add(
        "convolve_silu", "convolve", "kv", layer, ONE, -(-groups // GROUPS_PER_CHUNK), x=build.qkv,
        x_stride=build.qkv.strides[0], width=C, weight=weight,
        bias=build.vector(p + "conv.bias", C) if spec.kernel_bias else 0, taps=spec.kernel, **_places(build),
        state=inputs_of_convolution(C, spec.kernel, build.limits.slots), groups=groups, unit=GROUPS_PER_CHUNK,
        shape=f"{C} × {spec.kernel}",
        cost=Cost(
            weight_bytes=4 * C * (spec.kernel + spec.kernel_bias), macs=C * spec.kernel,
            remembered=Remembered(spec.kernel, 4 * C),
        ),
    )  # fmt: skip


def _heads(build: ModelOps, layer: int, spec: RecurrenceSpec) -> None:
    """The rates of keeping and writing, and what the states give for them."""
    p, H = f"layers.{layer}.", spec.heads
    row: dict[str, Any] = {
        "x": build.qkv, "x_stride": build.qkv.strides[0], "heads": H, "key_heads": spec.key_heads,
        "k_dim": spec.k_dim, "scalars_at": 4 * (spec.channels + spec.values), "delta": int(spec.rule == "delta"),
    }  # fmt: skip
    with np.errstate(over="ignore"):
        decay = np.exp(build.vector(p + "decay", H).astype(np.float64)).astype(np.float32)  # the same bits anywhere
    build.add(
        "rates", "rates", "recurrence", layer, TILES, 1, **row, decay=decay, step=build.vector(p + "step", H),
        least=spec.least_step,
        most=np.inf if spec.most_step is None else spec.most_step, cost=Cost(weight_bytes=8 * H),
    )  # fmt: skip
    skip = build.vector(p + "skip", H) if spec.rule == "state_space" else None
    products = 3 if spec.rule == "delta" else 2
    build.add(
        "recur", "recur", "kv", layer, ONE, H, **row, v_dim=spec.v_dim, blocks=state_blocks(spec), skip=skip,
        **_places(build), states=states(spec, build.limits.slots), shape=f"{H} × {spec.k_dim} × {spec.v_dim}",
        cost=Cost(
            weight_bytes=0 if skip is None else 4 * H, macs=products * H * spec.k_dim * spec.v_dim,
            slot_bytes=state_bytes(spec),
        ),
    )  # fmt: skip


def _gated_norm(build: ModelOps, layer: int, spec: RecurrenceSpec) -> None:
    name, values, weight, cost = f"layers.{layer}.mix_norm.weight", spec.values, None, Cost()
    if spec.norm is not None:
        width = spec.norm_width if spec.norm_shared else values
        weight = build.vector(name, width, spec.norm.offset)
        cost = Cost(weight_bytes=4 * width)
        if spec.norm_shared:
            weight = np.resize(weight[:width], padded(values))
    build.add(
        "gated_norm", "mix_norm", "recurrence", layer, TILES, 1, x=build.qkv, x_stride=build.qkv.strides[0],
        y_at=8 * spec.keys, z_at=4 * spec.channels, width=values, gate_first=int(spec.gate_first),
        norm_width=spec.norm_width if spec.norm is not None else 0, weight=weight,
        eps=spec.norm.eps if spec.norm is not None else 0.0, out=build.tiles, groups=padded(values) // GROUP,
        out_kind=build.activation_kind(f"layers.{layer}.mix_out"), cost=cost,
    )  # fmt: skip
