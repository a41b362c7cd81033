"""Ray Serve's router, as prefixes.py decides."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lapinfer.cluster.prefixes import Work

PROMPT = "prompt"
"""The keyword of a request that has its prompt's blocks."""


class PrefixRouter(RequestRouter):
    """Sends a request where it would be done first. It knows what its own process has sent, which is all there is."""

    def initialize_state(self, *, slots: int = 1, **kwargs: Any) -> None:
        """slots: requests that a replica answers at once."""
        self._work: Work[ReplicaID] = Work(slots)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each."""
        there = {replica.replica_id: replica for replica in candidate_replicas}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[there[found]] for found in self._work.best(there, _prompt(pending_request))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._work.begun(pending_request.metadata.internal_request_id, replica_id, _prompt(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._work.ended(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._work.only(replica.replica_id for replica in replicas)


def _prompt(request: PendingRequest | None) -> tuple[int, ...]:
    return () if request is None else request.kwargs.get(PROMPT, ())
