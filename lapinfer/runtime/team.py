"""A team of threads that runs a plan together (the loop itself is kernels/team.py).

The calling thread leads; the others help while there is work, spin for some milliseconds, and then sleep until the
next step. Results do not depend on how many take part.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref

import numpy as np

from lapinfer.kernels.control import (
    ACTIVE,
    BASE,
    COUNTER,
    COUNTERS,
    FINISHED,
    LINE,
    OPS,
    PARKED,
    ROWS,
    STEP,
    YIELD,
    control_words,
)
from lapinfer.kernels.operands import ROW, TOKENS
from lapinfer.kernels.operands import STEP as STEP_HEADER
from lapinfer.parallel import started
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.pace import Pace
from lapinfer.runtime.plan import Plan

KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
"""Calling a kernel through ctypes releases the GIL."""


def _yield_address() -> int:
    """The C library's sched_yield, or 0 where there is none."""
    if sys.platform == "win32":
        return ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value or 0
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


class _Shared:
    """What helpers hold: not the team itself, so that a forgotten team can be collected."""

    def __init__(self, threads: int, follow: int):
        self.words = zeros(control_words(threads), np.int64)
        self.address = self.words.ctypes.data
        self.view = self.words.data  # for single words, without NumPy's overhead
        self.wake = [threading.Event() for _ in range(threads)]
        self.closed = False
        self.follow = KERNEL(follow)
        self.helpers: list[threading.Thread] = []

    def help(self, thread: int) -> None:
        address, parked = self.address, (PARKED + 8 * LINE * thread) // 8
        while not self.closed:
            self.follow(address, thread, 0, 0)
            self.wake[thread].wait()
            self.wake[thread].clear()
            self.words[parked] = 0

    def start(self) -> int:
        """Start the helpers; returns how many threads there are then, with the caller's: the system may refuse some."""
        for thread in range(1, len(self.wake)):
            if (helper := started(self.help, thread, name=f"lapinfer-{thread}")) is None:
                break
            self.helpers.append(helper)
        return 1 + len(self.helpers)

    def close(self) -> None:
        self.closed = True
        self.words[ACTIVE // 8] = 0
        for event in self.wake:
            event.set()


class Team:
    """At most `threads` threads, with the caller's: fewer where the system refuses to start them.

    kernels: machine code addresses of lead, follow and read_clock. threads: how many there are.
    """

    def __init__(self, threads: int, kernels: dict[str, int]):
        self._wanted = threads
        self._kernels = kernels
        self._lead, self._read_clock = KERNEL(kernels["lead"]), KERNEL(kernels["read_clock"])
        self._serial = 1
        self._start()
        self._ticks_began, self._ns_began = self._ticks(), time.perf_counter_ns()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._shared = _Shared(self._wanted, self._kernels["follow"])
        self._shared.words[YIELD // 8] = _yield_address()
        self._finalizer = weakref.finalize(self, self._shared.close)
        self.threads = self._shared.start()
        self.pace = Pace(self.threads)

    def _ticks(self) -> int:
        out = np.zeros(1, np.int64)
        self._read_clock(out.ctypes.data, 0, 0, 0)
        return int(out[0])

    def ns_per_tick(self) -> float:
        """Nanoseconds of a tick of the ops' clock, measured since the team was created."""
        ticks = self._ticks() - self._ticks_began
        return (time.perf_counter_ns() - self._ns_began) / max(ticks, 1)

    def attach(self, plan: Plan, step: np.ndarray, counters: np.ndarray) -> None:
        """Say what `run` runs: a plan, its step's header (operands.STEP), counters [ops, COUNTER] that it adds to."""
        for name, array, shape in (
            ("step", step, (len(STEP_HEADER),)), ("counters", counters, (len(plan.ops), COUNTER)),
        ):  # fmt: skip
            if array.shape != shape or array.dtype != np.int64 or not array.flags.c_contiguous:
                raise ValueError(f"{name}: expected contiguous int64 {shape}, got {array.dtype} {array.shape}")
        self._plan, self._attached = plan, (step, counters)  # kept alive: kernels have only their addresses
        self._addresses = plan.rows.ctypes.data, step.ctypes.data, counters.ctypes.data
        self._words = step.data

    def run(self) -> int:
        """Run one step of what is attached; returns its nanoseconds, what Python does between ops included."""
        tokens, busy = self._words[TOKENS], 0
        active = self.pace.choose(tokens)
        began = time.perf_counter_ns()
        for begin, end, after in self._plan.parts:
            busy += self.run_part(begin, end, active)
            if after is not None:
                after()
        self.pace.record(tokens, active, busy)
        return time.perf_counter_ns() - began

    def run_part(self, begin: int, end: int, active: int) -> int:
        """Run some ops of what is attached, with so many threads; returns its nanoseconds."""
        if os.getpid() != self._pid:  # threads do not survive a fork
            self._finalizer.detach()
            self._start()
        shared = self._shared
        words, base = shared.view, self._serial
        last = base + end - begin
        rows, step, counters = self._addresses
        words[BASE // 8], words[OPS // 8], words[ACTIVE // 8] = base, end - begin, active
        words[ROWS // 8], words[STEP // 8] = rows + 8 * ROW * begin, step
        words[COUNTERS // 8] = counters + 8 * COUNTER * begin
        self._serial = last
        for thread in range(1, active):
            if words[(PARKED + 8 * LINE * thread) // 8]:
                shared.wake[thread].set()
        began = time.perf_counter_ns()
        self._lead(shared.address, last, 0, 0)
        elapsed = time.perf_counter_ns() - began
        if words[FINISHED // 8] != last:
            raise RuntimeError(f"a step ended at op {words[FINISHED // 8]}, expected {last}")
        return elapsed

    def close(self) -> None:
        self._finalizer()
