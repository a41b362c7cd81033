"""What lies between nodes: presets, figures of one's own, and the machine that local nodes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lapinfer.errors import InputError


@dataclass(frozen=True, slots=True)
class Network:
    """latency: seconds from the end of sending to the begin of receiving; bandwidth: bytes per second of a node's link,
    each way; call: seconds of software that a message costs, once where it is sent and once where it is received.

    shared: nodes are processes of one machine, so they share its memory and its processors.
    """

    name: str
    latency: float
    bandwidth: float
    call: float
    shared: bool = False


NETWORKS = {
    network.name: network
    for network in (
        Network("10gbe", 50e-6, 1.25e9, 20e-6),
        Network("25gbe", 30e-6, 3.125e9, 20e-6),
        Network("100gbe", 10e-6, 12.5e9, 10e-6),
        Network("infiniband", 2e-6, 50e9, 3e-6),
    )
}
"""Bandwidths are what the names promise (infiniband: NDR, 400 Gb/s). Latencies and calls are assumed round figures, of
no network that was measured."""
LOCAL = "local"
"""Processes of one machine: what lies between them is measured (report of `scale.primitives`)."""
NAMES = (*NETWORKS, LOCAL)


def network(
    name: str, latency: float | None = None, bandwidth: float | None = None, call: float | None = None,
    local: Network | None = None,
) -> Network:  # fmt: skip
    """The network of a name, with these figures instead of its own where they are given.

    local: what was measured between processes here. InputError for a name that there is not.
    """
    found = local if name == LOCAL else NETWORKS.get(name)
    if found is None:
        raise InputError(f"--network {name}: no such network; expected {', '.join(NAMES)}")
    given = {"latency": latency, "bandwidth": bandwidth, "call": call}
    for field, value in given.items():
        if value is not None and not (value > 0 if field == "bandwidth" else value >= 0):
            least = "above" if field == "bandwidth" else "from"
            raise InputError(f"{field} of a network: expected a number {least} 0, got {value:g}")
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    return replace(found, **changes)


@dataclass(frozen=True, slots=True)
class Shared:
    """What processes of one machine share, as multiples of what one process has.

    processors: how many may compute at once (two hyperthreads of a core are less than 2); memory: by how many read at
    once, from 1 on, the bytes per second that all have together; further ones have no more.
    """

    processors: float
    memory: tuple[float, ...] = (1.0,)

    def rate(self, demands: list[float]) -> float:
        """How fast a process goes, by how fast it goes alone. demands: of each that runs, the share of its time alone
        that it waits for memory."""
        n, demand = len(demands), sum(demands)
        room = self.memory[min(n, len(self.memory)) - 1]
        mean = demand / n
        stretched = 1 - mean + mean * max(demand / room, 1.0)
        return min(1.0, self.processors / n) / stretched


OWN = Shared(1.0)
"""A node of its own: what runs on it at once shares it."""
