"""The rows that kernels read: where each operand of each op stands. Shared with the plan builder; no numba here.

An op is a row of ROW int64. The first four are the plan's own: the kernel's address, the field of the step header
that counts its work, how many chunks there are for each unit counted, and the op's kind (for messages).
The operands follow, at the places named here. Strides and addresses are in bytes; floats are float32 in the low
half of their int64.
"""

from __future__ import annotations

ROW = 32
KERNEL, COUNT, TIMES, KIND, FIRST = range(5)

# The step header: what ops count their work by. ONE is 1, ANY_WANT 0 or 1; the tiles are of TILE tokens.
STEP = ("one", "tokens", "tiles", "want", "want_tiles", "any_want", "items")
ONE, TOKENS, TILES, WANT, WANT_TILES, ANY_WANT, ITEMS = range(len(STEP))

TILE = 8
"""Tokens whose activations lie together, so that one register tile reads them from neighbouring addresses."""

Q8_TILE_GROUP = TILE * (32 + 4 + 4 + 4)
"""Bytes of 8 tokens × 32 columns of q8 activations: int8 codes [8, 32], float32 scales [8],
float32 scale · Σ codes [8], int32 −128 · Σ codes [8]."""

Q16_TILE_GROUP = TILE * (32 + 32 + 4 + 4 + 4 + 4)
"""Bytes of 8 tokens × 32 columns of q16 activations, a number being 255 · high + low: int8 high [8, 32], int8 low
[8, 32], float32 scales [8], float32 scale · Σ [8], int32 −128 · Σ high [8], int32 −128 · Σ low [8]."""

F32_TILE_GROUP = TILE * 32 * 4
"""Bytes of 8 tokens × 32 columns of float32 activations: [32 columns, 8 tokens]."""

ACTIVATION_KINDS = ("f32", "q8", "q16")
ACT_F32, ACT_Q8, ACT_Q16 = range(3)
"""How a matrix wants its activations (operand out_kind of the op before it)."""

KV_KINDS = ("f32", "f16", "q8")
KV_F32, KV_F16, KV_Q8 = range(3)
"""The cache of one layer. Keys [slot, head, capacity / KEY_LANES, k_dim, KEY_LANES]: neighbouring keys share vectors.
Values [slot, head, capacity, v_lanes], v_dim rounded up to 16. q8: int8 and a float32 scale for each key and value
of a head, [slot, head, capacity]."""

KEY_LANES = 32
"""Keys that are multiplied together: two vectors, which keep both multipliers of a core busy, as one stream."""

KEY_BLOCK = 128
"""Keys whose scores are combined before they are merged into the softmax; splits of attention lie between blocks."""

PARTIAL_EXTRA = 16
"""float32 behind each partial attention row [v_dim]: its running maximum, its sum, and padding."""

OPERANDS: dict[str, tuple[str, ...]] = {
    # out[t] = embed[token[t]] · scale (+ positions[pos[t]])
    "embed": (
        "weights", "format", "row_blocks", "groups", "head_bytes", "block_bytes", "token", "pos", "positions",
        "scale", "out", "out_stride",
    ),
    # activation tiles of norm(x[rows[t]]); rows 0: x[t]. tokens: the step field that counts them
    "norm": (
        "x", "x_stride", "width", "weight", "bias", "eps", "norm", "rows", "tokens", "out", "groups", "out_kind",
    ),
    # x[t] += scale · norm(y[t])
    "add_norm": ("y", "y_stride", "width", "weight", "bias", "eps", "norm", "x", "x_stride", "scale"),
    # `unit` row blocks of W · x, finished as the mode says
    "matmul": (
        "weights", "row_blocks", "groups", "unit", "x", "tokens", "mode", "out", "out_stride", "bias", "scale",
        "softcap", "activation", "out_groups", "out_kind", "block_max", "scratch", "scratch_stride",
    ),
    # q and k norm and rotation in place; keys and values into the cache
    "rope_store": (
        "qkv", "qkv_stride", "heads", "kv_heads", "k_dim", "v_dim", "rope", "rope_dim", "interleaved", "pos", "slot",
        "kv", "k_cache", "v_cache", "k_scale", "v_scale", "capacity", "q_norm", "k_norm", "norm_full", "eps",
    ),
    "attention": (
        "qkv", "qkv_stride", "heads", "kv_heads", "k_dim", "v_dim", "k_cache", "v_cache", "k_scale", "v_scale",
        "capacity", "pos", "items", "window", "scale", "softcap", "partial", "part_table", "scratch", "scratch_stride",
    ),
    # activation tiles of the merged, normalised partials
    "merge": (
        "partial", "part_table", "heads", "v_dim", "pos", "window", "out", "groups", "out_kind", "scratch",
        "scratch_stride",
    ),
    # `rounds` times the sum of `bytes` bytes at buffer + chunk · stride
    "probe": ("buffer", "bytes", "stride", "rounds", "out"),
}  # fmt: skip

STORE, ADD, HEAD, PLAIN, GATED = range(5)
"""matmul modes: out = y · scale; out += y · scale; out = cap(y · scale) and block maxima;
activation tiles of act(y), or of act(gate) · up."""

RMS, LAYER, NONE = range(3)
"""norm kinds."""

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
SILU, GELU, GELU_TANH, RELU, RELU2 = range(len(ACTIVATIONS))

ITEM = ("first_token", "tokens", "slot", "first_block", "last_block", "split")
"""A piece of attention: at most TILE tokens of one slot, in order, against key blocks first … last. `split`: every
block is a partial of its own, at part_table[token] + block; else they are folded into one, at part_table[token].
`part_table` is int64 [tokens, 2]: the index of the partial, and whether the token is split.
Partials are float32 [index, head, v_lanes + PARTIAL_EXTRA]."""
FIRST_TOKEN, TOKEN_COUNT, SLOT, FIRST_BLOCK, LAST_BLOCK, SPLIT = range(len(ITEM))

NO_WINDOW = 1 << 40


def offsets(kernel: str) -> tuple[int, ...]:
    """Byte offsets of a kernel's operands in its row, in their order in OPERANDS."""
    return tuple(8 * (FIRST + i) for i in range(len(OPERANDS[kernel])))
