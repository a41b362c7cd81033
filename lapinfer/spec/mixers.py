"""What carries something from one position of a sequence to another, with norms and rotations.

Letters: lapinfer.spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NormSpec:
    """y = x / rms(x) · (w + offset), or y = (x − mean) / sd(x) · (w + offset) + b for `layer`.

    Without `weight`, w + offset is 1.
    """

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    bias: bool = False
    weight: bool = True


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions on the first `dim` of each head: pair i turns by position · inv_freq[i].

    Pairs are (i, i + dim/2); `interleaved` pairs are (2i, 2i + 1). `scale` multiplies cos and sin.
    A context larger than `long_context` (when not 0) uses `long_inv_freq` and `long_scale` instead.
    """

    dim: int
    inv_freq: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False
    long_context: int = 0
    long_inv_freq: tuple[float, ...] = ()
    long_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class GrowthSpec:
    """Queries at position p, after the rotation, are multiplied with 1 + beta · ln(1 + ⌊p / length⌋) (Llama 4)."""

    beta: float
    length: int


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token leaves one latent [rank], normed, and one rotated key [p], which all heads share. Head h has as key
    (k_up[h]ᵀ · latent, rotated key) and as value v_up[h] · latent [v_dim]; its query [nope + p] comes from x, or from
    x through a normed [q_rank]. Since q · (k_upᵀ · latent) = (k_up · q) · latent, it is run as attention of H heads
    over a single one, whose keys are (latent, rotated key) and whose values are the latents.
    """

    rank: int
    nope: int
    v_dim: int
    norm: NormSpec
    q_rank: int = 0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """softmax(mask(cap(q·k · scale))) · v, H query heads over K shared key/value heads.

    `window`: a query at p sees keys p − window + 1 … p. `softcap` c: s becomes c·tanh(s / c).
    `qk_norm` is applied before the rotation, or `qk_norm_after` it; to each head or to all heads at once
    (`qk_norm_full`); with the same weights for all heads, or with its own for each (`qk_norm_each`).
    `clip` c: queries, keys and values are cut to −c … c between norm and rotation. `sinks`: a score for each head
    that takes part in the softmax and has no value. `latent`: K is 1, k_dim rank + p, v_dim rank, and `rope`
    turns the last p columns of a key. `gated`: what comes out is multiplied with σ of a gate [H · v_dim], which is
    made beside queries, keys and values.
    """

    n_heads: int
    n_kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: NormSpec | None = None
    qk_norm_full: bool = False
    clip: float | None = None
    sinks: bool = False
    latent: LatentSpec | None = None
    qk_norm_each: bool = False
    qk_norm_after: bool = False
    growth: GrowthSpec | None = None
    gated: bool = False

    @property
    def qkv_rows(self) -> int:
        if self.latent is not None:
            return (self.latent.q_rank or self.q_rows) + self.k_dim
        return self.gate_start + (self.n_heads * self.v_dim if self.gated else 0)

    @property
    def gate_start(self) -> int:
        """Where the gate begins in a token's row, after queries, keys and values."""
        return self.q_rows + self.n_kv_heads * (self.k_dim + self.v_dim)

    @property
    def q_rows(self) -> int:
        """Query numbers of a token, all heads."""
        if self.latent is not None:
            return self.n_heads * (self.latent.nope + self.k_dim - self.latent.rank)
        return self.n_heads * self.k_dim

    @property
    def out_width(self) -> int:
        """Columns of the matrix that follows."""
        return self.n_heads * (self.v_dim if self.latent is None else self.latent.v_dim)


@dataclass(frozen=True, slots=True)
class ConvolutionSpec:
    """A gated short convolution over the positions t of a sequence (LFM2), column by column, in place of attention:

    (B, C, x) = in · norm(x); z = B · x; y[t] = out · (C[t] · Σ_j w[j] · z[t − kernel + 1 + j]), and z is 0 before the
    first position. `bias`: all three have one.
    """

    kernel: int
    bias: bool = False


STATES = 2
"""States that a recurrence keeps of a slot: after the last position, and after the one before, so that the last token
can be read again."""

Rule = Literal["delta", "state_space"]
"""How a recurrence writes to its state: see RecurrenceSpec."""


@dataclass(frozen=True, slots=True)
class RecurrenceSpec:
    """A state S [k_dim, v_dim] for each of `heads` heads, in place of attention (K: `key_heads`, which heads share).

    (q, k, v, z, a, b) = in · norm(x), of K · k, K · k, H · v, H · v, H and H numbers. q, k and v pass a convolution
    over the positions, column by column, and SiLU: silu(Σ_j w[j] · x[t − kernel + 1 + j]). Then, for each head:
        delta        S ← α S, then S ← S + k (β (v − Sᵀ k))ᵀ; y = Sᵀ q, where q and k are divided by their lengths
                     (and q by √k_dim), α = exp(−exp(A) · softplus(a + dt)), β = σ(b). The gated delta rule (Yang et
                     al., arXiv 2412.06464).
        state_space  S ← α S + k (Δ v)ᵀ; y = Sᵀ q + D v, where Δ = softplus(a + dt), from `least_step` to
                     `most_step`, and α = exp(−exp(A) · Δ); there is no b. Mamba-2 (Dao and Gu, arXiv 2405.21060),
                     whose C is q here, B k, and x v.
    out · gated norm(y, z): norm(y) · silu(z), or, where the gate comes first, norm(y · silu(z)); of `norm_width`
    columns at a time, whose weights are the same for all of them where `norm_shared`. `norm` None: y · silu(z).
    bias: of in and out; kernel_bias: of the convolution.
    """

    rule: Rule
    kernel: int
    heads: int
    key_heads: int
    k_dim: int
    v_dim: int
    norm: NormSpec | None
    norm_width: int
    norm_shared: bool = False
    gate_first: bool = False
    bias: bool = False
    kernel_bias: bool = False
    least_step: float = 0.0
    most_step: float | None = None

    @property
    def keys(self) -> int:
        """Numbers of all keys of a token, and of all queries."""
        return self.key_heads * self.k_dim

    @property
    def values(self) -> int:
        """Numbers of all values of a token, of what comes out, and of its gate."""
        return self.heads * self.v_dim

    @property
    def channels(self) -> int:
        """Columns of the convolution: queries, keys, values."""
        return 2 * self.keys + self.values

    @property
    def scalars(self) -> int:
        """Rows of the first matrix that are a number for each head."""
        return (2 if self.rule == "delta" else 1) * self.heads

    @property
    def in_rows(self) -> int:
        return self.channels + self.values + self.scalars


Mixer = AttentionSpec | ConvolutionSpec | RecurrenceSpec
"""What carries something from one position to another."""
