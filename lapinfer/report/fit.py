"""Will it fit, and how fast will it be? From a model's config.json and this machine's bandwidth, before any weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lapinfer import machine
from lapinfer.options import KVOption
from lapinfer.packing.coarse import with_coarse_head
from lapinfer.packing.pack import choose_formats
from lapinfer.quant.choice import MODELS, Stored
from lapinfer.report.costs import Costs
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.kv import cache_bytes, kv_format
from lapinfer.runtime.ops import Limits
from lapinfer.spec import ModelSpec

QUANTS = (MODELS["large"], MODELS["small"], "f16")
PROCESS_BYTES = 210_000_000
"""Python, NumPy, the compiled kernels and the buffers of a step, as measured with small models."""
OP_SECONDS = 9e-6
"""What an op takes per token beside its bytes: handing over between threads, small ops, Python (bench/LOG.md)."""
OPS_OF_A_LAYER, OPS_OF_ROUTING = 9, 3


@dataclass(frozen=True, slots=True)
class Fit:
    """Of a model packed as `quant`: bytes in memory with a context of `ctx`, bytes that a token touches, and speed.

    memory: weights, KV cache and the process. touched: of a token after half of the context. tokens_per_second: at
    the rate that was measured; None without one, and where weights stay in caches, which are faster than that.
    """

    quant: str
    packed: int
    memory: int
    touched: int
    ctx: int
    tokens_per_second: float | None

    def __str__(self) -> str:
        rate = self.tokens_per_second
        speed = "" if rate is None else f", about {f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'} tok/s"
        return (
            f"{self.packed / 1e6:,.0f} MB packed, {self.memory / 1e6:,.0f} MB in memory with {self.ctx:,} positions, "
            f"{self.touched / 1e6:,.1f} MB touched per token{speed}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decode_seconds(spec: ModelSpec, touched: float, bandwidth: float) -> float:
    """Of one token: its bytes at the rate at which weights are read (roofline.weights_bandwidth), and its ops."""
    ops = sum(OPS_OF_A_LAYER + OPS_OF_ROUTING * (layer.feed_forward.router is not None) for layer in spec.layers)
    return touched / bandwidth + OP_SECONDS * ops


def fits(
    spec: ModelSpec, stored: Callable[[str], Stored], ctx: int, kv: KVOption = "auto",
    quants: Sequence[str] = QUANTS, bandwidth: Callable[[str], float] | None = None,
) -> list[Fit]:  # fmt: skip
    """stored: formats that a matrix is made of in its checkpoint; bandwidth: bytes per second of a format's weights."""
    estimates = []
    for quant in quants:
        formats, kind = with_coarse_head(spec, choose_formats(spec, quant, stored)), kv_format(kv, quant)
        costs, limits = Costs(spec, formats, kind), Limits(ctx, kv=kind)
        packed = costs.weight_bytes
        cache = cache_bytes(spec, kind, 1, ctx, min(limits.step, ctx))
        memory = packed + cache + context_bytes(spec, limits) + PROCESS_BYTES
        touched = costs.decoded(ctx // 2)
        rate = None if bandwidth is None else bandwidth(costs.main_format)
        speed = None if rate is None or packed <= machine.largest_cache() else 1 / decode_seconds(spec, touched, rate)
        estimates.append(Fit(quant, packed, memory, touched, ctx, speed))
    return estimates


def verdict(estimates: Sequence[Fit], memory: float | None) -> tuple[bool, str]:
    """Whether any fits in `memory` GB (10^9 bytes), or in what is free now; and that in words."""
    free = machine.available_memory() if memory is None else int(memory * 1e9)
    if free is None:
        return True, "the system does not tell how much memory is free"
    where = f"{free / 1e6:,.0f} MB {'that are free now' if memory is None else 'of --memory'}"
    if fitting := [fit.quant for fit in estimates if fit.memory <= free]:
        return True, f"{', '.join(fitting)} in the {where}"
    least = min(estimates, key=lambda fit: fit.memory)
    return False, (
        f"no: {least.quant} needs {least.memory / 1e6:,.0f} MB, more than the {where} (weights "
        f"{least.packed / 1e6:,.0f} MB, Python and kernels {PROCESS_BYTES / 1e6:,.0f}, the rest buffers and KV cache)"
    )
