"""The ops of attention, over keys and values or over latents."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapinfer.kernels.operands import (
    ITEMS,
    LAYER,
    NO_ACTIVATION,
    NO_WINDOW,
    PARTIAL_EXTRA,
    PLAIN,
    RMS,
    STORE,
    TILES,
    KernelId,
)
from lapinfer.quant import GROUP
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.cost import FREE, Cost, Remembered
from lapinfer.runtime.kv import LayerCache, bytes_per_key, lanes, layer_cache
from lapinfer.runtime.ops import norm_cost
from lapinfer.runtime.sizes import growth_table, padded, rope_table
from lapinfer.spec import AttentionSpec, NormSpec


def attention(build: ModelOps, layer: int, spec: AttentionSpec, norm: NormSpec | None, post: NormSpec | None) -> None:
    """Norm, queries, keys and values, the cache, attention, and the matrix that returns to the residual stream."""
    p, D = f"layers.{layer}.", build.spec.hidden
    build.norm(p + "attn_norm", norm, layer, "attention", build.activation_kind(p + "qkv"))
    limits = build.limits
    cache = layer_cache(spec, limits.kv, limits.slots, limits.ctx, limits.step)
    bias = build.vector(p + "qkv.bias", spec.qkv_rows) if spec.qkv_bias else None
    build.matmul(
        p + "qkv", layer, "attention", build.tiles, STORE, out=build.qkv, bias=bias, logical=(spec.qkv_rows, D)
    )
    if spec.latent is None:
        _store_heads(build, layer, spec, cache)
        _attend(build, layer, spec, cache, build.qkv, build.activation_kind(p + "o"))
        out = build.tiles
    else:
        _store_latents(build, layer, spec, cache)
        _attend(build, layer, spec, cache, build.query, build.activation_kind(p + "v_up"))
        _values_of_heads(build, layer, spec)
        out = build.hidden_tiles
    bias = build.vector(p + "o.bias", D) if spec.o_bias else None
    build.sublayer_end(p + "o", p + "attn_post_norm", post, layer, "attention", out, bias, (D, spec.out_width))


def _cache_operands(build: ModelOps, cache: LayerCache) -> dict[str, Any]:
    return {
        "pos": build.step.pos, "k_cache": cache.keys, "v_cache": cache.values, "k_scale": cache.key_scales,
        "v_scale": cache.value_scales, "capacity": cache.capacity,
    }  # fmt: skip


def _rope_operands(build: ModelOps, spec: AttentionSpec) -> dict[str, Any]:
    if spec.rope is None:
        return {"rope": 0, "rope_dim": 0, "interleaved": 0}
    table = build.ropes.setdefault(spec.rope, rope_table(spec.rope, build.limits.ctx))
    return {"rope": table, "rope_dim": spec.rope.dim, "interleaved": int(spec.rope.interleaved)}


def _store_heads(build: ModelOps, layer: int, spec: AttentionSpec, cache: LayerCache) -> None:
    """Norm and rotate each head; store keys and values in the cache."""
    p, H, K, norm = f"layers.{layer}.", spec.n_heads, spec.n_kv_heads, spec.qk_norm
    heads = (H, K) if spec.qk_norm_full or spec.qk_norm_each else (1, 1)
    norms: dict[str, Any] = dict.fromkeys(("q_norm", "k_norm", "q_norm_bias", "k_norm_bias"), 0)
    if norm is not None:
        for which, n in zip(("q_norm", "k_norm"), heads, strict=True):
            width = n * spec.k_dim
            norms[which] = build.norm_weight(f"{p}{which}.weight", width, norm)
            norms[f"{which}_bias"] = build.vector(f"{p}{which}.bias", width) if norm.bias else 0
    norms |= {
        "norm": LAYER if norm is not None and norm.kind == "layer" else RMS, "norm_full": int(spec.qk_norm_full),
        "norm_each": int(spec.qk_norm_each), "norm_after": int(spec.qk_norm_after), "eps": norm.eps if norm else 0.0,
    }  # fmt: skip
    growth = 0
    if spec.growth is not None:
        growth = build.growths.setdefault(spec.growth, growth_table(spec.growth, build.limits.ctx))
    build.add(
        "rope_store", "rope, store", "attention", layer, TILES, 1, qkv=build.qkv, qkv_stride=build.qkv.strides[0],
        heads=H, kv_heads=K, k_dim=spec.k_dim, v_dim=spec.v_dim, **_cache_operands(build, cache), **norms,
        **_rope_operands(build, spec), slot=build.step.slot, of_layer=layer, kv=cache.code,
        growth=growth, clip=spec.clip or 0.0, cost=norm_cost(norm, spec.k_dim * sum(heads)),
    )  # fmt: skip


def _attend(
    build: ModelOps, layer: int, spec: AttentionSpec, cache: LayerCache, query: np.ndarray, out_kind: int
) -> None:
    """Attention over the cache, as activations [T, H · v]."""
    window, H = NO_WINDOW if spec.window is None else spec.window, spec.n_heads
    partial = {"partial": _partial_of(build, spec), "part_table": build.step.part}
    scratch = {"scratch": build.scratch, "scratch_stride": build.scratch.strides[0]}
    build.add(
        KernelId("attention", cache.kind), "attention", "kv", layer, ITEMS, spec.n_kv_heads, qkv=query,
        qkv_stride=query.strides[0], heads=H, kv_heads=spec.n_kv_heads, k_dim=spec.k_dim, v_dim=spec.v_dim,
        **_cache_operands(build, cache), **partial, **scratch, items=build.step.items, window=window, scale=spec.scale,
        softcap=spec.softcap or 0.0,
        cost=Cost(remembered=Remembered(spec.window, bytes_per_key(spec, cache.kind), H * (spec.k_dim + spec.v_dim))),
        shape=f"{H} on {spec.n_kv_heads} × {spec.k_dim}",
    )  # fmt: skip
    width = H * spec.v_dim
    sinks = build.vector(f"layers.{layer}.sinks", H) if spec.sinks else 0
    gate = build.qkv.ctypes.data + 4 * spec.gate_start if spec.gated else 0
    build.add(
        "merge", "merge", "attention" if spec.sinks else "kv", layer, TILES, 1, **partial, **scratch, heads=H,
        v_dim=spec.v_dim, pos=build.step.pos, window=window, sinks=sinks, gate=gate,
        gate_stride=build.qkv.strides[0], out=build.tiles,
        groups=padded(width) // GROUP, out_kind=out_kind, cost=Cost(weight_bytes=4 * H) if spec.sinks else FREE,
    )  # fmt: skip


def _partial_of(build: ModelOps, spec: AttentionSpec) -> np.ndarray:
    """The buffer of partials in the shape of one layer."""
    shape = (build.step.partials, spec.n_heads, lanes(spec.v_dim) + PARTIAL_EXTRA)
    return build.partial.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def _store_latents(build: ModelOps, layer: int, spec: AttentionSpec, cache: LayerCache) -> None:
    """Queries for latents: the rotated part as it is, the other part through the head's own k_up."""
    p, latent, rope = f"layers.{layer}.", spec.latent, spec.rope
    assert latent is not None
    assert rope is not None
    q, kv_offset = build.qkv, 4 * spec.q_rows
    if latent.q_rank:
        build.norm_of(
            build.qkv, p + "q_a_norm", latent.norm, latent.q_rank, layer, "attention", build.activation_kind(p + "q_b")
        )
        q, kv_offset = build.q, 4 * latent.q_rank
        build.matmul(p + "q_b", layer, "attention", build.tiles, STORE, out=q, logical=(spec.q_rows, latent.q_rank))
    groups = padded(latent.nope) // GROUP
    build.add(
        "latent_store", "rope, store", "attention", layer, TILES, 1, q=q, q_stride=q.strides[0], qkv=build.qkv,
        qkv_stride=build.qkv.strides[0], kv_at=kv_offset, heads=spec.n_heads, nope=latent.nope, rank=latent.rank,
        **_rope_operands(build, spec), **_cache_operands(build, cache), slot=build.step.slot, of_layer=layer,
        kv=cache.code, norm=build.vector(p + "kv_norm.weight", latent.rank, latent.norm.offset), eps=latent.norm.eps,
        out=build.hidden_tiles, groups=groups, out_kind=build.activation_kind(p + "k_up"), query=build.query,
        query_stride=build.query.strides[0], scratch=build.scratch, scratch_stride=build.scratch.strides[0],
        cost=Cost(weight_bytes=4 * latent.rank),
    )  # fmt: skip
    build.matmul(
        p + "k_up", layer, "attention", build.hidden_tiles, STORE, out=build.query, out_step=4 * spec.k_dim,
        logical=(latent.rank, latent.nope),
    )  # fmt: skip


def _values_of_heads(build: ModelOps, layer: int, spec: AttentionSpec) -> None:
    """Each head's weighted latent through its own v_up."""
    latent = spec.latent
    assert latent is not None
    build.matmul(
        f"layers.{layer}.v_up", layer, "attention", build.tiles, PLAIN, activation=NO_ACTIVATION,
        out_kind=build.activation_kind(f"layers.{layer}.o"), out_step=latent.v_dim // GROUP,
        logical=(latent.v_dim, latent.rank),
    )  # fmt: skip
