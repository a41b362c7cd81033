"""The decoder that is trained: RMS norms, rotary positions, grouped-query attention, and a feed-forward of any kind.

Letters: B sequences, T tokens, D hidden width, H query heads, K key/value heads, k width of a head, V vocabulary. Names
of parameters are Llama's without their first `model.`, or docs/checkpoint-format.md's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from lapinfer.spec import AttentionSpec, FeedForwardSpec, RopeSpec, RouterSpec, TreeSpec
from lapinfer.train.activations import ACTIVATIONS
from lapinfer.train.config import Config
from lapinfer.train.fff import FFF
from lapinfer.train.moe import MoE

DEVIATION = 0.02
"""Of initial weights; those that add to the residual are divided by sqrt(2 · layers), as in GPT-2."""


class Rotary(nn.Module):
    """Turns pair (i, i + k/2) of each head by position · inv_freq[i]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rope: RopeSpec, context: int) -> None:
        super().__init__()
        angles = torch.arange(context)[:, None] * torch.tensor(rope.inv_freq)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, heads, T, k] in float32."""
        low, high = x.float().chunk(2, dim=-1)
        T = x.shape[-2]
        return x * self.cos[:T] + torch.cat([-high, low], dim=-1) * self.sin[:T]


class Attention(nn.Module):
    """Causal attention of H query heads over K shared key/value heads."""

    def __init__(self, spec: AttentionSpec, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        kv_rows = spec.n_kv_heads * spec.k_dim
        self.q_proj = nn.Linear(hidden, spec.q_rows, bias=False)
        self.k_proj = nn.Linear(hidden, kv_rows, bias=False)
        self.v_proj = nn.Linear(hidden, kv_rows, bias=False)
        self.o_proj = nn.Linear(spec.out_width, hidden, bias=False)
        norm = spec.qk_norm
        self.q_norm = nn.Identity() if norm is None else nn.RMSNorm(spec.k_dim, norm.eps)
        self.k_norm = nn.Identity() if norm is None else nn.RMSNorm(spec.k_dim, norm.eps)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        B, T, _ = x.shape
        q, k, v = (m(x).view(B, T, -1, self.spec.k_dim) for m in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotary(h.transpose(1, 2)).to(v.dtype) for h in (self.q_norm(q.float()), self.k_norm(k.float())))
        grouped = self.spec.n_kv_heads < self.spec.n_heads
        y = scaled_dot_product_attention(
            q, k, v.transpose(1, 2), is_causal=True, scale=self.spec.scale, enable_gqa=grouped
        )
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Dense(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, ff: FeedForwardSpec, hidden: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[ff.activation]
        self.gate_proj = nn.Linear(hidden, ff.width, bias=False)
        self.up_proj = nn.Linear(hidden, ff.width, bias=False)
        self.down_proj = nn.Linear(ff.width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def feed_forward(ff: FeedForwardSpec, hidden: int, config: Config) -> Dense | MoE | FFF:
    """The module of a spec, with the configuration's options for training it."""
    match ff.router:
        case RouterSpec():
            assert config.moe is not None
            return MoE(ff, hidden, config.moe)
        case TreeSpec():
            assert config.fff is not None
            return FFF(ff, hidden, config.fff)
        case None:
            return Dense(ff, hidden)


class Layer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        spec, D = config.spec().layers[index], config.model.hidden_size
        assert spec.attention is not None
        assert spec.attn_norm is not None
        assert spec.ff_norm is not None
        self.input_layernorm = nn.RMSNorm(D, spec.attn_norm.eps)
        self.self_attn = Attention(spec.attention, D)
        self.post_attention_layernorm = nn.RMSNorm(D, spec.ff_norm.eps)
        self.mlp = feed_forward(spec.feed_forward, D, config)
        self.dropout = nn.Dropout(config.training.dropout)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotary))
        y = self.mlp(self.post_attention_layernorm(x).flatten(0, 1))
        return x + self.dropout(y.view(x.shape))


class Decoder(nn.Module):
    """Token ids [B, T] to logits [B, T, V]: the model of `Config.spec()`, with random weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.spec = config, config.spec()
        spec = self.spec
        self.embed_tokens = nn.Embedding(spec.vocab, spec.hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(len(spec.layers)))
        self.norm = nn.RMSNorm(spec.hidden, spec.norm.eps)
        self.lm_head = None if spec.tied else nn.Linear(spec.hidden, spec.vocab, bias=False)
        rope = spec.attentions[0].rope
        assert rope is not None
        self.rotary = Rotary(rope, spec.context)
        self.dropout = nn.Dropout(config.training.dropout)
        self._initialise()

    def _initialise(self) -> None:
        out_deviation = DEVIATION / (2 * len(self.layers)) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, MoE | FFF):
                module.initialise(DEVIATION, out_deviation)
            elif isinstance(module, nn.Linear | nn.Embedding) and not name.endswith(("router", "noise", "nodes")):
                out = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=out_deviation if out else DEVIATION)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]."""
        x = self.dropout(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x, self.rotary)
        return linear(self.norm(x), self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)
