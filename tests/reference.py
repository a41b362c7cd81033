"""The oracle: a model in plain NumPy float32, one whole sequence at once, every line with its shape.

T tokens, D hidden width, H query heads, K key/value heads, k and v their widths, F feed-forward width, V vocabulary.
It follows the words of lapinfer/spec.py and is slow on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lapinfer.families import sources_for
from lapinfer.spec import AttentionSpec, FeedForwardSpec, ModelSpec, NormSpec, RopeSpec, tensors

Weights = Mapping[str, np.ndarray]


def forward(spec: ModelSpec, weights: Weights, ids: Sequence[int], start: int = 0) -> np.ndarray:
    """Logits [T, V] of a fresh sequence of T token ids, whose first token stands at position `start`."""
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 1 / infinity right
        positions = np.arange(start, start + len(ids))  # [T]
        x = weights["embed"][list(ids)] * np.float32(spec.embed_scale)  # [T, D]
        if spec.positions:
            x = x + weights["positions"][positions]  # [T, D]
        for i, layer in enumerate(spec.layers):
            w = {name.removeprefix(f"layers.{i}."): value for name, value in weights.items()}
            scale = np.float32(layer.residual_scale)
            y = norm(layer.attn_norm, w, "attn_norm", x)  # [T, D]
            y = attention(layer.attention, w, y, positions)  # [T, D]
            x = x + scale * norm(layer.attn_post_norm, w, "attn_post_norm", y)  # [T, D]
            y = norm(layer.ff_norm, w, "ff_norm", x)  # [T, D]
            y = feed_forward(layer.feed_forward, w, y)  # [T, D]
            x = x + scale * norm(layer.ff_post_norm, w, "ff_post_norm", y)  # [T, D]
        x = norm(spec.norm, weights, "norm", x)  # [T, D]
        head = weights["embed" if spec.tied else "head"]  # [V, D]
        logits = (x @ head.T + weights.get("head.bias", np.float32(0))) * np.float32(spec.logit_scale)  # [T, V]
        return cap(logits, spec.logit_softcap)


def norm(spec: NormSpec | None, w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Rows of x [..., D] brought to unit size, then scaled (and shifted) by weights [D]."""
    if spec is None:
        return x
    weight = w[f"{name}.weight"] + np.float32(spec.offset)  # [D]
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdims=True)  # [..., D]
    size = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(spec.eps))  # [..., 1]
    return x / size * weight + (w[f"{name}.bias"] if spec.bias else np.float32(0))  # [..., D]


def attention(spec: AttentionSpec, w: Weights, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D]."""
    T, H, K = len(x), spec.n_heads, spec.n_kv_heads
    qkv = x @ w["qkv"].T + w.get("qkv.bias", np.float32(0))  # [T, H·k + K·k + K·v]
    q, k, v = np.split(qkv, [H * spec.k_dim, (H + K) * spec.k_dim], axis=1)
    if spec.qk_norm and spec.qk_norm_full:
        q, k = norm(spec.qk_norm, w, "q_norm", q), norm(spec.qk_norm, w, "k_norm", k)  # [T, H·k], [T, K·k]
    q, k, v = q.reshape(T, H, -1), k.reshape(T, K, -1), v.reshape(T, K, -1)  # [T, H, k], [T, K, k], [T, K, v]
    if spec.qk_norm and not spec.qk_norm_full:
        q, k = norm(spec.qk_norm, w, "q_norm", q), norm(spec.qk_norm, w, "k_norm", k)  # [T, H, k], [T, K, k]
    if spec.rope:
        q, k = rotate(spec.rope, q, positions), rotate(spec.rope, k, positions)  # [T, H, k], [T, K, k]
    k, v = np.repeat(k, H // K, axis=1), np.repeat(v, H // K, axis=1)  # [T, H, k], [T, H, v]
    scores = cap(np.einsum("qhd,khd->hqk", q, k) * np.float32(spec.scale), spec.softcap)  # [H, T, T]
    distance = positions[:, None] - positions[None, :]  # [T, T], query minus key
    seen = (distance >= 0) & (distance < (spec.window or T))  # [T, T]
    scores = np.where(seen, scores, np.float32(-np.inf))  # [H, T, T]
    p = np.exp(scores - scores.max(-1, keepdims=True))  # [H, T, T]
    p = p / p.sum(-1, keepdims=True)  # [H, T, T]
    out = np.einsum("hqk,khd->qhd", p, v).reshape(T, -1)  # [T, H·v]
    return out @ w["o"].T + w.get("o.bias", np.float32(0))  # [T, D]


def rotate(rope: RopeSpec, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x [T, heads, k]: pair i of each head turned by position · inv_freq[i]."""
    long = rope.long_context and positions[-1] + 1 > rope.long_context
    inv_freq = np.array(rope.long_inv_freq if long else rope.inv_freq, np.float32)  # [dim/2]
    scale = np.float32(rope.long_scale if long else rope.scale)
    angle = positions.astype(np.float32)[:, None] * inv_freq  # [T, dim/2]
    cos, sin = (np.cos(angle) * scale)[:, None], (np.sin(angle) * scale)[:, None]  # [T, 1, dim/2]
    half = rope.dim // 2
    first = slice(0, rope.dim, 2) if rope.interleaved else slice(0, half)
    second = slice(1, rope.dim, 2) if rope.interleaved else slice(half, rope.dim)
    a, b, out = x[..., first], x[..., second], x.copy()  # [T, heads, dim/2] twice, [T, heads, k]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def feed_forward(spec: FeedForwardSpec, w: Weights, x: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D]."""
    name = "gate_up" if spec.gated else "up"
    y = x @ w[name].T + w.get(f"{name}.bias", np.float32(0))  # [T, 2F] or [T, F]
    if spec.gated:
        gate, up = np.split(y, 2, axis=1)  # [T, F] twice
        y = activate(spec.activation, gate) * up  # [T, F]
    else:
        y = activate(spec.activation, y)  # [T, F]
    return y @ w["down"].T + w.get("down.bias", np.float32(0))  # [T, D]


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """Element by element, the activations of lapinfer.spec.Activation."""
    one, half = np.float32(1), np.float32(0.5)
    match name:
        case "silu":
            return x / (one + np.exp(-x))
        case "gelu":
            return half * x * (one + np.vectorize(erf, otypes=[np.float32])(x * np.float32(0.5**0.5)))
        case "gelu_tanh":
            inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
            return half * x * (one + np.tanh(inner))
        case "relu":
            return np.maximum(x, 0)
        case "relu2":
            return np.maximum(x, 0) ** 2
    raise ValueError(name)


def cap(x: np.ndarray, limit: float | None) -> np.ndarray:
    """limit · tanh(x / limit), or x when there is no limit."""
    return x if limit is None else np.float32(limit) * np.tanh(x / np.float32(limit))


def load_weights(checkpoint: Path | Weights, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Our tensors as float32, from a Hugging Face folder (or from tensors under their published names)."""
    stored: dict[str, np.ndarray] = {}
    if isinstance(checkpoint, Path):
        for file in sorted(checkpoint.glob("*.safetensors")):
            stored |= load_file(file)
    else:
        stored |= checkpoint
    weights: dict[str, np.ndarray] = {}
    for name, parts in sources_for(spec, stored.keys()).items():
        arrays = [(stored[s.name].T if s.transposed else stored[s.name])[s.start : s.stop] for s in parts]
        weights[name] = np.concatenate(arrays).astype(np.float32)
    shapes = {name: value.shape for name, value in weights.items()}
    assert shapes == tensors(spec), "sources() and tensors() disagree"
    return weights
