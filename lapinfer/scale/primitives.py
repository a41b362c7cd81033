"""For `--network local`, measured: what processes of this machine share, and what a message between two takes."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from statistics import median

from lapinfer.report.bandwidth import thread_scaling
from lapinfer.report.roofline import Roofline
from lapinfer.scale.network import LOCAL, Network, Shared

SMALL, LARGE = 64, 1 << 20
"""Bytes of messages."""
ROUNDS = 200


def shared(machine: Roofline) -> Shared:
    """For processes of one thread each: `machine` was measured with one and with several."""
    one = machine.bandwidth[1]
    most = max(machine.bandwidth)
    memory = [1 + (machine.bandwidth[most] / one - 1) * (n - 1) / max(most - 1, 1) for n in range(1, most + 1)]
    processors = 1.0 if most == 1 else thread_scaling() * most / 2
    return Shared(processors, tuple(max(value, 1.0) for value in memory))


def loopback() -> Network:
    """Messages through a pipe to another process, and back."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_echo, args=(theirs,), daemon=True)
    process.start()
    try:
        small, large = (_seconds(ours, size) for size in (SMALL, LARGE))
        ours.send_bytes(b"")
    finally:
        process.join(5)
        process.kill()
    return Network(LOCAL, small, (LARGE - SMALL) / max(large - small, 1e-9), 0.0, shared=True)


def _seconds(pipe: Connection, size: int) -> float:
    """One way, the median of many."""
    message, times = bytes(size), []
    for _ in range(ROUNDS if size == SMALL else ROUNDS // 10):
        began = time.perf_counter()
        pipe.send_bytes(message)
        pipe.recv_bytes()
        times.append((time.perf_counter() - began) / 2)
    return median(times)


def _echo(pipe: Connection) -> None:
    while message := pipe.recv_bytes():
        pipe.send_bytes(message)
