"""Experts on other nodes: what each node gets of a step, a node's tiles of it, and the sum of what nodes answer.

A token's activations go to a node once, whatever number of its experts they are for. Answers are the outputs of each
expert for each of its tokens, not yet weighed, so that a token's sum has the order of the experts, whoever has them.
"""

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.experts import add_weighted, clear
from lapinfer.kernels.operands import STORE, TILE
from lapinfer.kernels.simd import load_i64, store_i64
from lapinfer.kernels.sort import copy_token


@jit
def tokens_of_node(o, step, node, sent, pair):
    """List the tokens and pairs of a node, from these places in the tables on; returns the places behind them."""
    tiles, pairs, place = o.tiles, o.pairs, o.place
    first = sent
    for t in range(step.tokens):
        store_i64(place + 8 * t, -1)
    for tile in range(step.expert_tiles):
        expert = tiles[tile].expert
        if load_i64(o.node_of + 8 * expert) == node:
            store_i64(o.tile_pair + 8 * tile, pair)
            for i in range(tiles[tile].tokens):
                token = load_i64(o.rows + 8 * (TILE * tile + i))
                if load_i64(place + 8 * token) < 0:
                    store_i64(place + 8 * token, sent - first)
                    store_i64(o.sent + 8 * sent, token)
                    sent += 1
                pairs[pair].expert = expert
                pairs[pair].row = load_i64(place + 8 * token)
                pair += 1
    return sent, pair


@kernel
def parcels(o, step, chunk, thread):
    """List what each node gets: tokens, and which of them each of its experts is for."""
    sent, pair, table = 0, 0, o.parcels
    for node in range(o.nodes):
        entry = table[node]
        entry.first_row, entry.first_pair = sent, pair
        sent, pair = tokens_of_node(o, step, node, sent, pair)
        entry.stop_row, entry.stop_pair = sent, pair
    step.sent = sent


@kernel
def wrap(o, step, row, thread):
    """The activations of one token that is sent, on their own."""
    token = load_i64(o.sent + 8 * row)
    x = o.x + token // TILE * o.tile_bytes
    copy_token(o.kind, o.groups, x, TILE, token % TILE, o.out + row * o.row_bytes, 1, 0)


@kernel
def unwrap(o, step, tile, thread):
    """The activations of a tile's tokens, side by side, from the rows that have come."""
    x, out = load_i64(o.x), o.gathered + tile * o.tile_bytes
    for i in range(o.tiles[tile].tokens):
        row = load_i64(o.sources + 8 * (TILE * tile + i))
        copy_token(o.kind, o.groups, x + row * o.row_bytes, 1, 0, out, TILE, i)


@kernel
def answers(o, step, chunk, thread):
    """Row blocks of what experts gave for their tokens, weighed and added up in the order of the experts."""
    unit, stride, table = o.unit, o.stride, o.parcels
    first = chunk * unit
    blocks = min(unit, o.row_blocks - first)
    if o.mode == STORE:
        clear(o, step, first, blocks)
    for tile in range(step.expert_tiles):
        entry = o.tiles[tile]
        parcel = table[load_i64(o.node_of + 8 * entry.expert)]
        row = load_i64(o.tile_pair + 8 * tile) - parcel.first_pair
        add_weighted(o, tile, parcel.answers + row * stride + 64 * first, stride, first, blocks, entry.tokens)
