"""What kernels read: the operands of each op, the small tables that ops share, and the numbers that stand for choices.

Shared with the plan builder; no numba here. An op is a row of ROW int64. The first three are the plan's own: the
kernel's address, the field of the step header that counts its work, and how many chunks there are for each unit
counted. The operands follow. Strides and offsets are in bytes.

T tokens, D width, H query heads, K kv heads, E experts, A active ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from lapinfer.kernels.declare import Record, address, f32, i64, rows
from lapinfer.options import POLICIES, KVName
from lapinfer.spec import Activation, Score

FLOAT, INT, UINT8 = np.float32, np.int64, np.uint8
BF16 = np.uint16
"""The bits of a bfloat16."""


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
KERNEL, COUNT, TIMES, FIRST = range(4)

# ---- layouts ----

TILE = 8
"""Tokens whose activations lie together, at neighbouring addresses."""

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

ROW_GROUP_BYTES = tuple(size // TILE for size in TILE_GROUP_BYTES)
"""Bytes of one token's group of activations on their own: the same layout, with one token for TILE."""

KV_KINDS = get_args(KVName)
KV_F32, KV_F16, KV_Q8 = range(3)
"""The cache of one layer. Keys [slot, head, capacity / KEY_LANES, k_dim, KEY_LANES]: neighbouring keys share vectors.
Values [slot, head, capacity, v_lanes], v_dim rounded up to 16. q8: int8, and a bfloat16 scale for every KV_GROUP
numbers of a key or value, [slot, head, groups, capacity]."""

KV_GROUP = 32
"""Numbers of a head that share a scale of a q8 cache; the last group of a head may have fewer."""

KEY_LANES = 32
"""Keys that are multiplied together: two vectors, which keep both multipliers of a core busy, as one stream."""

KEY_BLOCK = 128
"""Keys whose scores are combined before they are merged into the softmax; splits of attention lie between blocks."""

PARTIAL_EXTRA = 16
"""float32 after each partial attention row [v_dim]: its running maximum, its sum, and padding."""

NO_WINDOW = 1 << 40

STATE_COLUMNS = 32
"""Columns of a recurrence's state that lie together, row by row."""

# ---- numbers that stand for choices ----

POOL_COUNTERS = ("hits", "misses", "bytes_read")
HITS, MISSES, BYTES_READ = range(len(POOL_COUNTERS))
"""int64: experts that were there, experts that were not, bytes read for these."""

LRU, LFU, LRFU = range(len(POLICIES))
"""Who leaves a pool: the one whose last use is oldest; with the fewest uses; with the least sum of uses, each halved
every `half_life` steps (Lee et al., LRFU, IEEE Transactions on Computers 50, 2001)."""

NOT_A_NUMBER, NOT_READ, KEYS, VALUES, PROBLEMS = 1, 2, 3, 4, 8
"""A router's logits were not finite; an expert could not be read from the file; a token's keys or values do not fit
their cache."""

PROBLEM_BITS = 31
LOST = 1 << 31
"""From bit 31 on, a problem with keys or values has the largest magnitude, as float32 bits; with LOST added where it
leaves nothing of its neighbours."""

STORE, ADD, HEAD, PLAIN, GATED, EACH = range(6)
"""matmul modes: out = y · scale; out += y · scale; out = cap(y · scale) and block maxima;
activation tiles of act(y), or of act(gate) · up; a row of y for each expert and token, unweighted."""

BEST_MARGINS = (6.0, 9.0)
"""Deviations by which a coarse logit may be wrong; the second where errors came near the first. Of normal errors one in
10^9 is beyond 6; those of real heads have heavier tails."""

BEST_NEAR = 0.9
"""Share of a margin that no error may reach, of those that are seen."""

BEST_ROUNDS = 3
"""How often row blocks are listed, before the whole head is read: the best coarse ones, what may reach these, what may
by a wider margin."""

RMS, LAYER, NONE = range(3)
"""norm kinds."""

ACTIVATIONS = get_args(Activation)
SILU, GELU, GELU_TANH, RELU, RELU2, SWIGLU_OAI, XIELU = range(len(ACTIVATIONS))
NO_ACTIVATION = len(ACTIVATIONS)

SCORES = get_args(Score)
SOFTMAX, SIGMOID, LOGITS, SPARSEMIXER = range(len(SCORES))
"""How a router scores experts (spec.RouterSpec)."""

# ---- the step header ----

STEP = Record(
    "step",
    "What ops count their work by. The last ones are written by whoever chooses experts, for ops of the same layer.",
    one=i64("1"),
    tokens=i64("T"),
    tiles=i64("tiles of TILE tokens"),
    want=i64("tokens whose logits are wanted"),
    want_tiles=i64("tiles of these"),
    whole_head=i64("1 if all logits of these are wanted, else 0"),
    coarse_head=i64("1 if only the best of them are wanted, else 0"),
    best=i64("how many of the best, then"),
    best_blocks=i64("row blocks of the head that are to be multiplied for them"),
    items=i64("rows of the table of attention's items"),
    lone=i64("1 if there is one token, else 0"),
    crowd=i64("1 if there are several, else 0"),
    crowd_tiles=i64("their tiles, or 0 for a lone one"),
    experts=i64("active experts, shared ones included"),
    expert_tiles=i64("tiles of their tokens"),
    gathered_tiles=i64("those whose activations are gathered"),
    loads=i64("pieces of experts to be read from the file"),
    problem=i64("PROBLEMS · layer (of those with routers: its place among these) + what went wrong there, or 0"),
    sent=i64("rows of activations that are sent to nodes with experts"),
)
(
    ONE, TOKENS, TILES, WANT, WANT_TILES, WHOLE_HEAD, COARSE_HEAD, BEST, BEST_BLOCKS, ITEMS, LONE, CROWD, CROWD_TILES,
    EXPERTS, EXPERT_TILES, GATHERED_TILES, LOADS, PROBLEM, SENT,
) = range(len(STEP))  # fmt: skip

# ---- tables, int64 [rows, fields] ----

ACTIVE_EXPERT = Record(
    "active_expert",
    "An expert that has tokens in this step.",
    expert=i64("its number"),
    first_tile=i64("its first row of EXPERT_TILE"),
    stop_tile=i64("the row after its last one"),
)

EXPERT_TILE = Record(
    "expert_tile",
    "At most TILE tokens of an expert: rows[TILE · tile + i] says which, row_weights weighs them.",
    expert=i64("its number"),
    tokens=i64("how many there are"),
    x=address("their activations"),
)

PARCEL = Record(
    "parcel",
    "What a node with experts gets of a step, and what it answers.",
    first_row=i64("the first of its tokens, in the table of those that are sent"),
    stop_row=i64("the row after its last one"),
    first_pair=i64("its first row of PAIR"),
    stop_pair=i64("the row after its last one"),
    answers=address("of its pairs: float32 rows"),
)

PAIR = Record(
    "pair",
    "A token of an expert, in the order of the experts, and then of the tokens.",
    expert=i64("its number"),
    row=i64("the token's, among those that the node gets"),
)

ITEM = Record(
    "item",
    "A piece of attention: at most TILE tokens of one slot, in order, against some blocks of keys.",
    first_token=i64("the first of the tokens"),
    tokens=i64("how many there are"),
    slot=i64("their slot"),
    first_block=i64("first block of keys"),
    last_block=i64("last block of keys"),
    split=i64("1: every block is a partial of its own, PART.first + block; 0: all are folded into one, PART.first"),
)

PART = Record(
    "part",
    "A token's partials, of float32 [index, head, v_lanes + PARTIAL_EXTRA].",
    first=i64("index of the first, or only one"),
    split=i64("1 if there is one for each block of keys"),
)

LOAD = Record(
    "load",
    "A piece of an expert to be read from the file.",
    address=address("where it goes"),
    offset=i64("where it begins in the file"),
    bytes=i64("its size"),
)

BEST_STATE = Record(
    "best_state",
    "Where the search for the best logits is.",
    first=i64("the first of the listed row blocks that are multiplied now"),
    listed=i64("how many are listed"),
    round=i64("lists so far, after the first"),
    level=i64("which of BEST_MARGINS is used; their number where none was enough"),
    rest=i64("row blocks that were read after all, with the whole head"),
    not_finite=i64("1 if a coarse logit was not"),
    masked=i64("1 if only some rows may be among the best, else 0"),
)

# ---- groups of operands that several ops have ----

BEST_ROWS = Record(
    "best_of_head",
    "Row blocks of the head that may hold the best logits (kernels/best.py).",
    blocks=i64("row blocks of the head"),
    coarse=address("[T, 16 · blocks]: logits of the coarse copy", FLOAT),
    coarse_stride=i64("from one token's to the next one's"),
    coarse_max=address("[T, blocks]: the largest of each block", FLOAT),
    allowed=address("[T, blocks]: bit i is 1 if row i of the block may be among the best; read if masked", INT),
    norms=address("[16 · blocks]: of the rows' residuals", FLOAT),
    block_norms=address("[blocks]: the largest of each block", FLOAT),
    exact=address("[T, ≥ D]: what the head multiplies", FLOAT),
    exact_stride=i64("from one token's to the next one's"),
    deviation=f32("of a logit, for ‖x‖ = ‖r‖ = 1"),
    deviations=address("[T]: the same, for ‖r‖ = 1; written", FLOAT),
    mark=address("[blocks]: 1 if listed", INT),
    list=address("[blocks]: those that are", INT),
    worst=address("[blocks]: of each listed one, the largest error in deviations", FLOAT),
    counts=address("[BEST_ROUNDS]: row blocks of each round", INT),
    most_blocks=i64("of more than these, the whole head is cheaper"),
    state=rows(BEST_STATE, "one row"),
    finished=address("[1]: chunks that are done, 0 before and after an op", INT),
    logits=address("[T, 16 · blocks], −∞ where not computed", FLOAT),
    logits_stride=i64("from one token's to the next one's"),
    block_max=address("[T, blocks]: the largest of each block", FLOAT),
)

ROUTER = Record(
    "router_choice",
    "A choice of experts by their logits (spec.RouterSpec).",
    logits=address("[T, E]", FLOAT),
    logits_stride=i64("from one token's to the next one's"),
    experts=i64("E"),
    top_k=i64("A"),
    score=i64("one of SCORES"),
    normalise=i64("1 if the weights are divided by their sum"),
    eps=f32("what is added to this sum"),
    least_sum=f32("what they are divided by at least"),
    scale=f32("what the weights are multiplied with"),
    selection_bias=address("[E], added for the choice alone", FLOAT),
    groups=i64("groups of experts"),
    top_groups=i64("how many of them may be chosen from"),
    group_best=i64("how many of a group's experts make its score: 1 or 2"),
    jitter=f32("sparsemixer's tolerance"),
)

SORT = Record(
    "sort",
    "A step's tokens sorted by expert (kernels/sort.py).",
    routed=i64("routed experts"),
    choices=i64("experts that a token gets"),
    shared=i64("shared experts: their numbers follow those of the routed ones"),
    shared_weight=f32("their weight, where no gate says it"),
    shared_gate=address("the first token's logit for it"),
    gate_stride=i64("from one token's to the next one's"),
    chosen=address("[T, ≥ choices], in order of rank", INT),
    chosen_stride=i64("numbers from one token's choices to the next one's; of `weight` too"),
    weight=address("of the chosen ones", FLOAT),
    position=i64("the layer's place among the routed ones"),
    finished=address("[1]: tiles of tokens that are done, 0 before and after a step", INT),
    counts=address("[routed], zeros before and after", INT),
    active=rows(ACTIVE_EXPERT, "the experts that have tokens, in their order"),
    tiles=rows(EXPERT_TILE, "their tiles"),
    rows=address("[tiles · TILE]: tokens", INT),
    row_weights=address("[tiles · TILE]: weights", FLOAT),
    x=address("activation tiles of all tokens, as the norm has left them"),
    tile_bytes=i64("of one of them"),
    gathered=address("activation tiles of routed experts"),
    distinct=address("[1]: experts that have tokens", INT),
)

TREE = Record(
    "tree_nodes",
    "A descent (spec.TreeSpec).",
    nodes=address("[trees · nodes · node_width] rows, packed row by row"),
    node_format=i64("id of their format"),
    node_stride=i64("from one row to the next"),
    node_bias=address("of each row", FLOAT),
    node_out=address("[trees · nodes, node_width]: weights of a node's neurons", FLOAT),
    node_out_bias=address("of each node of several neurons", FLOAT),
    node_width=i64("neurons of a node"),
    node_activation=i64("theirs, one of ACTIVATIONS"),
    depth=i64("decisions on the way to a leaf"),
    trees=i64("how many there are"),
    columns=address("[T, D]: what is decided by", FLOAT),
    column_stride=i64("from one token's to the next one's"),
    column_groups=i64("groups of 32 columns"),
    path=address("[T, trees · depth]: logits of the nodes that a token has met", FLOAT),
    path_stride=i64("from one token's to the next one's"),
    distinct_nodes=address("[1]: nodes that the step has read", INT),
)

LEAVES = Record(
    "narrow_leaves",
    "Leaves that are kept neuron by neuron.",
    leaves=address("[E, bytes]"),
    leaf_stride=i64("from one leaf to the next"),
    outward=i64("where the matrix back begins in a leaf"),
    width=i64("neurons of a leaf"),
    gated=i64("1 if each has a gate, whose rows come first"),
    activation=i64("one of ACTIVATIONS"),
    inward_groups=i64("groups of 32 columns that come in"),
    outward_groups=i64("groups of 32 columns that go out"),
    bias=address("[E, rows] of the first neurons", FLOAT),
    bias_stride=i64("from one leaf's to the next one's"),
    outward_bias=address("[E, columns out]", FLOAT),
    outward_bias_stride=i64("from one leaf's to the next one's"),
    leaf_weight=f32("what routed leaves are multiplied with"),
    scale=f32("what all are multiplied with"),
    mode=i64("STORE or ADD"),
    out=address("[T, ≥ out_width]", FLOAT),
    out_stride=i64("from one token's to the next one's"),
    out_width=i64("columns that are written"),
    scratch=address("[threads, floats]", FLOAT),
    scratch_stride=i64("from one thread's to the next one's"),
)

RECURRENCE = Record(
    "recurrence_of_heads",
    "A token's row of a recurrence: (q, k, v, z, a, b) at first; then α, and β or Δ, in place of a and b.",
    x=address("[T, ≥ C + I + 2H]", FLOAT),
    x_stride=i64("from one token's to the next one's"),
    heads=i64("H"),
    key_heads=i64("K: those that heads share keys and queries of"),
    k_dim=i64("of a key"),
    scalars_at=i64("where a begins in a row"),
    delta=i64("1 for the delta rule, 0 for state spaces"),
)

# ---- the ops ----

OPS = (
    Record(
        "embed",
        "out[t] = embed[token[t]] · scale (+ positions[pos[t]])",
        weights=address("the packed table", UINT8),
        row_blocks=i64("of the table"),
        groups=i64("of 32 columns"),
        token=address("[T]", INT),
        pos=address("[T]", INT),
        positions=address("[positions, 32 · groups], learned", FLOAT),
        scale=f32("of the table's rows"),
        out=address("[T, ≥ D]", FLOAT),
        out_stride=i64("from one token's to the next one's"),
    ),
    Record(
        "norm",
        "Activation tiles of norm(x[rows[t]])",
        x=address("[T, ≥ width]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        width=i64("columns that are normed"),
        weight=address("[32 · groups]", FLOAT),
        bias=address("[32 · groups]", FLOAT),
        eps=f32("added to the variance"),
        norm=i64("RMS, LAYER or NONE"),
        rows=address("which rows of x (0: t)", INT),
        tokens=i64("the field of the step header that counts them"),
        out=address("tiles (0: none)"),
        groups=i64("of 32 columns"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        exact=address("[T, 32 · groups], as float32 too", FLOAT),
    ),
    Record(
        "router",
        "out[t] = W · x[t] + bias, of float weights: the logits of a router",
        weights=address("packed", UINT8),
        row_blocks=i64("of W"),
        groups=i64("of 32 columns"),
        x=address("[T, 32 · groups]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        out=address("[T, 16 · row_blocks]", FLOAT),
        out_stride=i64("from one token's to the next one's"),
        bias=address("[16 · row_blocks]", FLOAT),
    ),
    Record(
        "add_norm",
        "x[t] += scale · norm(y[t])",
        y=address("[T, ≥ width]", FLOAT),
        y_stride=i64("from one token's to the next one's"),
        width=i64("columns"),
        weight=address("[width]", FLOAT),
        bias=address("[width]", FLOAT),
        eps=f32("added to the variance"),
        norm=i64("RMS, LAYER or NONE"),
        x=address("[T, ≥ width]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        scale=f32("of the norm"),
    ),
    Record(
        "matmul",
        "`unit` row blocks of W · x, finished as the mode says; or of each of several matrices of one shape",
        weights=address("packed", UINT8),
        row_blocks=i64("of one matrix"),
        groups=i64("of 32 columns"),
        unit=i64("row blocks of a chunk"),
        x=address("activation tiles"),
        tile_bytes=i64("from one tile to the next"),
        tokens=i64("the field of the step header that counts them"),
        mode=i64("STORE, ADD, HEAD, PLAIN or GATED"),
        out=address("[T, ≥ rows] float32, or activation tiles"),
        out_stride=i64("from one token's to the next one's"),
        bias=address("[rows]", FLOAT),
        scale=f32("what the product is multiplied with"),
        softcap=f32("of logits (0: none)"),
        activation=i64("one of ACTIVATIONS"),
        curve=address("[4]: of XIELU, (α above 0, α below, β, ε)", FLOAT),
        out_groups=i64("groups of 32 columns of a row of activations"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        block_max=address("[T, row_blocks]: the largest logit of each", FLOAT),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
        chunks=i64("of one matrix"),
        weights_step=i64("from one matrix to the next"),
        x_step=i64("from the columns of x for one matrix to those for the next"),
        out_step=i64("the same of out: bytes, or groups of a tile"),
    ),
    Record(
        "shortlist",
        "No logits yet; the row blocks of the head that have the best coarse ones",
        best=BEST_ROWS,
        unit=i64("row blocks of a chunk"),
        chunks=i64("how many there are"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "best_rows",
        "Logits of the listed row blocks of the head",
        best=BEST_ROWS,
        weights=address("packed", UINT8),
        groups=i64("of 32 columns"),
        x=address("activation tiles"),
        tile_bytes=i64("from one tile to the next"),
        bias=address("[rows]", FLOAT),
        scale=f32("what the product is multiplied with"),
        softcap=f32("of logits (0: none)"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "route",
        "Experts of a tile of tokens, and their weights; the last tile's chunk sorts the step's tokens by expert",
        choice=ROUTER,
        sort=SORT,
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "descend",
        "The leaf that each tree chooses for a token; sorted in the same way",
        sort=SORT,
        tree=TREE,
        leaf_weight=f32("of a routed leaf"),
    ),
    Record(
        "request",
        "Asks the system for the experts that were chosen",
        active=rows(ACTIVE_EXPERT, "of this step"),
        bank=address("the mapped bank"),
        stride=i64("from one expert to the next"),
        bytes=i64("of an expert"),
        advise=address("the C function madvise"),
    ),
    Record(
        "place",
        "Slots for the experts that were chosen; those that come from the file are listed in `loads`",
        experts=i64("routed experts"),
        active=rows(ACTIVE_EXPERT, "of this step"),
        weights=address("[E]: where each expert lies, written", INT),
        first=i64("number of this layer's first expert among those of all layers"),
        slot_of=address("[experts of all layers], −1: none", INT),
        owner=address("[slots]: experts, −1: none", INT),
        used=address("[slots]: when", INT),
        rank=address("[experts of all layers]: the lowest leaves first", np.float64),
        uses=address("[experts of all layers]", INT),
        slots=address("[1]: how many may be used", INT),
        pool=address("[slots, slot_bytes]", UINT8),
        slot_bytes=i64("of a slot"),
        offset=i64("where the bank begins in the file"),
        stride=i64("from one expert to the next in the file"),
        bytes=i64("of an expert"),
        piece=i64("bytes that are read at once"),
        policy=i64("one of POLICIES"),
        half_life=f32("steps of a layer after which a use counts half"),
        clock=address("[1]: layers that have run", INT),
        loads=rows(LOAD, "pieces to be read"),
        counters=address("[POOL_COUNTERS]", INT),
    ),
    Record(
        "load",
        "One piece of an expert from the file into its slot",
        loads=rows(LOAD, "pieces to be read"),
        read=address("the C function pread"),
        file=i64("its descriptor"),
        position=i64("the layer's place among the routed ones"),
    ),
    Record("tree", "Descent and leaves of a step's only token", sort=SORT, tree=TREE, leaves=LEAVES),
    Record(
        "neurons",
        "The neurons on each token's path; a step's only token has them added up as well",
        sort=SORT,
        tree=TREE,
        leaves=LEAVES,
    ),
    Record(
        "inward",
        "An active leaf's first neurons, for its tokens",
        active=rows(ACTIVE_EXPERT, "of this step"),
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        columns=address("[T, 32 · inward_groups]", FLOAT),
        column_stride=i64("from one token's to the next one's"),
        hidden=address("[tiles · TILE, hidden_stride], written", FLOAT),
        hidden_stride=i64("from one token's to the next one's"),
        leaves=LEAVES,
    ),
    Record(
        "outward",
        "Columns of what all active leaves give back, to their tokens",
        unit=i64("groups of columns of a chunk"),
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        row_weights=address("[tiles · TILE]", FLOAT),
        hidden=address("[tiles · TILE, hidden_stride]", FLOAT),
        hidden_stride=i64("from one token's to the next one's"),
        leaves=LEAVES,
    ),
    Record(
        "gather",
        "The activations of a routed tile's tokens, from where the norm left them",
        x=address("activation tiles of all tokens"),
        groups=i64("of 32 columns"),
        kind=i64("one of ACTIVATION_KINDS"),
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        gathered=address("activation tiles, written"),
        tile_bytes=i64("of a tile"),
    ),
    Record(
        "experts",
        "Like matmul, each expert with its own tokens",
        weights=address("[E]: where each expert lies", INT),
        offset=i64("where the matrix begins in it"),
        row_blocks=i64("of the matrix"),
        groups=i64("of 32 columns"),
        unit=i64("row blocks of a chunk"),
        chunks=i64("of one expert"),
        active=rows(ACTIVE_EXPERT, "of this step"),
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        row_weights=address("[tiles · TILE]", FLOAT),
        x=address("activation tiles, where the table of tiles does not say"),
        tile_bytes=i64("of one of these"),
        mode=i64("STORE, ADD, PLAIN, GATED or EACH"),
        out=address("[T, ≥ rows] float32 (EACH: [pairs, ≥ rows]), or activation tiles"),
        out_stride=i64("from one token's to the next one's"),
        bias=address("[E, rows]", FLOAT),
        bias_stride=i64("from one expert's to the next one's"),
        scale=f32("what the weights of tokens are multiplied with"),
        activation=i64("one of ACTIVATIONS"),
        out_groups=i64("groups of 32 columns of a row of activations"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "parcels",
        "Which tokens each node with experts gets, each once, and for which of its experts",
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        node_of=address("[E]: where each expert is", INT),
        nodes=i64("how many there are"),
        place=address("[T]: for the tokens of one node", INT),
        parcels=rows(PARCEL, "of each node, written"),
        sent=address("[nodes · T]: tokens, by node, written", INT),
        pairs=rows(PAIR, "by node, written"),
        tile_pair=address("[tiles]: the first pair of each, written", INT),
    ),
    Record(
        "wrap",
        "The activations of a token that is sent, from where the norm left them",
        sent=address("tokens", INT),
        x=address("activation tiles of all tokens"),
        groups=i64("of 32 columns"),
        kind=i64("one of ACTIVATION_KINDS"),
        tile_bytes=i64("of a tile"),
        out=address("rows of activations, written", UINT8),
        row_bytes=i64("of a row"),
    ),
    Record(
        "unwrap",
        "The activations of a tile's tokens, from rows that were sent",
        x=address("[1]: where the rows are", INT),
        row_bytes=i64("of a row"),
        groups=i64("of 32 columns"),
        kind=i64("one of ACTIVATION_KINDS"),
        tiles=rows(EXPERT_TILE, "of this step"),
        sources=address("[tiles · TILE]: rows", INT),
        gathered=address("activation tiles, written"),
        tile_bytes=i64("of a tile"),
    ),
    Record(
        "answers",
        "What experts on other nodes gave for their tokens, weighed and added up in their order",
        tiles=rows(EXPERT_TILE, "of this step"),
        rows=address("[tiles · TILE]: tokens", INT),
        row_weights=address("[tiles · TILE]", FLOAT),
        node_of=address("[E]: where each expert is", INT),
        parcels=rows(PARCEL, "of each node"),
        tile_pair=address("[tiles]: the first pair of each", INT),
        stride=i64("from one pair's answer to the next one's"),
        row_blocks=i64("of an answer"),
        unit=i64("row blocks of a chunk"),
        mode=i64("STORE or ADD"),
        out=address("[T, ≥ rows]", FLOAT),
        out_stride=i64("from one token's to the next one's"),
        scale=f32("what the weights of tokens are multiplied with"),
    ),
    Record(
        "rope_store",
        "q and k norm and rotation in place; keys and values into the cache",
        qkv=address("[T, (H + K) · k_dim + K · v_dim]", FLOAT),
        qkv_stride=i64("from one token's to the next one's"),
        heads=i64("H"),
        kv_heads=i64("K"),
        k_dim=i64("of a query and a key"),
        v_dim=i64("of a value"),
        rope=address("[positions, rope_dim]: cosines, then sines", FLOAT),
        rope_dim=i64("numbers of a head that are rotated"),
        interleaved=i64("1 if neighbours are a pair"),
        pos=address("[T]", INT),
        slot=address("[T]", INT),
        of_layer=i64("number of the layer"),
        kv=i64("one of KV_KINDS"),
        k_cache=address("keys"),
        v_cache=address("values"),
        k_scale=address("of q8 keys", BF16),
        v_scale=address("of q8 values", BF16),
        capacity=i64("positions of a slot's ring"),
        q_norm=address("[k_dim], or of all heads", FLOAT),
        k_norm=address("[k_dim], or of all heads", FLOAT),
        q_norm_bias=address("the same, added", FLOAT),
        k_norm_bias=address("the same, added", FLOAT),
        norm=i64("RMS or LAYER"),
        norm_full=i64("1 if all heads are normed as one"),
        norm_each=i64("1 if each head has weights of its own"),
        norm_after=i64("1 if norms follow the rotation"),
        eps=f32("of these norms"),
        growth=address("[positions]: what queries are multiplied with", FLOAT),
        clip=f32("bound of queries, keys and values (0: none)"),
    ),
    Record(
        "latent_store",
        "Latents and rotated keys into the cache; queries' rotated parts to where k_up puts the others, now tiles",
        q=address("[T, H · (nope + rope_dim)]", FLOAT),
        q_stride=i64("from one token's to the next one's"),
        qkv=address("[T, …]: the latents and keys", FLOAT),
        qkv_stride=i64("from one token's to the next one's"),
        kv_at=i64("where they begin in it"),
        heads=i64("H"),
        nope=i64("numbers of a query that are not rotated"),
        rank=i64("of a latent"),
        rope=address("[positions, rope_dim]: cosines, then sines", FLOAT),
        rope_dim=i64("numbers that are rotated"),
        interleaved=i64("1 if neighbours are a pair"),
        pos=address("[T]", INT),
        slot=address("[T]", INT),
        of_layer=i64("number of the layer"),
        kv=i64("one of KV_KINDS"),
        k_cache=address("keys: latents and rotated numbers"),
        v_cache=address("values: latents"),
        k_scale=address("of q8 keys", BF16),
        v_scale=address("of q8 values", BF16),
        capacity=i64("positions of a slot's ring"),
        norm=address("[rank]", FLOAT),
        eps=f32("of this norm"),
        out=address("activation tiles of what is not rotated"),
        groups=i64("of 32 columns of a head"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        query=address("[T, H · (rank + rope_dim)]: the rotated parts are written", FLOAT),
        query_stride=i64("from one token's to the next one's"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "attention",
        "Queries against cached keys, and the values that they weigh: partials",
        qkv=address("[T, …]: queries come first", FLOAT),
        qkv_stride=i64("from one token's to the next one's"),
        heads=i64("H"),
        kv_heads=i64("K"),
        k_dim=i64("of a query and a key"),
        v_dim=i64("of a value"),
        k_cache=address("keys"),
        v_cache=address("values"),
        k_scale=address("of q8 keys", BF16),
        v_scale=address("of q8 values", BF16),
        capacity=i64("positions of a slot's ring"),
        pos=address("[T]", INT),
        items=rows(ITEM, "of this step"),
        window=i64("keys that a query sees (NO_WINDOW: all)"),
        scale=f32("of the scores"),
        softcap=f32("of the scores (0: none)"),
        partial=address("[partials, H, v_lanes + PARTIAL_EXTRA]", FLOAT),
        part_table=rows(PART, "of each token"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "convolve",
        "x[t] = (B, C, x), `width` apart: B · x into the state; activation tiles of C · what the taps make of the last",
        x=address("[T, ≥ 3 · width]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        width=i64("D"),
        weight=address("[taps, 32 · groups]", FLOAT),
        bias=address("[32 · groups]", FLOAT),
        taps=i64("positions that are looked back at, the own one included"),
        pos=address("[T]", INT),
        slot=address("[T]", INT),
        state=address("[slots, taps, 32 · groups]", FLOAT),
        out=address("activation tiles"),
        groups=i64("of 32 columns"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        unit=i64("groups of columns of a chunk"),
    ),
    Record(
        "convolve_silu",
        "x[t], `width` columns: into the state; then silu of what the taps make of the last ones, in place",
        x=address("[T, ≥ width]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        width=i64("columns"),
        weight=address("[taps, 32 · groups]", FLOAT),
        bias=address("[32 · groups]", FLOAT),
        taps=i64("positions that are looked back at, the own one included"),
        pos=address("[T]", INT),
        slot=address("[T]", INT),
        state=address("[slots, taps, 32 · groups]", FLOAT),
        groups=i64("of 32 columns"),
        unit=i64("groups of columns of a chunk"),
    ),
    Record(
        "rates",
        "A recurrence's rates of keeping and of writing, in place of what they are made from; lengths of q and k are 1",
        recurrence=RECURRENCE,
        decay=address("[H]: exp(A)", FLOAT),
        step=address("[H]: dt", FLOAT),
        least=f32("of Δ"),
        most=f32("of Δ"),
    ),
    Record(
        "recur",
        "The states of a head; y in place of v",
        recurrence=RECURRENCE,
        v_dim=i64("of a value"),
        blocks=i64("of STATE_COLUMNS columns of a value"),
        skip=address("[H]: D, what is added of v (0: none)", FLOAT),
        pos=address("[T]", INT),
        slot=address("[T]", INT),
        states=address("[slots, STATES, H, blocks, k_dim, STATE_COLUMNS]: that of position p is at p % STATES", FLOAT),
    ),
    Record(
        "gated_norm",
        "Activation tiles of norm(y) · silu(z), or of norm(y · silu(z))",
        x=address("[T, …]", FLOAT),
        x_stride=i64("from one token's to the next one's"),
        y_at=i64("where y begins in it; overwritten"),
        z_at=i64("where z begins in it"),
        width=i64("columns of y, and of z"),
        gate_first=i64("1 if the norm is of the product"),
        norm_width=i64("columns that are normed together (0: none are)"),
        weight=address("[32 · groups]", FLOAT),
        eps=f32("added to the variance"),
        out=address("activation tiles"),
        groups=i64("of 32 columns"),
        out_kind=i64("one of ACTIVATION_KINDS"),
    ),
    Record(
        "merge",
        "Activation tiles of the merged, normalised partials",
        partial=address("[partials, H, v_lanes + PARTIAL_EXTRA]", FLOAT),
        part_table=rows(PART, "of each token"),
        heads=i64("H"),
        v_dim=i64("of a value"),
        pos=address("[T]", INT),
        window=i64("keys that a query sees (NO_WINDOW: all)"),
        sinks=address("[H]: scores of keys without a value", FLOAT),
        gate=address("the first token's gate, float32 [H · v_dim]: σ of it multiplies what comes out (0: none)"),
        gate_stride=i64("from one token's to the next one's"),
        out=address("activation tiles"),
        groups=i64("of 32 columns"),
        out_kind=i64("one of ACTIVATION_KINDS"),
        scratch=address("[threads, floats]", FLOAT),
        scratch_stride=i64("from one thread's to the next one's"),
    ),
    Record(
        "probe",
        "`rounds` times the sum of `bytes` bytes at buffer + chunk · stride",
        buffer=address("[bytes]", FLOAT),
        bytes=i64("of a chunk, a multiple of 256"),
        stride=i64("from one chunk to the next"),
        rounds=i64("how often"),
        out=address("[chunks, 16]: the sum in the first", FLOAT),
    ),
)

OPERANDS: dict[str, Record] = {record.name: record for record in OPS}
"""The operands of each kind of op (KernelId.kind)."""
