"""What a simulation is made of: machines whose work shares them, and links that carry one message after the other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from lapinfer.scale.network import Network, Shared

Run = Generator[simpy.Event, Any, Any]


@dataclass(slots=True)
class _Work:
    left: float
    demand: float
    done: simpy.Event


class Machine:
    """Work that runs at once goes more slowly, as `Shared` says: how fast is computed anew when some begins or ends."""

    def __init__(self, env: simpy.Environment, shared: Shared):
        self._env, self._shared = env, shared
        self._works: list[_Work] = []
        self._since = 0.0
        self._rate = 1.0
        self._version = 0

    def run(self, seconds: float, demand: float = 0.0) -> Run:
        """Wait until work is done that takes so long alone; demand: the share of it that waits for memory."""
        if seconds <= 0:
            return
        work = _Work(seconds, demand, self._env.event())
        self._advance()
        self._works.append(work)
        self._plan()
        yield work.done

    def _advance(self) -> None:
        """What has been done since the rate was computed last."""
        elapsed = self._env.now - self._since
        for work in self._works:
            work.left -= elapsed * self._rate
        self._since = self._env.now

    def _plan(self) -> None:
        self._version += 1
        if self._works:
            self._rate = self._shared.rate([work.demand for work in self._works])
            first = min(work.left for work in self._works)
            timer = self._env.timeout(max(first, 0.0) / self._rate, self._version)
            timer.callbacks.append(self._ended)  # pyright: ignore[reportOptionalMemberAccess]

    def _ended(self, timer: simpy.Event) -> None:
        if timer.value != self._version:  # something began meanwhile
            return
        self._advance()
        first = min(work.left for work in self._works)
        over = [work for work in self._works if work.left <= first + 1e-12]
        self._works = [work for work in self._works if work.left > first + 1e-12]
        for work in over:
            work.done.succeed()
        self._plan()


@dataclass(slots=True)
class Links:
    """A link of each node, each way; messages take it in the order in which they are sent."""

    network: Network
    nodes: int
    _out: list[float] = field(default_factory=list)
    _in: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._out, self._in = [0.0] * self.nodes, [0.0] * self.nodes

    def send(self, source: int, target: int, nbytes: int, now: float) -> float:
        """When a message that is sent now has arrived; to the node itself, at once."""
        if source == target:
            return now
        network = self.network
        wire = nbytes / network.bandwidth
        sent = max(now, self._out[source]) + network.call + wire
        self._out[source] = sent
        # Bytes come in while others go out: the wire's time counts once, unless the receiver's link is taken.
        arrived = max(sent + network.latency, self._in[target] + wire) + network.call
        self._in[target] = arrived
        return arrived
