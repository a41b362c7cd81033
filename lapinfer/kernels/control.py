"""Where the team's shared words stand: byte offsets in the control block. No numba here.

Words that several threads write lie in cache lines of their own.
"""

LINE = 16
"""int64 from one contended word to the next: two cache lines, which processors fetch together."""

WORD, DONE, CHUNKS, FINISHED = (8 * LINE * i for i in range(4))
"""(serial << CHUNK_BITS | chunks left to claim); finished chunks; chunks of the current op; serial after the last
step."""

BASE, OPS, ROWS, STEP, COUNTERS, STARTED, YIELD, ACTIVE = (8 * (LINE * 4 + i) for i in range(8))
"""Serial of the plan's first op in this step, number of ops, addresses of rows, step header and counters; ticks when
the op began; address of sched_yield (or 0); how many threads may work."""

PARKED = 8 * LINE * 6
"""One word a thread, each in a line of its own: whether it sleeps."""

CHUNK_BITS = 20
"""An op has fewer than 2^20 chunks; serials have the other 43 bits."""

COUNTER = 2
CALLS, NS = range(COUNTER)
"""Counters of an op: how often it ran, and ticks from its publication to its end."""


def control_words(threads: int) -> int:
    """int64 of a control block for `threads` threads."""
    return PARKED // 8 + LINE * threads
