"""From a name to a model that can run: find it, pack it once, check that it fits, build it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lapinfer.bounded import SYSTEM, bounded_model, check_policy, mapped_model
from lapinfer.checkpoint.folder import read_json
from lapinfer.checkpoint.home import packed_models
from lapinfer.checkpoint.hub import resolve
from lapinfer.errors import CheckpointError, DoesNotFitError, InputError
from lapinfer.families import spec_from_config
from lapinfer.machine import available_memory, default_threads
from lapinfer.model import Model
from lapinfer.packing.entries import packed_rows
from lapinfer.packing.pack import pack_checkpoint, packed_copy
from lapinfer.packing.packed import PackedFile
from lapinfer.quant.choice import AUTO, FED_BACK, QUANTS, SMALL
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.kv import DTYPES, cache_bytes
from lapinfer.runtime.ops import Limits
from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec
from lapinfer.tensors import is_matrix, is_router, tensors

Progress = Callable[..., Any]
"""progress(what, done, total) for long work; progress(line) for a notice."""

DEFAULT_CTX = 4096
CHUNK = 512
"""Tokens of a prompt that a step takes at most."""
OR_ON_DISK = ", or leave experts on disk with --memory GB"
MOST_THREADS = 256
"""More than any laptop has: thousands would bring the computer to a halt."""


def load_model(
    path_or_name: str | Path,
    *,
    quant: str = "auto",
    threads: int | None = None,
    ctx: int | None = None,
    slots: int = 1,
    kv: str = "f16",
    activations: str = "auto",
    experts: int | None = None,
    memory: float | None = None,
    policy: str = "lrfu",
    progress: Progress | None = None,
) -> Model:
    """Load a checkpoint folder, packed folder, .gguf file or hub name; packs the weights the first time.

    ctx: positions a slot holds, by default what the model was trained for, at most 4,096. activations: what q8 and
    q4 weights are multiplied with, q8 (int8) or q16 (two int8 a number: no loss to speak of, and prompts take up to
    twice as long); auto is q16 for small models, which are quick anyway and lose most. experts: how many a token gets,
    instead of the number that the model was trained with. memory: GB (10^9 bytes) that this process may take, all
    included, for a mixture of experts that is larger: some experts are kept, the others read when they are chosen;
    policy says which are kept: lru, lfu or lrfu (both); without memory also system, which leaves that to the system's
    page cache and bounds nothing. InputError for options out of range, CheckpointError for bad files, DoesNotFitError
    when memory or disk is too small.
    """
    say = progress or (lambda *args: None)
    threads = default_threads() if threads is None else threads
    for what, value in (("threads", threads), ("slots", slots), ("ctx", 1 if ctx is None else ctx)):
        if value < 1:
            raise InputError(f"{what}: expected a number from 1, got {value}")
    if threads > MOST_THREADS:
        raise InputError(f"threads: expected at most {MOST_THREADS}, got {threads}")
    if kv not in DTYPES:
        raise InputError(f"kv {kv!r} is not known, expected one of {', '.join(DTYPES)}")
    if activations not in ("auto", "q8", "q16"):
        raise InputError(f"activations {activations!r} is not known, expected auto, q8 or q16")
    if quant not in QUANTS:
        raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(QUANTS)}")
    check_policy(policy, memory)
    if threads > (processors := os.cpu_count() or threads):
        say(f"note: {threads} threads on {processors} processors will wait for each other")
    began = time.perf_counter()
    found = resolve(path_or_name)
    folder = found if isinstance(found, Path) else packed_copy(found, quant, packed_models(), _packing(say))
    pack_s = time.perf_counter() - began
    if isinstance(found, Path) and quant not in ("auto", PackedFile(folder).metadata.get("quant")):
        raise InputError(f"{found} is already packed as {PackedFile(folder).metadata.get('quant')}, not as {quant}")
    try:
        spec = spec_from_config(read_json(folder / "config.json"), str(folder / "config.json"))
        weights = PackedFile(folder)
        check_packed(weights, spec)
    except CheckpointError as error:
        if isinstance(found, Path):
            raise
        raise CheckpointError(f"{error} (a packed copy: delete {folder}, and it is packed again)") from error
    spec = spec if experts is None else with_experts(spec, experts)
    ctx = min(spec.context, DEFAULT_CTX) if ctx is None else ctx
    if spec.positions and ctx > spec.positions:
        raise InputError(f"ctx {ctx} is more than the {spec.positions} positions that this model has learned")
    if activations == "auto":
        activations = "q16" if sum(math.prod(shape) for shape in tensors(spec).values()) < SMALL else "q8"
    # A chunk longer than the context would never be filled.
    limits = Limits(ctx, slots, min(CHUNK, max(ctx, 1)), threads, kv, activations)  # type: ignore[arg-type]
    options = {"name": str(path_or_name), "folder": folder, "notice": say}
    if policy == SYSTEM:
        model = mapped_model(spec, weights, limits, **options)
    elif memory is not None:
        model = bounded_model(spec, weights, limits, memory, policy, **options)
    else:
        check_memory(weights, spec, limits)
        model = Model(spec, weights, limits, **options)
    model.pack_s = pack_s
    model.load_s = time.perf_counter() - began - pack_s - model.compile_s
    return model


def check_packed(weights: PackedFile, spec: ModelSpec) -> None:
    """Whether a packed file has just the tensors that its config.json promises, in their shapes."""
    for name, shape in tensors(spec).items():
        entry = weights[name]
        expected = (*shape[:-2], len(packed_rows(name, shape[-2])), shape[-1]) if is_matrix(name) else shape
        if entry.shape != expected or (entry.format is not None) != is_matrix(name):
            raise CheckpointError(
                f"{weights.path}: tensor {name!r} has {entry.format or 'f32'} {entry.shape}, "
                f"config.json says {expected}"
            )
        if name.endswith(".outward") and entry.format != weights.format(name.removesuffix("outward") + "inward"):
            raise CheckpointError(f"{weights.path}: tensor {name!r} is {entry.format}, expected the format of 'inward'")
        if is_router(name) and entry.format is not None and not FORMATS[entry.format].for_routers:
            raise CheckpointError(f"{weights.path}: tensor {name!r} is {entry.format}, expected f32, f16 or bf16")


def with_experts(spec: ModelSpec, top_k: int) -> ModelSpec:
    """The same model with another number of routed experts a token; InputError where there are not so many."""
    routers = [r for layer in spec.layers if isinstance(r := layer.feed_forward.router, RouterSpec)]
    if not routers:
        raise InputError("experts: this model has no routed layers (a leaf of a tree is one, and always one)")
    most = min(router.n_experts // router.groups * router.top_groups for router in routers)
    if any(router.score == "sparsemixer" for router in routers):
        raise InputError("experts: this model's router (sparsemixer) chooses two, and knows no other number")
    if not 1 <= top_k <= most:
        raise InputError(f"experts: expected a number from 1 to {most}, got {top_k}")

    def with_fewer(ff: FeedForwardSpec) -> FeedForwardSpec:
        return replace(ff, router=replace(ff.router, top_k=top_k)) if isinstance(ff.router, RouterSpec) else ff

    return replace(
        spec, layers=tuple(replace(layer, feed_forward=with_fewer(layer.feed_forward)) for layer in spec.layers)
    )


def check_memory(weights: PackedFile, spec: ModelSpec, limits: Limits) -> None:
    """DoesNotFitError when weights, KV cache and what grows with the context are together more than there is."""
    there = available_memory()
    packed = weights.nbytes
    kv = cache_bytes(spec, limits.kv, limits.slots, limits.ctx, limits.step)
    needed = packed + kv + context_bytes(spec, limits)
    has_experts = any(layer.feed_forward.router is not None for layer in spec.layers)
    if there is not None and needed > there:
        raise DoesNotFitError(
            f"{weights.path.parent.name}: needs {needed / 1e6:,.0f} MB (weights {packed / 1e6:,.0f}, KV cache "
            f"{kv / 1e6:,.0f} for {limits.ctx} positions), {there / 1e6:,.0f} MB are available; "
            f"try a smaller --ctx-size, --kv q8 or --quant q4{OR_ON_DISK if has_experts else ''}"
        )


def _packing(say: Progress) -> Callable[[str, int, int], None]:
    told = False

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal told
        if not told:
            say(f"packing {total / 1e6:,.0f} M weights (once)")
            told = True
        say(phase, done, total)

    return progress


def convert(
    source: str | Path, target: str | Path, quant: str = "q4", *, calibrate: Path | None = None,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write the packed form of a checkpoint into the folder `target`.

    calibrate: a text like those that the model will see, for q4 with error feedback; else q4 is calibrated with
    random tokens.
    """
    found = resolve(source)
    if isinstance(found, Path):
        raise InputError(f"{found} is packed already; convert the checkpoint that it was made from")
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder to write")
    if calibrate is not None and quant not in (AUTO, *FED_BACK):
        raise InputError(f"a calibration text is for {' or '.join(FED_BACK)}; quant is {quant}")
    return pack_checkpoint(
        found, target, quant, calibrate=calibrate, progress=_packing(progress or (lambda *args: None))
    )
