"""Experts of a model that is larger than memory: a pool of slots and reads from the file, or requests to the system.

One chunk decides which expert lies in which slot, before any of the layer's experts is run; then threads read what is
missing. A request (madvise) makes the system begin to read a part of the mapped file, and returns at once.
"""

import math

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import BYTES_READ, HITS, LFU, LRU, MISSES, NOT_READ
from lapinfer.kernels.problem import note_problem
from lapinfer.kernels.simd import load_f64, load_i64, store_f64, store_i64
from lapinfer.kernels.system import call_advise, call_read
from lapinfer.machine import LARGEST_PAGE

WILL_NEED = 3
"""MADV_WILLNEED, the same on Linux and macOS."""
READ_TRIES = 3
PAGE = LARGEST_PAGE
"""Requests begin at a multiple of it, or are refused; the file's header is at least one."""


@jit
def count_up(counters, which, number):
    """Add to one of POOL_COUNTERS."""
    store_i64(counters + 8 * which, load_i64(counters + 8 * which) + number)


@jit
def ask(advise, address, size):
    """Ask the system for bytes of the mapped file; small experts begin anywhere in a page."""
    before = address % PAGE
    call_advise(advise, address - before, size + before, WILL_NEED)


@jit
def use(o, expert, now):
    """Note that an expert (of all layers) is used, and what that makes of its rank; the lowest rank leaves first."""
    rank, count = o.rank + 8 * expert, o.uses + 8 * expert
    uses = load_i64(count)
    store_i64(count, uses + 1)
    policy = o.policy
    if policy == LRU:
        store_f64(rank, np.float64(now))
    elif policy == LFU:
        store_f64(rank, np.float64(uses + 1))
    else:  # the logarithm of the sum of 2^(time / half_life) over all uses: decay changes no order
        fresh = np.float64(now) / np.float64(o.half_life)
        old = load_f64(rank) if uses > 0 else fresh - 1e3
        higher, lower = max(old, fresh), min(old, fresh)
        store_f64(rank, higher + math.log2(1.0 + 2.0 ** (lower - higher)))


@jit
def free_slot(o, now):
    """A slot that is empty, or whose expert ranks lowest and is not used now."""
    owner, used, rank = o.owner, o.used, o.rank
    best, lowest = 0, np.inf
    for slot in range(load_i64(o.slots)):
        held = load_i64(owner + 8 * slot)
        if held < 0:
            return slot
        if load_i64(used + 8 * slot) != now:
            value = load_f64(rank + 8 * held)
            if value < lowest:
                best, lowest = slot, value
    return best


@jit
def list_pieces(o, slot, expert, loads):
    """Enter the pieces of an expert into `loads`; returns the number of entries then."""
    target = o.pool + slot * o.slot_bytes
    source = o.offset + expert * o.stride
    size, piece = o.bytes, o.piece
    for begin in range(0, size, piece):
        entry = o.loads[loads]
        entry.address = target + begin
        entry.offset = source + begin
        entry.bytes = min(piece, size - begin)
        loads += 1
    return loads


@kernel
def place(o, step, chunk, thread):
    """See that every routed expert of this step has a slot; shared experts stay where they are."""
    routed, active, first = o.experts, o.active, o.first
    slot_of, owner, used = o.slot_of, o.owner, o.used
    counters, weights = o.counters, o.weights
    clock = o.clock
    now = load_i64(clock) + 1
    store_i64(clock, now)
    loads, n = 0, step.experts
    for i in range(n):  # those that are there first, so that none of them leaves for another
        e = active[i].expert
        if e < routed:
            use(o, first + e, now)
            slot = load_i64(slot_of + 8 * (first + e))
            if slot >= 0:
                store_i64(used + 8 * slot, now)
                count_up(counters, HITS, 1)
    for i in range(n):
        e = active[i].expert
        if e < routed and load_i64(slot_of + 8 * (first + e)) < 0:
            slot = free_slot(o, now)
            held = load_i64(owner + 8 * slot)
            if held >= 0:
                store_i64(slot_of + 8 * held, -1)
            store_i64(owner + 8 * slot, first + e)
            store_i64(slot_of + 8 * (first + e), slot)
            store_i64(used + 8 * slot, now)
            loads = list_pieces(o, slot, e, loads)
            count_up(counters, MISSES, 1)
            count_up(counters, BYTES_READ, o.bytes)
        if e < routed:
            slot = load_i64(slot_of + 8 * (first + e))
            store_i64(weights + 8 * e, o.pool + slot * o.slot_bytes)
    step.loads = loads


@kernel
def load(o, step, chunk, thread):
    """Read one piece; a file that has become shorter, or cannot be read, is noted as the layer's problem."""
    entry = o.loads[chunk]
    address, offset, left, tries = entry.address, entry.offset, entry.bytes, 0
    while left > 0:
        got = call_read(o.read, o.file, address, left, offset)
        if got > 0:
            address, offset, left = address + got, offset + got, left - got
            continue
        tries += 1
        if got == 0 or tries == READ_TRIES:
            note_problem(step, o.position, NOT_READ)
            return


@kernel
def request(o, step, chunk, thread):
    """Ask for all experts that this layer has chosen."""
    for i in range(step.experts):
        ask(o.advise, o.bank + o.active[i].expert * o.stride, o.bytes)
