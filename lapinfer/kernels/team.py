"""The loop that every thread of a team runs: claim a chunk of the current op, do it, publish the next op.

One word holds (op serial, chunks left to claim), so that one compare-and-swap both finds out that there is work and
takes it. Whoever finishes an op's last chunk publishes the next op. Nobody waits for a thread to arrive, only for
chunks that somebody has claimed. Serials are never reused, so a thread that was asleep for a while loses its swap and
looks again; what an op is may only be read after the swap, which keeps it current until the chunk is done.
"""

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.control import (
    ACTIVE,
    BASE,
    CALLS,
    CHUNK_BITS,
    CHUNKS,
    COUNTER,
    COUNTERS,
    DONE,
    FINISHED,
    LINE,
    NS,
    OPS,
    PARKED,
    ROWS,
    STARTED,
    STEP,
    WORD,
    YIELD,
)
from lapinfer.kernels.operands import COUNT, KERNEL, ROW, TIMES
from lapinfer.kernels.simd import load_i64, store_i64
from lapinfer.kernels.system import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    call_system,
    clock,
    compare_and_swap,
    pause,
)

SPINS_BEFORE_YIELD = 2_000  # about 50 microseconds
YIELDS_BEFORE_PARK = 400  # with the spins between them, some milliseconds


@jit
def publish_from(control, serial):
    """Make the first op at or after `serial` that has any work current; or end the step."""
    ops, base = load_i64(control + OPS), load_i64(control + BASE)
    rows, step = load_i64(control + ROWS), load_i64(control + STEP)
    chunks = 0
    while serial < base + ops:
        row = rows + 8 * ROW * (serial - base)
        chunks = load_i64(step + 8 * load_i64(row + 8 * COUNT)) * load_i64(row + 8 * TIMES)
        if chunks > 0:
            break
        serial += 1
    store_i64(control + DONE, 0)
    store_i64(control + CHUNKS, chunks)
    store_i64(control + STARTED, clock())
    if chunks == 0:
        atomic_store(control + FINISHED, serial)
    atomic_store(control + WORD, (serial << CHUNK_BITS) + chunks)


@jit
def work(control, thread):
    """Claim and do one chunk; whether there was one."""
    word = atomic_load(control + WORD)
    left = word & ((1 << CHUNK_BITS) - 1)
    if left == 0 or not compare_and_swap(control + WORD, word, word - 1):
        return False
    chunks = load_i64(control + CHUNKS)
    serial = word >> CHUNK_BITS
    op = serial - load_i64(control + BASE)
    row = load_i64(control + ROWS) + 8 * ROW * op
    call_kernel(load_i64(row + 8 * KERNEL), row, load_i64(control + STEP), chunks - left, thread)
    if atomic_add(control + DONE, 1) + 1 == chunks:
        counter = load_i64(control + COUNTERS) + 8 * COUNTER * op
        store_i64(counter + 8 * CALLS, load_i64(counter + 8 * CALLS) + 1)
        store_i64(counter + 8 * NS, load_i64(counter + 8 * NS) + clock() - load_i64(control + STARTED))
        publish_from(control, serial + 1)
    return True


@jit
def rest(control, idle):
    """Spend a moment; from time to time let another process have the core."""
    pause()
    if idle % SPINS_BEFORE_YIELD == 0:
        give_way = load_i64(control + YIELD)
        if give_way != 0:
            call_system(give_way)


@kernel
def lead(control, end, thread, unused):
    """Run a step from its first op: publish it, and work until serial `end` is reached."""
    publish_from(control, load_i64(control + BASE))
    idle = 0
    while atomic_load(control + FINISHED) < end:
        if work(control, thread):
            idle = 0
        else:
            idle += 1
            rest(control, idle)


@kernel
def follow(control, thread, unused, unused2):
    """Help with whatever is published; return, marked as parked, when there was nothing for some milliseconds."""
    idle = 0
    while idle < SPINS_BEFORE_YIELD * YIELDS_BEFORE_PARK:
        if thread < atomic_load(control + ACTIVE) and work(control, thread):
            idle = 0
        else:
            idle += 1
            rest(control, idle)
    atomic_store(control + PARKED + 8 * LINE * thread, 1)


@kernel
def read_clock(out, unused, unused2, unused3):
    """The tick counter that ops are timed with."""
    store_i64(out, clock())
