"""The oracle: a model in plain NumPy float32, one whole sequence at once, every line with its shape.

T tokens, D hidden width, H query heads, K key/value heads, k and v their widths, F feed-forward width, V vocabulary,
E experts, A experts a token gets, G groups of experts; r, n, p widths of latents, of unrotated and rotated key parts.
It follows the words of lapinfer/spec/ and is slow on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf, prod
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lapinfer.families import Source, sources_for
from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    RecurrenceSpec,
    RopeSpec,
    RouterSpec,
    TreeSpec,
)
from lapinfer.tensors import tensors

Weights = Mapping[str, np.ndarray]


def forward(
    spec: ModelSpec,
    weights: Weights,
    ids: Sequence[int],
    start: int = 0,
    routed: dict[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Logits [T, V] of a fresh sequence of T token ids, whose first token stands at position `start`.

    `routed` is filled with the chosen experts [T, A] of each layer that has them, the best first.
    """
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 1 / infinity right
        positions = np.arange(start, start + len(ids))  # [T]
        x = weights["embed"][list(ids)] * np.float32(spec.embed_scale)  # [T, D]
        if spec.positions:
            x = x + weights["positions"][positions]  # [T, D]
        x = norm(spec.embed_norm, weights, "embed_norm", x)  # [T, D]
        for i, layer in enumerate(spec.layers):
            w = {name.removeprefix(f"layers.{i}."): value for name, value in weights.items()}
            scale, before = np.float32(layer.residual_scale), x  # [T, D]
            y = norm(layer.attn_norm, w, "attn_norm", x)  # [T, D]
            if isinstance(layer.mixer, ConvolutionSpec):
                y = convolution(layer.mixer, w, y)  # [T, D]
            elif isinstance(layer.mixer, RecurrenceSpec):
                y = recurrence(layer.mixer, w, y)  # [T, D]
            else:
                y = attention(layer.mixer, w, y, positions)  # [T, D]
            x = x + scale * norm(layer.attn_post_norm, w, "attn_post_norm", y)  # [T, D]
            if layer.parallel and layer.ff_norm is None:
                y = norm(layer.attn_norm, w, "attn_norm", before)  # [T, D]
            else:
                y = norm(layer.ff_norm, w, "ff_norm", before if layer.parallel else x)  # [T, D]
            if (router := layer.feed_forward.router) is None:
                y = feed_forward(layer.feed_forward, w, y)  # [T, D]
            else:
                decide = descend if isinstance(router, TreeSpec) else route
                chosen, weight = decide(router, w, y)  # type: ignore[arg-type]  # [T, A] twice
                y = experts(layer.feed_forward, w, y, chosen, weight)  # [T, D]
                if routed is not None:
                    routed[i] = chosen
            x = x + scale * norm(layer.ff_post_norm, w, "ff_post_norm", y)  # [T, D]
        x = norm(spec.norm, weights, "norm", x)  # [T, D]
        head = weights["embed" if spec.tied else "head"]  # [V, D]
        logits = (x @ head.T + weights.get("head.bias", np.float32(0))) * np.float32(spec.logit_scale)  # [T, V]
        return cap(logits, spec.logit_softcap)


def norm(spec: NormSpec | None, w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Rows of x [..., D] brought to unit size, then scaled (and shifted) by weights [D]."""
    if spec is None:
        return x
    weight = w[f"{name}.weight"] + np.float32(spec.offset) if spec.weight else np.float32(1)  # [D]
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdims=True)  # [..., D]
    size = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(spec.eps))  # [..., 1]
    return x / size * weight + (w[f"{name}.bias"] if spec.bias else np.float32(0))  # [..., D]


def attention(spec: AttentionSpec, w: Weights, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D]."""
    T, H = len(x), spec.n_heads
    q, k, v = (latent_heads if spec.latent else heads)(spec, w, x, positions)  # [T, H, k], [T, K, k], [T, K, v]
    K = k.shape[1]  # H for latent attention
    k, v = np.repeat(k, H // K, axis=1), np.repeat(v, H // K, axis=1)  # [T, H, k], [T, H, v]
    scores = cap(np.einsum("qhd,khd->hqk", q, k) * np.float32(spec.scale), spec.softcap)  # [H, T, T]
    distance = positions[:, None] - positions[None, :]  # [T, T], query minus key
    seen = (distance >= 0) & (distance < (spec.window or T))  # [T, T]
    scores = np.where(seen, scores, np.float32(-np.inf))  # [H, T, T]
    if spec.sinks:
        sinks = np.broadcast_to(w["sinks"][:, None, None], (H, T, 1))  # [H, T, 1]
        scores = np.concatenate([scores, sinks], axis=2)  # [H, T, T + 1]
    p = softmax(scores)[..., :T]  # [H, T, T]
    out = np.einsum("hqk,khd->qhd", p, v).reshape(T, -1)  # [T, H·v]
    if spec.gated:
        rows = slice(spec.gate_start, None)
        bias = w["qkv.bias"][rows] if spec.qkv_bias else np.float32(0)
        out = out * sigmoid(x @ w["qkv"][rows].T + bias)  # [T, H·v]
    return out @ w["o"].T + w.get("o.bias", np.float32(0))  # [T, D]


def convolution(spec: ConvolutionSpec, w: Weights, x: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D]."""
    T = len(x)
    gate, carry, x = np.split(x @ w["conv_in"].T + w.get("conv_in.bias", np.float32(0)), 3, axis=1)  # [T, D] thrice
    z = np.pad(gate * x, ((spec.kernel - 1, 0), (0, 0)))  # [kernel − 1 + T, D]
    y = sum(w["conv.weight"][:, j] * z[j : j + T] for j in range(spec.kernel))  # [T, D]
    y = carry * (y + w.get("conv.bias", np.float32(0)))  # [T, D]
    return y @ w["conv_out"].T + w.get("conv_out.bias", np.float32(0))  # [T, D]


def recurrence(spec: RecurrenceSpec, w: Weights, x: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D], one position after the other. K key heads, I = H·v."""
    T, H, K, C, I = len(x), spec.heads, spec.key_heads, spec.channels, spec.values  # noqa: E741
    row = x @ w["mix_in"].T + w.get("mix_in.bias", np.float32(0))  # [T, C + I + scalars]
    qkv, z, rates = np.split(row, [C, C + I], axis=1)  # [T, C], [T, I], [T, scalars]
    padded = np.pad(qkv, ((spec.kernel - 1, 0), (0, 0)))  # [kernel − 1 + T, C]
    qkv = sum(w["conv.weight"][:, j] * padded[j : j + T] for j in range(spec.kernel))  # [T, C]
    qkv = activate("silu", qkv + w.get("conv.bias", np.float32(0)))  # [T, C]
    q, k, v = np.split(qkv, [spec.keys, 2 * spec.keys], axis=1)
    q, k = (np.repeat(y.reshape(T, K, -1), H // K, axis=1) for y in (q, k))  # [T, H, k] twice
    v, step = v.reshape(T, H, -1), np.logaddexp(rates[:, :H] + w["step"], np.float32(0))  # [T, H, v], [T, H]
    if spec.rule == "delta":
        q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + np.float32(1e-6)) for y in (q, k))  # [T, H, k] twice
        q, write = q / np.float32(np.sqrt(spec.k_dim)), sigmoid(rates[:, H:])  # [T, H, k], [T, H]
    else:
        write = step = np.clip(step, np.float32(spec.least_step), np.float32(spec.most_step or np.inf))  # [T, H]
    keep = np.exp(-np.exp(w["decay"]) * step)  # [T, H]
    S = np.zeros((H, spec.k_dim, spec.v_dim), np.float32)  # [H, k, v]
    y = np.zeros_like(v)  # [T, H, v]
    for t in range(T):
        S = keep[t][:, None, None] * S  # [H, k, v]
        new = v[t] - np.einsum("hkv,hk->hv", S, k[t]) if spec.rule == "delta" else v[t]  # [H, v]
        S = S + k[t][:, :, None] * (write[t][:, None] * new)[:, None]  # [H, k, v]
        y[t] = np.einsum("hkv,hk->hv", S, q[t])  # [H, v]
    if spec.rule == "state_space":
        y = y + w["skip"][:, None] * v  # [T, H, v]
    y, gate = y.reshape(T, I), activate("silu", z)  # [T, I] twice
    if spec.gate_first:
        y = y * gate  # [T, I]
    if spec.norm is not None:
        weight = w["mix_norm.weight"].reshape(-1, spec.norm_width)  # [1 or I / norm_width, norm_width]
        parts = y.reshape(T, -1, spec.norm_width)  # [T, I / norm_width, norm_width]
        size = np.sqrt((parts * parts).mean(-1, keepdims=True) + np.float32(spec.norm.eps))
        y = (parts / size * weight).reshape(T, I)  # [T, I]
    if not spec.gate_first:
        y = y * gate  # [T, I]
    return y @ w["mix_out"].T + w.get("mix_out.bias", np.float32(0))  # [T, D]


def heads(
    spec: AttentionSpec, w: Weights, x: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [T, H, k], keys [T, K, k] and values [T, K, v] of x [T, D]."""
    T, H, K = len(x), spec.n_heads, spec.n_kv_heads
    qkv = x @ w["qkv"].T + w.get("qkv.bias", np.float32(0))  # [T, H·k + K·k + K·v]
    qkv = qkv[:, : spec.gate_start]  # without a gate
    q, k, v = np.split(qkv, [H * spec.k_dim, (H + K) * spec.k_dim], axis=1)
    if spec.qk_norm and spec.qk_norm_full:
        q, k = norm(spec.qk_norm, w, "q_norm", q), norm(spec.qk_norm, w, "k_norm", k)  # [T, H·k], [T, K·k]
    q, k, v = q.reshape(T, H, -1), k.reshape(T, K, -1), v.reshape(T, K, -1)  # [T, H, k], [T, K, k], [T, K, v]
    if spec.qk_norm and not spec.qk_norm_full and not spec.qk_norm_after:
        q, k = norm_heads(spec, w, q, k)  # [T, H, k], [T, K, k]
    if spec.clip is not None:
        q, k, v = (np.clip(y, -np.float32(spec.clip), np.float32(spec.clip)) for y in (q, k, v))
    if spec.rope:
        q, k = rotate(spec.rope, q, positions), rotate(spec.rope, k, positions)  # [T, H, k], [T, K, k]
    if spec.qk_norm_after:
        q, k = norm_heads(spec, w, q, k)  # [T, H, k], [T, K, k]
    if spec.growth:
        growth = 1 + np.float32(spec.growth.beta) * np.log1p(positions // spec.growth.length).astype(np.float32)  # [T]
        q = q * growth[:, None, None]  # [T, H, k]
    return q, k, v


def norm_heads(spec: AttentionSpec, w: Weights, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries [T, H, k] and keys [T, K, k], each head normed by itself, by weights [k] or its own of [heads · k]."""
    assert spec.qk_norm is not None
    heads = {name: value.reshape(-1, spec.k_dim) for name, value in w.items() if name[:7] in ("q_norm.", "k_norm.")}
    return norm(spec.qk_norm, heads, "q_norm", q), norm(spec.qk_norm, heads, "k_norm", k)


def latent_heads(
    spec: AttentionSpec, w: Weights, x: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and keys [T, H, n + p] and values [T, H, v] of x [T, D]: what every head gets out of the latents."""
    assert spec.latent is not None
    assert spec.rope is not None
    T, H, r, n = len(x), spec.n_heads, spec.latent.rank, spec.latent.nope
    q_rows = spec.latent.q_rank or spec.q_rows  # Q
    qkv = x @ w["qkv"].T + w.get("qkv.bias", np.float32(0))  # [T, Q + r + p]
    q, latent, key = np.split(qkv, [q_rows, q_rows + r], axis=1)  # [T, Q], [T, r], [T, p]
    if spec.latent.q_rank:
        q = norm(spec.latent.norm, w, "q_a_norm", q) @ w["q_b"].T  # [T, H·(n + p)]
    q = q.reshape(T, H, -1)  # [T, H, n + p]
    rotated = rotate(spec.rope, q[..., n:], positions)  # [T, H, p]
    q = np.concatenate([q[..., :n], rotated], axis=2)  # [T, H, n + p]
    latent = norm(spec.latent.norm, w, "kv_norm", latent)  # [T, r]
    key = rotate(spec.rope, key[:, None], positions)  # [T, 1, p]
    k = np.einsum("hrn,tr->thn", w["k_up"], latent)  # [T, H, n]
    k = np.concatenate([k, np.repeat(key, H, axis=1)], axis=2)  # [T, H, n + p]
    return q, k, np.einsum("hvr,tr->thv", w["v_up"], latent)  # and [T, H, v]


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    p = np.exp(x - x.max(-1, keepdims=True))  # [..., N]
    return p / p.sum(-1, keepdims=True)  # [..., N]


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
        if spec.activation == "swiglu_oai":
            gate, up = np.minimum(gate, np.float32(7)), np.clip(up, np.float32(-7), np.float32(7))  # [T, F] twice
            y = (up + 1) * gate / (1 + np.exp(np.float32(-1.702) * gate))  # [T, F]
        else:
            y = activate(spec.activation, gate) * up  # [T, F]
    else:
        y = xielu(w["xielu"], y) if spec.activation == "xielu" else activate(spec.activation, y)  # [T, F]
    return y @ w["down"].T + w.get("down.bias", np.float32(0))  # [T, D]


def experts(spec: FeedForwardSpec, w: Weights, x: np.ndarray, chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D], with chosen experts [T, A] and their weights [T, A]."""
    assert spec.router is not None
    out = np.zeros_like(x)  # [T, D]
    for e in range(spec.experts):
        if e < spec.router.n_experts:
            token, place = np.nonzero(chosen == e)  # [tokens that get it] twice
            share = weight[token, place]  # [tokens]
        else:  # shared
            token = np.arange(len(x))  # [T]
            share = np.ones(len(x), np.float32)  # [T]
            if spec.shared_gate:
                share = sigmoid(x @ w["router"][-1])  # [T]
            if "mix" in w:
                share = share * (1 - sigmoid(w["mix"]))  # [T]
        own = {n.removeprefix("experts."): v[e] for n, v in w.items() if n.startswith("experts.")}
        if "leaves.inward" in w:
            first = "gate_up" if spec.gated else "up"
            own = {first: w["leaves.inward"][e], "down": w["leaves.outward"][e].T}
            for ours, name in ((f"{first}.bias", "inward"), ("down.bias", "outward")):
                if f"leaves.{name}.bias" in w:
                    own[ours] = w[f"leaves.{name}.bias"][e]
        out[token] += share[:, None] * feed_forward(spec, own, x[token])  # [tokens, D]
    return out


def descend(spec: TreeSpec, w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leaf of each tree, or the neurons on the way, that each token of x [T, D] gets [T, A], and weights [T, A]."""
    chosen = []
    weight = sigmoid(w["mix"][0]) if spec.mix else np.float32(1)
    for row in x:  # [D]
        for tree in range(spec.trees):
            node, first = 0, tree * spec.nodes
            for _ in range(spec.depth + spec.neurons):
                if spec.neurons:
                    logit = w["leaves.inward"][first + node, 0] @ row + w["leaves.inward.bias"][first + node, 0]
                    chosen.append(first + node)
                    right = logit > 0
                else:
                    n = spec.node_width
                    rows = slice((first + node) * n, (first + node + 1) * n)
                    z = w["nodes"][rows] @ row + (w["nodes.bias"][rows] if spec.node_bias else 0)  # [n]
                    if n > 1:
                        z = activate(spec.node_activation, z) @ w["node_out"][first + node]
                        z = np.atleast_1d(z + w["node_out.bias"][first + node])
                    right = z[0] >= 0
                node = 2 * node + 1 + int(right)
            if not spec.neurons:
                chosen.append(tree * 2**spec.depth + node - spec.nodes)
    found = np.array(chosen).reshape(len(x), -1)
    return found, np.full(found.shape, weight, np.float32)


def route(spec: RouterSpec, w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The experts that each token of x [T, D] gets [T, A], the best first, and their weights [T, A]."""
    T, E, G = len(x), spec.n_experts, spec.groups
    logits = x @ w["router"][:E].T + w.get("router.bias", np.float32(0))  # [T, E]
    if spec.score == "sparsemixer":
        return sparsemixer(logits, spec.jitter)
    s = {"softmax": softmax, "sigmoid": sigmoid, "logits": np.array}[spec.score](logits)  # [T, E]
    ranked = s + w.get("router.selection_bias", np.float32(0))  # [T, E]
    if G > 1:
        inside = -np.sort(-ranked.reshape(T, G, -1), axis=2)  # [T, G, E / G], the largest first
        best = first_largest(inside[..., : spec.group_best].sum(2), spec.top_groups)  # [T, top_groups]
        member = np.arange(E) // (E // G)  # [E]
        ranked = np.where((member == best[..., None]).any(1), ranked, np.float32(-np.inf))  # [T, E]
    chosen = first_largest(ranked, spec.top_k)  # [T, A]
    weight = np.take_along_axis(s, chosen, 1)  # [T, A]
    if spec.score == "logits":
        weight = softmax(weight)  # [T, A]
    if spec.normalise:
        total = weight.sum(1, keepdims=True) + np.float32(spec.eps)  # [T, 1]
        weight = weight / np.maximum(total, np.float32(spec.least_sum))  # [T, A]
    return chosen, weight * np.float32(spec.scale)


def sparsemixer(logits: np.ndarray, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Two experts of logits [T, E] and their weights, [T, 2] twice."""
    left, chosen, weight = logits.copy(), [], []  # [T, E]
    for _ in range(2):
        best, largest = first_largest(left, 1), left.max(1, keepdims=True)  # [T, 1] twice
        with np.errstate(invalid="ignore"):  # 0 / 0 is as near as can be
            far = (largest - left) / np.maximum(np.abs(logits), largest) > np.float32(2 * jitter)  # [T, E]
        p = softmax(np.where(far, np.float32(-np.inf), left))  # [T, E]
        chosen.append(best)
        weight.append(np.take_along_axis(p, best, 1))  # [T, 1]
        np.put_along_axis(left, best, np.float32(-np.inf), 1)
    return np.concatenate(chosen, 1), np.concatenate(weight, 1)


def first_largest(x: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest in each row of x [T, N], the largest first; of equal ones, the first."""
    return np.argsort(-x, axis=1, kind="stable")[:, :count]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


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


def xielu(told: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Element by element; told: (p, n, β, ε)."""
    above, below = np.logaddexp(np.float32(0), told[:2])
    beta, eps = told[2:]
    small = np.expm1(np.minimum(x, eps)) - x
    return np.where(x > 0, above * x * x, (beta + below) * small) + beta * x


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
    for name in [name for name in stored if name.endswith("_blocks")]:
        stored[name] = mxfp4(stored[name], stored[name.removesuffix("blocks") + "scales"])
    found, promised = sources_for(spec, stored.keys()), tensors(spec)
    assert found.keys() == promised.keys(), "sources() and tensors() disagree"
    weights: dict[str, np.ndarray] = {}
    for name, tensor in promised.items():
        shape = tensor.shape
        matrix = len(shape) > 1 and tensor.role != "bias"
        rows = np.concatenate([part(stored, s, shape[-1] if matrix else None) for s in found[name]])
        wanted = (prod(shape[:-1]), shape[-1]) if matrix else (prod(shape),)
        assert rows.shape == wanted, f"{name}: sources() and tensors() disagree"
        weights[name] = rows.reshape(shape)
    return weights


def part(stored: Weights, source: Source, width: int | None) -> np.ndarray:
    """What a source gives: [rows, width], or [rows] for a vector."""
    if not source.name:
        return np.zeros((source.stop or 0, width) if width else source.stop or 0, np.float32)
    values = np.atleast_1d(stored[source.name])
    if source.index is not None:
        values = values[source.index]
    elif values.ndim == 3:
        values = values.reshape(-1, values.shape[2])  # rows of the first matrix, rows of the second, …
    values = (values.T if source.transposed else values)[source.start : source.stop : source.step].astype(np.float32)
    if source.columns is not None and width is not None:
        values = values[:, slice(*source.columns)]  # [rows, at most width]
        values = np.pad(values, ((0, 0), (0, width - values.shape[1])))  # [rows, width]
    return values.reshape(-1) if width is None else values


def mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Values [E, R, C] of blocks [E, R, C / 32, 16], two numbers a byte, the low half first; scales [E, R, C / 32]."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # [8]
    table = np.concatenate([table, -table])  # [16]
    pairs = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1)  # [E, R, C / 32, 16, 2]
    values = np.ldexp(pairs, scales.astype(np.int32)[..., None, None] - 127)  # [E, R, C / 32, 16, 2]
    return values.reshape(*blocks.shape[:2], -1).astype(np.float32)
