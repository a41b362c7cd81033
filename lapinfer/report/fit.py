"""Will it fit, and how fast will it be? From a model's config.json and this machine's bandwidth, before any weights.

Bytes are those that a loaded model has, and that its meter would tell: the same sums of terms (runtime/predict.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lapinfer import machine
from lapinfer.digits import number, size
from lapinfer.loading import checked_ctx, default_ctx
from lapinfer.options import KVOption
from lapinfer.packing.coarse import with_coarse_head
from lapinfer.packing.pack import choose_formats
from lapinfer.quant.choice import AUTO, Stored
from lapinfer.report.costs import Costs
from lapinfer.report.on_disk import OnDisk, experts_in
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.kv import cache_bytes, kv_format
from lapinfer.runtime.ops import Limits
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

QUANTS = ("q4", "q4_1", "q5", "q6", "q8")
"""What a model may be packed as, besides floats and what `auto` makes of it."""
LONG = 32_768
"""Positions of a long context, for which memory is told besides the usual and the longest one."""
PROCESS_BYTES = 210_000_000
"""Python, NumPy, the compiled kernels and the buffers of a step, as measured with small models."""
OP_SECONDS = 9e-6
"""What an op takes per token beside its bytes: handing over between threads, small ops, Python (bench/LOG.md)."""
OPS_OF_A_LAYER, OPS_OF_ROUTING = 9, 3

Bandwidth = Callable[[str], float]
"""Bytes per second of weights in a format that this machine multiplies a token with."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a context of `ctx` positions takes: kv, of its cache; memory, of everything."""

    ctx: int
    kv: int
    memory: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Of a model packed as `quant`: bytes in memory with a context of `ctx`, bytes that a token touches, and speed.

    format: that most of its weights have; default: whether `--quant auto` packs it so. memory: weights, KV cache and
    the process. touched: of a token after half of the context. tokens_per_second: at the rate that was measured; None
    without one, where it does not fit, and where weights stay in caches, which are faster than that. contexts: memory
    with other contexts, too. on_disk: with experts on disk, where all of them do not fit.
    """

    quant: str
    format: str
    default: bool
    packed: int
    memory: int
    touched: int
    ctx: int
    tokens_per_second: float | None
    contexts: tuple[Room, ...]
    on_disk: OnDisk | None = None

    @property
    def label(self) -> str:
        """The way to pack it, and what `auto` comes to where it is none of the others."""
        return self.quant if self.quant != AUTO else f"{AUTO} ({self.format})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def most_positions(self, bound: int) -> int:
        """The longest of the contexts with which it fits into so many bytes; 0: none."""
        return max((room.ctx for room in self.contexts if room.memory <= bound), default=0)


def decode_seconds(spec: ModelSpec, touched: float, bandwidth: float) -> float:
    """Of one token: its bytes at the rate at which weights are read (roofline.weights_bandwidth), and its ops."""
    ops = sum(OPS_OF_A_LAYER + OPS_OF_ROUTING * (layer.feed_forward.router is not None) for layer in spec.layers)
    return touched / bandwidth + OP_SECONDS * ops


def contexts(spec: ModelSpec, ctx: int | None) -> list[int]:
    """Lengths of contexts that are told of: the one asked for or the usual one, a long one, and the model's longest."""
    first = default_ctx(spec) if ctx is None else checked_ctx(spec, ctx)
    return sorted({first, *(n for n in (LONG, spec.context) if first < n <= spec.context)})


def formats_of(spec: ModelSpec, quant: str, stored: Callable[[str], Stored]) -> dict[str, str]:
    """The format of each matrix of a model that is packed as `quant`; stored: those that it is made of."""
    return with_coarse_head(spec, choose_formats(spec, quant, stored))


def all_formats(spec: ModelSpec, stored: Callable[[str], Stored]) -> dict[str, dict[str, str]]:
    """`formats_of` for each way to pack a model; `auto` stands by itself only where it is none of the others."""
    made_of = [stored(tensor.name) for tensor in tensors(spec).values() if tensor.is_matrix]
    floats = "f16" if {"f16"} in made_of else "bf16"
    found = {quant: formats_of(spec, quant, stored) for quant in (*QUANTS, floats)}
    auto = formats_of(spec, AUTO, stored)
    return found if auto in found.values() else {AUTO: auto, **found}


def fits(
    spec: ModelSpec, ways: Mapping[str, Mapping[str, str]], ctx: int | None = None, kv: KVOption = "auto", *,
    auto: Mapping[str, str] | None = None, bound: int | None = None, bandwidth: Bandwidth | None = None,
    disk: Callable[[], float | None] = lambda: None,
) -> list[Fit]:  # fmt: skip
    """What a model takes for each way to pack it, which has a format for each matrix (`all_formats`).

    auto: the formats of `--quant auto`. bound: bytes of memory that there are. disk: bytes per second that a disk
    gives, asked where experts would have to be read from it; None: not known. Then the disk is what takes long, and
    weights in memory are taken to be read as fast as those of the first way: each rate takes a second to measure.
    """
    rates: dict[str, float] = {}

    def rate(format: str) -> float | None:
        if bandwidth is not None and format not in rates:
            rates[format] = bandwidth(format)
        return rates.get(format)

    estimates = []
    for quant, chosen in ways.items():
        costs = Costs(spec, chosen, kv_format(kv, quant))
        packed, rooms = costs.weight_bytes, tuple(_room(costs, n) for n in contexts(spec, ctx))
        first, format = rooms[0], costs.main_format
        touched = costs.decoded(first.ctx // 2)
        fit = Fit(quant, format, chosen == auto, packed, first.memory, touched, first.ctx, None, rooms)
        if bound is None or first.memory <= bound:
            if packed > machine.largest_cache() and (measured := rate(format)) is not None:
                fit = replace(fit, tokens_per_second=1 / decode_seconds(spec, touched, measured))
        elif (kept := experts_in(costs, first.memory, bound)) is not None:
            first_format = estimates[0].format if estimates else format
            if (read := disk()) is not None and (measured := rate(first_format)) is not None:
                seconds = decode_seconds(spec, touched, measured) + kept.read / read
                kept = replace(kept, tokens_per_second=1 / seconds)
            fit = replace(fit, on_disk=kept)
        estimates.append(fit)
    return estimates


def _room(costs: Costs, ctx: int) -> Room:
    limits = Limits(ctx, kv=costs.kv if isinstance(costs.kv, str) else "f16")
    kv = cache_bytes(costs.spec, costs.kv, 1, ctx, min(limits.step, ctx))
    return Room(ctx, kv, costs.weight_bytes + kv + context_bytes(costs.spec, limits) + PROCESS_BYTES)


def verdict(estimates: Sequence[Fit], bound: int | None, memory: float | None = None) -> tuple[bool, str]:
    """Whether any runs in `bound` bytes, and how, in words: in memory, or with experts on disk.

    memory: GB that were asked for; None where bound is what is free, into which a model without that option must fit.
    """
    if bound is None:
        return True, "the system does not tell how much memory is free"
    where = f"{size(bound)} free now" if memory is None else f"--memory {memory:g}"
    positions: dict[int, list[Fit]] = {}
    for fit in estimates:
        if most := fit.most_positions(bound):
            positions.setdefault(most, []).append(fit)
    if positions:
        found = sorted(positions.items(), reverse=True)
        said = [f"in {_together(those, len(estimates))} with {most:,}" for most, those in found]
        best = min((fit for fit in estimates if fit.memory <= bound), key=lambda fit: (not fit.default, fit.memory))
        more = "".join(f", {each}" for each in said[1:])
        return True, f"fits {said[0]} positions{more} ({where}){_about(best, best.tokens_per_second)}"
    least = min(estimates, key=lambda fit: fit.memory)
    needs = f"{least.label} needs {size(least.memory)} with {least.ctx:,} positions"
    from_disk = [fit for fit in estimates if fit.on_disk is not None]
    if not from_disk:
        return False, f"does not fit in any form: {needs} ({where})"
    best = min(from_disk, key=lambda fit: (not fit.default, fit.memory))
    about = _about(best, best.on_disk.tokens_per_second if best.on_disk else None)
    bounded = f"{bound // 100_000_000 / 10:g}" if memory is None else f"{memory:g}"
    words = f"does not fit: {needs} ({where}); with --memory {bounded} experts are read from disk{about}"
    return memory is not None, words


def _about(fit: Fit, tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f": about {number(tokens_per_second, 2)} tok/s in {fit.label}"


def _together(those: Sequence[Fit], ways: int) -> str:
    *names, last = (fit.label for fit in those)
    if names and len(those) == ways:
        return "every format"
    return f"{', '.join(names)} and {last}" if names else last
