"""Models that are larger than the memory they may take: how many experts fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.checkpoint.mapping import let_go
from lapinfer.errors import DoesNotFitError, InputError
from lapinfer.machine import resident_bytes
from lapinfer.model import Model
from lapinfer.packing.memory import aligned_copy
from lapinfer.packing.packed import PackedFile
from lapinfer.runtime.ops import Limits
from lapinfer.spec import FeedForwardSpec, ModelSpec

MARGIN = 24_000_000
"""Bytes left for what Python allocates while it runs: tokenizer state, texts, reports."""

WANTED = 64
"""Tokens of a step whose logits may be wanted: room for those of 512 tokens would be kept from experts in vain."""
SHORT_STEP = 32
"""Tokens of a step whose buffers are too small to be worth more slots."""

NO_EXPERTS = (
    "memory: this model has no experts to leave on disk; leave the option out (whether a model fits is checked anyway, "
    "and lapinfer info --memory tells)"
)

NARROW = "memory: leaves of a few neurons are read by the hundred and stay in memory; leave the option out"


class Kept:
    """Weights of which all but the banks are copied into memory of this process.

    Mapped, they would lose their pages to the reads of experts, and be read anew for every token.
    """

    def __init__(self, weights: PackedFile):
        self._weights = weights
        self._copies: dict[str, np.ndarray] = {}

    @property
    def path(self) -> Path:
        return self._weights.path

    def tensor(self, name: str) -> np.ndarray:
        if name in self._weights.banks:
            return self._weights.tensor(name)
        if name not in self._copies:
            mapped = self._weights.tensor(name)
            self._copies[name] = aligned_copy(mapped)
            let_go(mapped)
            self._copies[name].flags.writeable = False
        return self._copies[name]

    def format(self, name: str) -> str | None:
        return self._weights.format(name)

    def offset(self, name: str) -> int:
        return self._weights.offset(name)

    def file_offset(self, bank: str) -> int:
        return self._weights.file_offset(bank)


def bounded_model(
    spec: ModelSpec, weights: PackedFile, limits: Limits, memory: float, policy: str, **options: Any
) -> Model:
    """A model whose process stays below `memory` GB: what is left beside all else becomes slots for experts.

    InputError for a model without experts, DoesNotFitError when not even one token's experts would fit.
    """
    routed = [ff for _, ff in enumerate_routed(spec)]
    if not routed:
        raise InputError(NO_EXPERTS)
    if any(ff.narrow for ff in routed):
        raise InputError(NARROW)
    bound = int(memory * 1e9)
    banks = {i: weights.tensor(f"layers.{i}.experts") for i, _ in enumerate_routed(spec)}
    shared = sum(ff.shared * banks[i].shape[1] for i, ff in enumerate_routed(spec))
    least = max(ff.router.top_k for ff in routed if ff.router is not None)
    # Slots are address space at first; how many may be used is known when all else is there.
    stride = max(bank.shape[1] for bank in banks.values())
    most, wanted = max(bound // stride, least), max(WANTED, limits.slots)
    limits = replace(limits, experts="pool", slots_of_pool=most, policy=policy, wanted=wanted)  # type: ignore[arg-type]
    kept, compile_s = Kept(weights), 0.0
    while True:
        model = Model(spec, kept, limits, **options)
        assert model.pool is not None
        model.compile_s = compile_s = compile_s + model.compile_s
        fixed = resident_bytes() + model.buffer_bytes() + shared + MARGIN
        slots = (bound - fixed) // model.pool.slot_bytes
        if limits.step <= SHORT_STEP or slots >= max(model.pool.experts):
            break
        # Without slots for all experts of a layer steps are short anyway: what buffers took becomes slots.
        model.close()
        limits = replace(limits, step=max(limits.step // 4, SHORT_STEP))
    if slots < least:
        model.close()
        needed = fixed + least * model.pool.slot_bytes
        raise DoesNotFitError(
            f"{weights.path.parent.name}: needs at least {needed / 1e9:.2f} GB ({fixed / 1e6:,.0f} MB without experts, "
            f"{least} of {model.pool.slot_bytes / 1e6:.1f} MB for a token; some 200 MB of these are Python and its "
            f"libraries), --memory is {memory:g}; allow more, or try a smaller --ctx-size or --kv q8"
        )
    model.shrink_pool(int(slots))
    return model


def mapped_model(spec: ModelSpec, weights: PackedFile, limits: Limits, **options: Any) -> Model:
    """A model whose experts stay in the mapped file; what is chosen is asked for. InputError without experts."""
    if not enumerate_routed(spec):
        raise InputError(NO_EXPERTS)
    if any(ff.narrow for _, ff in enumerate_routed(spec)):
        raise InputError(NARROW)
    return Model(spec, weights, replace(limits, experts="mapped"), **options)


def enumerate_routed(spec: ModelSpec) -> list[tuple[int, FeedForwardSpec]]:
    """Index and feed-forward of each routed layer."""
    return [(i, layer.feed_forward) for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None]
