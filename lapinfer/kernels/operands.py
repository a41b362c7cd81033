"""The rows that kernels read: where each operand of each op stands. Shared with the plan builder; no numba here.

An op is a row of ROW int64. The first four are the plan's own: the kernel's address, the field of the step header
that counts its work, how many chunks there are for each unit counted, and the op's kind (for messages).
The operands follow, at the places named here. Strides and addresses are in bytes; floats are float32 in the low
half of their int64.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelId:
    """Which kernel an op runs.

    kind: what it does, a key of OPERANDS. format: of the weights or keys that it reads, where there is a kernel for
    each. activations: what such weights are multiplied with, one of ACTIVATION_KINDS, where there is a choice.
    """

    kind: str
    format: str = ""
    activations: str = ""

    @property
    def name(self) -> str:
        """What the kernel's function is called, and messages call it."""
        return "_".join(filter(None, (self.kind, self.format, "q16" if self.activations == "q16" else "")))


ROW = 64
KERNEL, COUNT, TIMES, KIND, FIRST = range(5)

# The step header: what ops count their work by. ONE is 1, ANY_WANT 0 or 1; the tiles are of TILE tokens. LONE is 1
# when there is one token, CROWD (and CROWD_TILES, the tiles) when there are more. The last ones are written by whoever
# chooses experts: counts for the ops of their own layer, and what went wrong in a layer: PROBLEMS · its place among the
# routed ones + one of the problems below, or 0.
STEP = (
    "one", "tokens", "tiles", "want", "want_tiles", "any_want", "items", "lone", "crowd", "crowd_tiles", "experts",
    "expert_tiles", "gathered_tiles", "loads", "problem",
)  # fmt: skip
(
    ONE, TOKENS, TILES, WANT, WANT_TILES, ANY_WANT, ITEMS, LONE, CROWD, CROWD_TILES, EXPERTS, EXPERT_TILES,
    GATHERED_TILES, LOADS, PROBLEM,
) = range(len(STEP))  # fmt: skip

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
TILE_GROUP_BYTES = (F32_TILE_GROUP, Q8_TILE_GROUP, Q16_TILE_GROUP)
"""How a matrix wants its activations (operand out_kind of the op before it), and the bytes of a tile's group."""

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

ROUTER = (
    "logits", "logits_stride", "experts", "top_k", "score", "normalise", "eps", "scale", "selection_bias", "groups",
    "top_groups", "group_best", "jitter",
)  # fmt: skip
"""Operands of a choice of experts (spec.RouterSpec), the first of the op that makes one."""

SORT = (
    "routed", "choices", "shared", "shared_weight", "shared_gate", "gate_stride", "chosen", "chosen_stride", "weight",
    "position", "finished", "counts", "active", "tiles", "rows", "row_weights", "x", "tile_bytes", "gathered",
    "distinct",
)  # fmt: skip
"""Operands of whoever sorts tokens by expert (kernels/sort.py), side by side. shared_gate: address of the first
token's logit, or 0; distinct: int64, experts that have tokens."""

TREE = (
    "nodes", "node_format", "node_stride", "node_bias", "node_out", "node_out_bias", "node_width", "node_activation",
    "depth", "trees", "columns", "column_stride", "column_groups", "path", "path_stride", "distinct_nodes",
)  # fmt: skip
"""Operands of a descent (spec.TreeSpec), side by side behind SORT. columns: float32 x; path: float32 logits of the
nodes that each token has met; distinct_nodes: int64, nodes that the step has read."""

LEAVES = (
    "leaves", "leaf_stride", "outward", "width", "gated", "activation", "inward_groups", "outward_groups", "bias",
    "bias_stride", "outward_bias", "outward_bias_stride", "leaf_weight", "scale", "mode", "out", "out_stride",
    "out_width", "scratch", "scratch_stride",
)  # fmt: skip
"""Operands of leaves, side by side. outward: where the matrix back begins in a leaf."""

OPERANDS: dict[str, tuple[str, ...]] = {
    # out[t] = embed[token[t]] · scale (+ positions[pos[t]])
    "embed": (
        "weights", "format", "row_blocks", "groups", "head_bytes", "block_bytes", "token", "pos", "positions",
        "scale", "out", "out_stride",
    ),
    # activation tiles of norm(x[rows[t]]) (out 0: not); rows 0: x[t]. tokens: the step field that counts them. exact:
    # float32 [T, 32 · groups] as well (0: not)
    "norm": (
        "x", "x_stride", "width", "weight", "bias", "eps", "norm", "rows", "tokens", "out", "groups", "out_kind",
        "exact",
    ),
    # out[t] = W · x[t] + bias, of float weights and plain float32 rows: the logits of a router
    "router": ("weights", "row_blocks", "groups", "x", "x_stride", "out", "out_stride", "bias"),
    # x[t] += scale · norm(y[t])
    "add_norm": ("y", "y_stride", "width", "weight", "bias", "eps", "norm", "x", "x_stride", "scale"),
    # `unit` row blocks of W · x, finished as the mode says; of several matrices, which have `chunks` chunks each, the
    # next lies at weights_step, its columns of x at x_step, and those of out at out_step (bytes, or groups of a tile)
    "matmul": (
        "weights", "row_blocks", "groups", "unit", "x", "tile_bytes", "tokens", "mode", "out", "out_stride", "bias",
        "scale", "softcap", "activation", "out_groups", "out_kind", "block_max", "scratch", "scratch_stride", "chunks",
        "weights_step", "x_step", "out_step",
    ),
    # experts of a tile of tokens and their weights; the last tile's chunk sorts the step's tokens by expert
    "route": (*ROUTER, *SORT, "scratch", "scratch_stride"),
    # the leaf that each tree chooses for a token; sorted in the same way
    "descend": (*SORT, *TREE, "leaf_weight"),
    # asks the system for the experts that were chosen
    "request": ("active", "bank", "stride", "bytes", "advise"),
    # slots for the experts that were chosen; those that come from the file are listed in `loads`
    "place": (
        "experts", "active", "weights", "first", "slot_of", "owner", "used", "rank", "uses", "slots", "pool",
        "slot_bytes", "offset", "stride", "bytes", "piece", "policy", "half_life", "clock", "loads", "counters",
    ),
    # one piece of an expert from the file into its slot
    "load": ("loads", "read", "file", "position"),
    # descent and leaves of a step's only token
    "tree": (*SORT, *TREE, *LEAVES),
    # the neurons on each token's path; a step's only token has them added up as well
    "neurons": (*SORT, *TREE, *LEAVES),
    # an active leaf's first neurons, for its tokens -> hidden [tile, token, hidden_stride]
    "inward": ("active", "tiles", "rows", "columns", "column_stride", "hidden", "hidden_stride", *LEAVES),
    # columns of what all active leaves give back, to their tokens
    "outward": ("unit", "tiles", "rows", "row_weights", "hidden", "hidden_stride", *LEAVES),
    # the activations of a routed tile's tokens, from where the norm left them
    "gather": ("x", "groups", "kind", "tiles", "rows", "gathered", "tile_bytes"),
    # like matmul, each expert with its own tokens; `weights` [E] are addresses, at `offset` from which its matrix lies
    "experts": (
        "weights", "offset", "row_blocks", "groups", "unit", "chunks", "active", "tiles", "rows", "row_weights", "x",
        "tile_bytes", "mode", "out", "out_stride", "bias", "bias_stride", "scale", "activation", "out_groups",
        "out_kind", "scratch", "scratch_stride",
    ),
    # q and k norm and rotation in place; keys and values into the cache
    "rope_store": (
        "qkv", "qkv_stride", "heads", "kv_heads", "k_dim", "v_dim", "rope", "rope_dim", "interleaved", "pos", "slot",
        "kv", "k_cache", "v_cache", "k_scale", "v_scale", "capacity", "q_norm", "k_norm", "norm_full", "eps",
        "clip",
    ),
    # latents and rotated keys into the cache; queries' rotated parts to where k_up puts the others, which become tiles
    "latent_store": (
        "q", "q_stride", "qkv", "qkv_stride", "kv_at", "heads", "nope", "rank", "rope", "rope_dim", "interleaved",
        "pos", "slot", "kv", "k_cache", "v_cache", "k_scale", "v_scale", "capacity", "norm", "eps", "out", "groups",
        "out_kind", "query", "query_stride", "scratch", "scratch_stride",
    ),
    "attention": (
        "qkv", "qkv_stride", "heads", "kv_heads", "k_dim", "v_dim", "k_cache", "v_cache", "k_scale", "v_scale",
        "capacity", "pos", "items", "window", "scale", "softcap", "partial", "part_table", "scratch", "scratch_stride",
    ),
    # x[t] = (B, C, x), `width` apart: B · x into the state [slot, taps, 32 · groups]; activation tiles of C · (what
    # `weight` [taps, 32 · groups] and bias make of the last ones). A chunk is `unit` groups of columns of all tokens
    "convolve": (
        "x", "x_stride", "width", "weight", "bias", "taps", "pos", "slot", "state", "out", "groups", "out_kind", "unit",
    ),
    # activation tiles of the merged, normalised partials
    "merge": (
        "partial", "part_table", "heads", "v_dim", "pos", "window", "sinks", "out", "groups", "out_kind", "scratch",
        "scratch_stride",
    ),
    # `rounds` times the sum of `bytes` bytes at buffer + chunk · stride
    "probe": ("buffer", "bytes", "stride", "rounds", "out"),
}  # fmt: skip

LOAD = ("address", "offset", "bytes")
LOAD_ADDRESS, LOAD_OFFSET, LOAD_BYTES = range(len(LOAD))
"""int64 rows: a piece of an expert to be read."""

POOL_COUNTERS = ("hits", "misses", "bytes_read")
HITS, MISSES, BYTES_READ = range(len(POOL_COUNTERS))
"""int64: experts that were there, experts that were not, bytes read for these."""

POLICIES = ("lru", "lfu", "lrfu")
LRU, LFU, LRFU = range(len(POLICIES))
"""Who leaves a pool: the one whose last use is oldest; with the fewest uses; with the least sum of uses, each halved
every `half_life` steps (Lee et al., LRFU, IEEE Transactions on Computers 50, 2001)."""

NOT_A_NUMBER, NOT_READ, PROBLEMS = 1, 2, 4
"""A router's logits were not finite; an expert could not be read from the file."""

STORE, ADD, HEAD, PLAIN, GATED = range(5)
"""matmul modes: out = y · scale; out += y · scale; out = cap(y · scale) and block maxima;
activation tiles of act(y), or of act(gate) · up."""

RMS, LAYER, NONE = range(3)
"""norm kinds."""

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai")
SILU, GELU, GELU_TANH, RELU, RELU2, SWIGLU_OAI = range(len(ACTIVATIONS))
NO_ACTIVATION = len(ACTIVATIONS)

SCORES = ("softmax", "sigmoid", "logits", "sparsemixer")
SOFTMAX, SIGMOID, LOGITS, SPARSEMIXER = range(len(SCORES))
"""How a router scores experts (spec.RouterSpec)."""

ACTIVE_EXPERT = ("expert", "first_tile", "stop_tile")
EXPERT, FIRST_TILE, STOP_TILE = range(len(ACTIVE_EXPERT))
"""int64 rows: an expert that has tokens in this step, and its tiles."""

EXPERT_TILE = ("expert", "tokens", "x")
TILE_EXPERT, TILE_TOKENS, TILE_X = range(len(EXPERT_TILE))
"""int64 rows: an expert, at most TILE tokens of it (rows[TILE · tile + i] says which, row_weights weighs them), and
the address of their activations."""

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
