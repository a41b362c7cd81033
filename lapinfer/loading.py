"""From a name to a model that can run: find it, pack it once, read its spec, check that it fits, build it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.adapted import adapted
from lapinfer.checkpoint.folder import read_json
from lapinfer.checkpoint.home import FILE_NAME, is_packed, packed_path
from lapinfer.checkpoint.hub import resolve
from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.errors import CheckpointError, DoesNotFitError, InputError
from lapinfer.families import sources_for, spec_from_config
from lapinfer.home import packed_models
from lapinfer.machine import available_memory, default_threads, resident_bytes
from lapinfer.model import Model
from lapinfer.options import SYSTEM, LoadOptions, Policy
from lapinfer.outputs import release_files, replaced
from lapinfer.packing.assemble import Assembler
from lapinfer.packing.coarse import with_coarse_head
from lapinfer.packing.copies import Use, cached_folder
from lapinfer.packing.integrity import DamagedError, LoadingCheck
from lapinfer.packing.memory import CopiedWeights
from lapinfer.packing.pack import choose_formats
from lapinfer.packing.reader import PackedFile, read_packed
from lapinfer.packing.target import beside, check_target
from lapinfer.private import make_folders
from lapinfer.progress import Phase, Progress, silent
from lapinfer.quant.choice import AUTO, FED_BACK, SMALL
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.kv import cache_bytes, kv_format
from lapinfer.runtime.ops import CHUNK, Limits
from lapinfer.runtime.predict import packed_bytes
from lapinfer.spec import FeedForwardSpec, ModelSpec, with_top_k
from lapinfer.tensors import parameters, tensors
from lapinfer.text.tokenizer import Tokenizer

DEFAULT_CTX = 4096
MARGIN = 24_000_000
"""Bytes left for what Python allocates while it runs: tokenizer state, texts, reports."""
WANTED = 64
"""Tokens of a step whose logits may be wanted: buffers for all 512 would take room from experts for nothing."""
SHORT_STEP = 32
"""Tokens of a step whose buffers are too small to be worth more slots."""
NO_EXPERTS = (
    "memory: this model has no experts to leave on disk; leave the option out (whether a model fits is checked anyway, "
    "and lapinfer info --memory tells)"
)
NARROW = "memory: leaves of a few neurons are read by the hundred and stay in memory; leave the option out"
OR_ON_DISK = ", or leave experts on disk with --memory GB"


def load_model(
    path_or_name: str | Path, options: LoadOptions | None = None, *, progress: Progress | None = None,
    beside: Model | None = None,
) -> Model:  # fmt: skip
    """Load a checkpoint folder, packed folder, .gguf file or hub name; packs the weights the first time.

    beside: a loaded model that memory must hold, too. InputError for options that the model cannot have,
    CheckpointError for bad files, DoesNotFitError when memory or disk is too small.
    """
    options, say = options or LoadOptions(), progress or silent
    began = time.perf_counter()
    found = packed(path_or_name, options, say, beside)
    pack_s = time.perf_counter() - began
    model = None
    try:
        model = _checked_model(found, options, str(path_or_name), say, beside)
    except DamagedError as error:
        if not found.is_copy:
            raise DamagedError(f"{error}; convert the checkpoint again") from error
        say(f"note: {error}; packing it again")
    if model is None:  # not where the error is handled, whose traceback holds the file
        release_files()
        (found.folder / FILE_NAME).unlink(missing_ok=True)
        found = packed(path_or_name, options, say, beside)
        try:
            model = _checked_model(found, options, str(path_or_name), say, beside)
        except DamagedError as again:
            raise DamagedError(
                f"{again} (a packed copy: lapinfer rm {found.folder.name}, and it is packed again)"
            ) from again
    model.pack_s = pack_s
    model.load_s = time.perf_counter() - began - pack_s - model.compile_s
    return model


def _checked_model(found: Packed, options: LoadOptions, name: str, say: Progress, beside: Model | None) -> Model:
    """The model of a packed folder; DamagedError when its file isn't what was written, as far as it is read."""
    spec, weights = _read_packed(found, say)
    with LoadingCheck(weights.stored) as check:
        about = {"name": name, "texts": found.texts, "notice": say, "progress": say}
        model = _model(spec, weights, options, about, beside)
        try:
            check.finish()
        except DamagedError:
            model.close()
            raise
    return model


def _model(
    spec: ModelSpec, weights: PackedFile, options: LoadOptions, about: dict[str, Any], beside: Model | None
) -> Model:  # fmt: skip
    """A model of these weights, as large and in memory in the way that the options say."""
    if options.experts is not None:
        spec = with_top_k(spec, options.experts)
    limits = _limits(spec, options, weights.metadata.get("quant", ""))
    if limits.threads > (processors := os.cpu_count() or limits.threads):
        about["notice"](f"note: {limits.threads} threads on {processors} processors will wait for each other")
    if options.expert_nodes is not None:
        from lapinfer.cluster.nodes import apart_model

        return apart_model(spec, weights, limits, options.expert_nodes, threads=options.threads, **about)
    if options.policy == SYSTEM:
        return mapped_model(spec, weights, limits, **about)
    if options.memory is not None:
        return bounded_model(spec, weights, limits, options.memory, options.policy, **about)
    check_memory(weights, spec, limits, beside)
    return Model(spec, weights, limits, **about)


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed folder, and where its texts are; source: the checkpoint, if the folder is our copy of one, and our use.

    A copy gives weights alone: config, tokenizer and templates are read where the checkpoint lies, as they are now.
    """

    folder: Path
    texts: Path
    source: Checkpoint | None = None
    use: Use | None = None

    @property
    def is_copy(self) -> bool:
        return self.source is not None


def check_prompt(path_or_name: str | Path, options: LoadOptions, text: str) -> None:
    """InputError for a prompt that no tokenizer could fit into the context, before anything is packed or loaded."""
    source = resolve(path_or_name)
    folder = source if isinstance(source, Path) else source.folder
    config = read_json(folder / "config.json") if isinstance(source, Path) else source.config
    limits = _limits(spec_from_config(config, str(folder)), options, options.quant)
    if (tokenizer := Tokenizer.from_folder(folder)) is not None:
        tokenizer.check_length(text, limits.ctx)


def memory_needed(path_or_name: str | Path, options: LoadOptions) -> int:
    """Bytes that `load_model` will take: weights, KV cache and buffers. Reads headers alone; errors as it has them."""
    source = adapted(resolve(path_or_name), options.lora)
    if isinstance(source, Path):
        spec, weights = read_packed(source)
        return _needed(weights.nbytes, spec, _limits(spec, options, weights.metadata.get("quant", "")))
    spec = spec_from_config(source.config, str(source.path))
    stored = Assembler(source, sources_for(spec, source.names())).formats_of
    formats = with_coarse_head(spec, choose_formats(spec, options.quant, stored))
    return _needed(sum(packed_bytes(spec, formats).values()), spec, _limits(spec, options, options.quant))


def packed(path_or_name: str | Path, options: LoadOptions, say: Progress, beside: Model | None = None) -> Packed:
    """Where the packed weights are; a copy of a checkpoint is made now if need be, and if it can be of use."""
    source, quant = adapted(resolve(path_or_name, say), options.lora), options.quant
    if not isinstance(source, Path):
        for line in source.notices:
            say(line)
        folder = cached_folder(source, quant, packed_models(), progress=say)
        use = Use(folder, source.path, say) if is_packed(folder) else None
        if not is_packed(folder):  # or no longer: another process was removing it
            spec = spec_from_config(source.config, str(source.path))
            _check_memory(source.path.name, 0, spec, _limits(spec, options, quant), beside)
            with suppress(OSError):  # told when the copy is written
                make_folders(folder.parent)
            use = use or Use(folder, source.path, say)
            pack_calibrated(source, folder, quant, progress=_packing(say), force=True, notice=say)
        return Packed(folder, source.folder, source, use)
    stored = read_metadata(packed_path(source)).get("quant")
    if quant not in ("auto", stored):
        raise InputError(f"{source} is already packed as {stored}, not as {quant}")
    return Packed(source, source)


def _read_packed(found: Packed, notice: Progress) -> tuple[ModelSpec, PackedFile]:
    """The spec and the weights of a packed folder, which agree; CheckpointError when they do not."""
    if found.source is None:
        return read_packed(found.folder, notice)
    spec = spec_from_config(found.source.config, str(found.source.path), notice)
    try:
        return spec, PackedFile(found.folder, tensors(spec, coarse=True).values(), found.use)
    except CheckpointError as error:
        raise DamagedError(str(error)) from error


def _limits(spec: ModelSpec, options: LoadOptions, quant: str) -> Limits:
    """What buffers are allocated for; InputError for a context that the model cannot have."""
    ctx = default_ctx(spec) if options.ctx is None else checked_ctx(spec, options.ctx)
    activations = options.activations
    if activations == "auto":
        activations = "q16" if parameters(spec) < SMALL else "q8"
    threads = default_threads() if options.threads is None else options.threads
    step = max(min(CHUNK, ctx), options.slots)  # a longer step would never be filled
    kv = kv_format(options.kv, quant)
    return Limits(ctx, options.slots, step, threads, kv, activations)


def default_ctx(spec: ModelSpec) -> int:
    """Positions of the context where none are asked for: the model's own, at most 4,096."""
    return min(spec.context, DEFAULT_CTX)


def checked_ctx(spec: ModelSpec, ctx: int) -> int:
    """A length of context that was asked for; InputError for one that the model cannot have."""
    if spec.positions and ctx > spec.positions:
        raise InputError(f"ctx {ctx} is more than the {spec.positions} positions that this model has learned")
    return ctx


def check_memory(weights: PackedFile, spec: ModelSpec, limits: Limits, beside: Model | None = None) -> None:
    """DoesNotFitError when weights, KV cache and what grows with the context are together more than there is.

    beside: a loaded model whose own are added: the system hardly counts them yet, as its weights are mapped, and its
    cache was not written to.
    """
    _check_memory(weights.path.parent.name, weights.nbytes, spec, limits, beside)


def _check_memory(name: str, packed: int, spec: ModelSpec, limits: Limits, beside: Model | None) -> None:
    """The same for a number of bytes of weights: 0 where these are not packed yet."""
    available = available_memory()
    if available is None:
        return
    needed, other = _needed(packed, spec, limits), 0 if beside is None else _needed_by(beside)
    if beside is not None and needed + other > available:
        raise DoesNotFitError(
            f"{name}: needs {needed / 1e6:,.0f} MB beside {beside.name}, which needs {other / 1e6:,.0f}; "
            f"{available / 1e6:,.0f} MB are available: leave out --draft, or try a smaller --ctx-size or --kv q8"
        )
    if needed > available:
        kv = cache_bytes(spec, limits.kv, limits.slots, limits.ctx, limits.step)
        has_experts = any(layer.feed_forward.router is not None for layer in spec.layers)
        each, fewer = (f" of each of {limits.slots} sequences", "fewer sequences, ") if limits.slots > 1 else ("", "")
        raise DoesNotFitError(
            f"{name}: needs {needed / 1e6:,.0f} MB (weights {packed / 1e6:,.0f}, KV cache "
            f"{kv / 1e6:,.0f} for {limits.ctx} positions{each}), {available / 1e6:,.0f} MB are available; "
            f"try {fewer}a smaller --ctx-size, --kv q8 or --quant q4{OR_ON_DISK if has_experts else ''}"
        )


def _needed(packed: int, spec: ModelSpec, limits: Limits) -> int:
    """Memory that a model takes with so many bytes of weights."""
    kv = cache_bytes(spec, limits.kv, limits.slots, limits.ctx, limits.step)
    return packed + kv + context_bytes(spec, limits)


def _needed_by(model: Model) -> int:
    """Memory that a loaded model takes; no weights where the system keeps what it likes of those in the mapped file."""
    weights = 0 if model.limits.experts == "mapped" else sum(packed_bytes(model.spec, model.weights.formats).values())
    return _needed(weights, model.spec, model.limits)


def bounded_model(
    spec: ModelSpec, weights: PackedFile, limits: Limits, memory: float, policy: Policy, **options: Any
) -> Model:
    """A model whose process stays below `memory` GB: what other things leave of it becomes slots for experts.

    InputError for a model without experts, DoesNotFitError when not even the experts of one token would fit.
    """
    routed = experts_on_disk(spec)
    bound = int(memory * 1e9)
    strides = {i: weights.tensor(f"layers.{i}.experts").shape[1] for i in routed}
    shared = sum(ff.shared * strides[i] for i, ff in routed.items())
    least = max(ff.router.top_k for ff in routed.values() if ff.router is not None)
    # Slots are only address space at first; how many may be used is known when everything else is allocated.
    limits = replace(
        limits, experts="pool", policy=policy, wanted=max(WANTED, limits.slots),
        slots_of_pool=max(bound // max(strides.values()), least),
    )  # fmt: skip
    copied, compile_s = CopiedWeights(weights), 0.0
    while True:
        model = Model(spec, copied, limits, **options)
        assert model.pool is not None
        model.compile_s = compile_s = compile_s + model.compile_s
        fixed = resident_bytes() + model.buffer_bytes() + shared + MARGIN
        slots = (bound - fixed) // model.pool.slot_bytes
        if limits.step <= SHORT_STEP or slots >= max(model.pool.experts):
            break
        # Without slots for all experts of a layer, steps are short anyway: smaller buffers leave room for more slots.
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
    """A model whose experts stay in the mapped file; the system is asked for those that tokens choose.

    InputError for a model without experts.
    """
    experts_on_disk(spec)
    return Model(spec, weights, replace(limits, experts="mapped"), **options)


def experts_on_disk(spec: ModelSpec) -> dict[int, FeedForwardSpec]:
    """The feed-forwards of the routed layers; InputError if they cannot be left on disk."""
    layers = enumerate(spec.layers)
    routed = {i: layer.feed_forward for i, layer in layers if layer.feed_forward.router is not None}
    if not routed:
        raise InputError(NO_EXPERTS)
    if any(ff.narrow for ff in routed.values()):
        raise InputError(NARROW)
    return routed


def _packing(say: Progress) -> Progress:
    """Says of the first phase what all of them are for."""
    first = ""

    def progress(phase: Phase, done: int, total: int) -> None:
        nonlocal first
        if phase == (first := first or phase):
            phase = Phase(phase, phase.unit, said=f"packing {total / 1e6:,.0f} M weights (once)", part=phase.part)
        say(phase, done, total)

    return progress


def convert(
    source: str | Path, target: str | Path, quant: str = "q4", *, calibrate: Path | None = None,
    lora: Sequence[str] = (), progress: Progress | None = None, force: bool = False,
) -> Path:  # fmt: skip
    """Write the packed form of a checkpoint into the folder `target`.

    Nothing that is there is replaced but the packed form of the same checkpoint, else InputError; `force` replaces
    files that are in the way, and says which, but never the source or other weights.
    calibrate: a text like those that the model will see, for q4 with error feedback; else q4 is calibrated with
    random tokens. lora: adapters that are merged into it, PATH or PATH:SCALE.
    """
    checkpoint = adapted(resolve(source, progress or silent), lora)
    if isinstance(checkpoint, Path):
        raise InputError(f"{checkpoint} is packed already; convert the checkpoint that it was made from")
    target = Path(target)
    if calibrate is not None and quant not in (AUTO, *FED_BACK):
        raise InputError(f"a calibration text is for {' or '.join(FED_BACK)}; quant is {quant}")
    say = progress or silent
    for line in checkpoint.notices:
        say(line)
    for goes in check_target(checkpoint, target, beside(checkpoint), force=force):
        say(replaced(goes))
    return pack_calibrated(checkpoint, target, quant, text=calibrate, progress=_packing(say), force=force, notice=say)
