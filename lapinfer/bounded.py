"""Models that are larger than the memory they may take: how many experts fit."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from lapinfer.checkpoint.packed import PackedFile
from lapinfer.errors import DoesNotFitError, InputError
from lapinfer.kernels.operands import POLICIES
from lapinfer.model import Model
from lapinfer.runtime.build import Limits
from lapinfer.runtime.predict import packed_bytes
from lapinfer.spec import FeedForwardSpec, ModelSpec, is_matrix, tensors

MARGIN = 24_000_000
"""Bytes left for what Python allocates while it runs: tokenizer state, texts, reports."""


def resident_bytes() -> int:
    """Memory of this process now; its peak where the platform tells no better."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else 1024 * usage


def bounded_model(
    spec: ModelSpec, weights: PackedFile, limits: Limits, memory: float, policy: str, **options: Any
) -> Model:
    """A model whose process stays below `memory` GB: what is left beside all else becomes slots for experts.

    InputError for a model without experts, DoesNotFitError when not even one token's experts would fit.
    """
    routed = [ff for _, ff in enumerate_routed(spec)]
    if policy not in POLICIES:
        raise InputError(f"policy {policy!r} is not known, expected one of {', '.join(POLICIES)}")
    if not routed:
        raise InputError("memory: this model has no experts to leave on disk; without the option it is checked to fit")
    if not 0 < memory < 1e6:
        raise InputError(f"memory: expected a number of GB above 0, got {memory:g}")
    bound = int(memory * 1e9)
    formats = {name: str(weights.format(name)) for name in tensors(spec) if is_matrix(name)}
    banks = {i: weights.tensor(f"layers.{i}.experts") for i, _ in enumerate_routed(spec)}
    others = sum(packed_bytes(spec, formats).values()) - sum(bank.nbytes for bank in banks.values())
    shared = sum(ff.shared * banks[i].shape[1] for i, ff in enumerate_routed(spec))
    # Slots are address space at first; how many may be used is known when all else is there.
    stride = max(bank.shape[1] for bank in banks.values())
    limits = replace(limits, experts="pool", slots_of_pool=max(bound // stride, 1), policy=policy)  # type: ignore[arg-type]
    model = Model(spec, weights, limits, **options)
    assert model.pool is not None
    fixed = resident_bytes() + model.buffer_bytes() + others + shared + MARGIN
    slots = (bound - fixed) // model.pool.slot_bytes
    least = max(ff.router.top_k for ff in routed if ff.router is not None)
    if slots < least:
        model.close()
        needed = fixed + least * model.pool.slot_bytes
        raise DoesNotFitError(
            f"{weights.path.parent.name}: needs at least {needed / 1e9:.2f} GB ({fixed / 1e6:,.0f} MB without experts, "
            f"{least} of {model.pool.slot_bytes / 1e6:.1f} MB for a token), --memory is {memory:g}; try a smaller "
            "--ctx-size or --kv q8"
        )
    model.pool.shrink(int(slots))
    most = max(ff.router.n_experts for ff in routed if ff.router is not None)
    if slots < most:  # a prompt's chunk may choose so many experts only
        model.max_step = min(model.max_step, max(int(slots) // least, 1))
    return model


def enumerate_routed(spec: ModelSpec) -> list[tuple[int, FeedForwardSpec]]:
    """Index and feed-forward of each routed layer."""
    return [(i, layer.feed_forward) for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None]
