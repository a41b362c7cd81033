"""For `--network local`, measured: what processes of this machine share, and what a message between two takes."""

from __future__ import annotations

from lapinfer.cluster.messages import round_trips
from lapinfer.report.bandwidth import thread_scaling
from lapinfer.report.roofline import Roofline
from lapinfer.scale.network import LOCAL, Network, Shared

SMALL, LARGE = 512, 1 << 20
"""Bytes of messages."""


def shared(machine: Roofline) -> Shared:
    """For processes of one thread each: `machine` was measured with one and with several."""
    one = machine.bandwidth[1]
    most = max(machine.bandwidth)
    memory = [1 + (machine.bandwidth[most] / one - 1) * (n - 1) / max(most - 1, 1) for n in range(1, most + 1)]
    processors = 1.0 if most == 1 else thread_scaling() * most / 2
    return Shared(max(processors, 1.0), tuple(max(value, 1.0) for value in memory))


def between_processes() -> Network:
    """Messages to processes of Ray and back, as experts on nodes get theirs."""
    one, both, large = round_trips([(1, SMALL), (2, SMALL), (1, LARGE)], f"--network {LOCAL}")
    # A second node adds its message's end here to the way out, and its answer's to the way back.
    call = min(max((both - one) / 2, 0.0), one / 4)
    bandwidth = 2 * (LARGE - SMALL) / max(large - one, 1e-9)
    return Network(LOCAL, one / 2 - 2 * call, bandwidth, call, shared=True)
