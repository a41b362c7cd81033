"""Models of this process for the nodes of a cluster, through actors that have their files."""

from __future__ import annotations

from dataclasses import replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lapinfer.cluster.copies import Holder, Offer, offered
from lapinfer.cluster.start import Cluster
from lapinfer.options import LoadOptions
from lapinfer.progress import Progress


def offer_of(cluster: Cluster, path: str, options: LoadOptions, progress: Progress) -> Offer:
    """A model, packed now if it was not, held for nodes that lack it; a cluster of our own sees the same files."""
    offer, weights = offered(path, options, progress)
    if cluster.own:
        return offer
    holder = ray.remote(Holder).options(num_cpus=0, scheduling_strategy=here()).remote(str(weights))
    return replace(offer, holder=holder)


def here() -> NodeAffinitySchedulingStrategy:
    """The node of this process."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
