"""A mixture of experts in less memory than its weights: how many experts stay, and what a token reads from disk.

`--memory GB` keeps experts in slots of equal size (runtime/pool.py), as many as are left beside everything else
(loading.bounded_model). Tokens are taken to choose experts evenly, so that the share that is found is the share that is
kept: routing of text is less even, and finds more (bench/LOG.md).
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass

from lapinfer.errors import InputError
from lapinfer.loading import MARGIN, experts_on_disk
from lapinfer.report.costs import Costs
from lapinfer.runtime.predict import byte_terms


@dataclass(frozen=True, slots=True)
class OnDisk:
    """kept: experts in memory, of `experts` in all layers; read: bytes that a token reads from disk, on average.

    tokens_per_second: foreseen; None where the rate of memory or disk is not known.
    """

    experts: int
    kept: int
    read: int
    tokens_per_second: float | None = None

    @property
    def share(self) -> float:
        return self.kept / self.experts


def experts_in(costs: Costs, whole: int, bound: int) -> OnDisk | None:
    """How a model that takes `whole` bytes of memory runs in `bound` of them; None where it cannot.

    It cannot without experts, with narrow leaves, where the experts of one token do not fit beside the rest, and on
    Windows, which lacks what slots are filled with.
    """
    if sys.platform == "win32":
        return None
    try:
        routed = experts_on_disk(costs.spec)
    except InputError:
        return None
    one = dict.fromkeys(routed, 0)
    for term in byte_terms(costs.spec, costs.formats, costs.kv):
        if term.by == "expert":
            one[term.layer] += term.bytes
    routers = {i: router for i, ff in routed.items() if (router := ff.router) is not None}
    experts = sum(router.n_experts for router in routers.values())
    fixed = whole - sum(one[i] * router.n_experts for i, router in routers.items()) + MARGIN
    slot = -(-max(one.values()) // mmap.PAGESIZE) * mmap.PAGESIZE
    kept = min((bound - fixed) // slot, experts)
    if kept < max(router.top_k for router in routers.values()):
        return None
    chosen = sum(one[i] * router.top_k for i, router in routers.items())
    return OnDisk(experts, kept, round(chosen * (1 - kept / experts)))
