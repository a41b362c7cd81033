"""Experts of a model that is larger than memory: a pool of slots and reads from the file, or requests to the system.

One chunk decides which expert lies in which slot, before any of the layer's experts is run; then threads read what is
missing. A request (madvise) makes the system begin to read a part of the mapped file, and returns at once.
"""

import math

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import (
    ACTIVE_EXPERT,
    BYTES_READ,
    EXPERT,
    EXPERTS,
    HITS,
    LFU,
    LOAD,
    LOAD_ADDRESS,
    LOAD_BYTES,
    LOAD_OFFSET,
    LOADS,
    LRU,
    MISSES,
    NOT_READ,
    offsets,
)
from lapinfer.kernels.route import note_problem
from lapinfer.kernels.simd import call_advise, call_read, load_f32, load_f64, load_i64, store_f64, store_i64
from lapinfer.machine import LARGEST_PAGE

WILL_NEED = 3
"""MADV_WILLNEED, the same on Linux and macOS."""
READ_TRIES = 3
PAGE = LARGEST_PAGE
"""Requests begin at a multiple of it, or are refused; the file's header is at least one."""

(
    P_EXPERTS, P_ACTIVE, P_WEIGHTS, P_FIRST, P_SLOT_OF, P_OWNER, P_USED, P_RANK, P_USES, P_SLOTS, P_POOL, P_SLOT_BYTES,
    P_OFFSET, P_STRIDE, P_BYTES, P_PIECE, P_POLICY, P_HALF_LIFE, P_CLOCK, P_LOADS, P_COUNTERS,
) = offsets("place")  # fmt: skip


@jit
def count_up(counters, which, number):
    """Add to one of POOL_COUNTERS."""
    store_i64(counters + 8 * which, load_i64(counters + 8 * which) + number)


@jit
def ask(advise, at, size):
    """Ask the system for bytes of the mapped file; small experts begin anywhere in a page."""
    before = at % PAGE
    call_advise(advise, at - before, size + before, WILL_NEED)


@jit
def use(op, expert, now):
    """Note that an expert (of all layers) is used, and what that makes of its rank; the lowest rank leaves first."""
    rank, count = load_i64(op + P_RANK) + 8 * expert, load_i64(op + P_USES) + 8 * expert
    uses = load_i64(count)
    store_i64(count, uses + 1)
    policy = load_i64(op + P_POLICY)
    if policy == LRU:
        store_f64(rank, np.float64(now))
    elif policy == LFU:
        store_f64(rank, np.float64(uses + 1))
    else:  # the logarithm of the sum of 2^(time / half_life) over all uses: decay changes no order
        fresh = np.float64(now) / np.float64(load_f32(op + P_HALF_LIFE))
        old = load_f64(rank) if uses > 0 else fresh - 1e3
        higher, lower = max(old, fresh), min(old, fresh)
        store_f64(rank, higher + math.log2(1.0 + 2.0 ** (lower - higher)))


@jit
def free_slot(op, now):
    """A slot that is empty, or whose expert ranks lowest and is not used now."""
    owner, used, rank = load_i64(op + P_OWNER), load_i64(op + P_USED), load_i64(op + P_RANK)
    best, lowest = 0, np.inf
    for slot in range(load_i64(load_i64(op + P_SLOTS))):
        held = load_i64(owner + 8 * slot)
        if held < 0:
            return slot
        if load_i64(used + 8 * slot) != now:
            value = load_f64(rank + 8 * held)
            if value < lowest:
                best, lowest = slot, value
    return best


@jit
def list_pieces(op, slot, expert, loads):
    """Enter the pieces of an expert into `loads`; returns the number of entries then."""
    target = load_i64(op + P_POOL) + slot * load_i64(op + P_SLOT_BYTES)
    source = load_i64(op + P_OFFSET) + expert * load_i64(op + P_STRIDE)
    size, piece = load_i64(op + P_BYTES), load_i64(op + P_PIECE)
    for at in range(0, size, piece):
        entry = load_i64(op + P_LOADS) + 8 * len(LOAD) * loads
        store_i64(entry + 8 * LOAD_ADDRESS, target + at)
        store_i64(entry + 8 * LOAD_OFFSET, source + at)
        store_i64(entry + 8 * LOAD_BYTES, min(piece, size - at))
        loads += 1
    return loads


@kernel
def place(op, step, chunk, thread):
    """See that every routed expert of this step has a slot; shared experts stay where they are."""
    routed, active, first = load_i64(op + P_EXPERTS), load_i64(op + P_ACTIVE), load_i64(op + P_FIRST)
    slot_of, owner, used = load_i64(op + P_SLOT_OF), load_i64(op + P_OWNER), load_i64(op + P_USED)
    counters, weights = load_i64(op + P_COUNTERS), load_i64(op + P_WEIGHTS)
    clock = load_i64(op + P_CLOCK)
    now = load_i64(clock) + 1
    store_i64(clock, now)
    loads, n = 0, load_i64(step + 8 * EXPERTS)
    for i in range(n):  # those that are there first, so that none of them leaves for another
        e = load_i64(active + 8 * (len(ACTIVE_EXPERT) * i + EXPERT))
        if e < routed:
            use(op, first + e, now)
            slot = load_i64(slot_of + 8 * (first + e))
            if slot >= 0:
                store_i64(used + 8 * slot, now)
                count_up(counters, HITS, 1)
    for i in range(n):
        e = load_i64(active + 8 * (len(ACTIVE_EXPERT) * i + EXPERT))
        if e < routed and load_i64(slot_of + 8 * (first + e)) < 0:
            slot = free_slot(op, now)
            held = load_i64(owner + 8 * slot)
            if held >= 0:
                store_i64(slot_of + 8 * held, -1)
            store_i64(owner + 8 * slot, first + e)
            store_i64(slot_of + 8 * (first + e), slot)
            store_i64(used + 8 * slot, now)
            loads = list_pieces(op, slot, e, loads)
            count_up(counters, MISSES, 1)
            count_up(counters, BYTES_READ, load_i64(op + P_BYTES))
        if e < routed:
            slot = load_i64(slot_of + 8 * (first + e))
            store_i64(weights + 8 * e, load_i64(op + P_POOL) + slot * load_i64(op + P_SLOT_BYTES))
    store_i64(step + 8 * LOADS, loads)


(L_LOADS, L_READ, L_FILE, L_POSITION) = offsets("load")


@kernel
def load(op, step, chunk, thread):
    """Read one piece; a file that has become shorter, or cannot be read, is noted as the layer's problem."""
    entry = load_i64(op + L_LOADS) + 8 * len(LOAD) * chunk
    address, offset = load_i64(entry + 8 * LOAD_ADDRESS), load_i64(entry + 8 * LOAD_OFFSET)
    left, tries = load_i64(entry + 8 * LOAD_BYTES), 0
    while left > 0:
        got = call_read(load_i64(op + L_READ), load_i64(op + L_FILE), address, left, offset)
        if got > 0:
            address, offset, left = address + got, offset + got, left - got
            continue
        tries += 1
        if got == 0 or tries == READ_TRIES:
            note_problem(step, load_i64(op + L_POSITION), NOT_READ)
            return


(Q_ACTIVE, Q_BANK, Q_STRIDE, Q_BYTES, Q_ADVISE) = offsets("request")


@kernel
def request(op, step, chunk, thread):
    """Ask for all experts that this layer has chosen."""
    for i in range(load_i64(step + 8 * EXPERTS)):
        e = load_i64(load_i64(op + Q_ACTIVE) + 8 * (len(ACTIVE_EXPERT) * i + EXPERT))
        at = load_i64(op + Q_BANK) + e * load_i64(op + Q_STRIDE)
        ask(load_i64(op + Q_ADVISE), at, load_i64(op + Q_BYTES))
