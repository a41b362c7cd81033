"""What the families with experts share: the usual config keys of a router, and how files store experts.

Published files hold every expert's matrices by themselves. transformers 5 holds those of all experts in one tensor,
and may write that; Granite always did. Which of `LAYOUTS` a file has, its names tell, whatever its family.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import MODULES, PREFIXES, first_stored, layer_count, named_sources
from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec

MOST_EXPERTS: Final = 4096
MOST_PARTS: Final = 1 << 17
"""Of all layers together: each expert of each layer has names of its own."""

EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
"""The number of experts, by its names in different families: transformers 5 writes some under another one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names inside a layer, {} for an expert's number. One `gate_up`: gate rows and up rows in one tensor."""

    gate_up: tuple[str, ...]
    down: str
    router: str = ""


MLP: Final = Layout(
    ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
    "mlp.experts.{}.down_proj.weight",
    "mlp.gate.weight",
)
MIXTRAL: Final = Layout(
    ("block_sparse_moe.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w3.weight"),
    "block_sparse_moe.experts.{}.w2.weight",
    "block_sparse_moe.gate.weight",
)
GRANITE: Final = Layout(
    ("block_sparse_moe.input_linear.weight",),
    "block_sparse_moe.output_linear.weight",
    "block_sparse_moe.router.layer.weight",
)
LFM2: Final = Layout(
    ("feed_forward.experts.{}.w1.weight", "feed_forward.experts.{}.w3.weight"),
    "feed_forward.experts.{}.w2.weight",
    "feed_forward.gate.weight",
)
LAYOUTS: Final = (
    MLP,
    MIXTRAL,
    GRANITE,
    Layout(("mlp.experts.{}.w1.weight", "mlp.experts.{}.w3.weight"), "mlp.experts.{}.w2.weight", "mlp.router.weight"),
    LFM2,
    Layout(("mlp.experts.gate_up_proj",), "mlp.experts.down_proj"),
    Layout(("feed_forward.experts.gate_up_proj",), "feed_forward.experts.down_proj"),
    Layout(
        ("block_sparse_moe.experts.gate_up_proj",),
        "block_sparse_moe.experts.down_proj",
        "block_sparse_moe.router.weight",
    ),
)


def most_parts(config: Config) -> int:
    """The largest number of experts, or of latent heads, of one layer."""
    return min(MOST_EXPERTS, MOST_PARTS // layer_count(config))


def router_spec(config: Config, count: str, **options: Any) -> RouterSpec:
    """A router with the usual keys; `count` is the family's name for the number of experts."""
    count = next((key for key in (count, *EXPERT_COUNTS) if key in config), count)
    experts = config.integer(count, most=most_parts(config))
    return RouterSpec(experts, config.integer("num_experts_per_tok", most=experts), **options)


def routed_feed_forward(
    config: Config, router: RouterSpec, width: str, shared: tuple[str, int] = ("", 0), shared_gate: bool = False
) -> FeedForwardSpec:
    """Experts as wide as the key `width` says, and shared ones: their key in config.json and width together."""
    each = config.integer(width)
    key, together = shared
    count = -(-together // each)
    if count > most_parts(config):
        raise config.wrong(key, f"at most {most_parts(config)} times {width}, {each}")
    gate = shared_gate and count > 0
    return FeedForwardSpec(each, config.activation(), True, False, router, count, gate, together)


def sparse_layers(config: Config) -> list[bool]:
    """Which layers have experts, by Qwen's keys: every `decoder_sparse_step`th, without `mlp_only_layers`."""
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise config.wrong("mlp_only_layers", "a list of layer numbers")
    step = config.integer("decoder_sparse_step", 1)
    return [i not in dense and (i + 1) % step == 0 for i in range(layer_count(config))]


def expert_sources(
    spec: ModelSpec,
    names: Collection[str],
    usual: Layout,
    modules: Mapping[str, tuple[str, ...]] = MODULES,
    shared: Layout | None = None,
    shared_gate: str = "",
) -> dict[str, tuple[Source, ...]]:
    """Sources of a decoder by a table of modules, and of its experts; `usual` is the layout of published files."""
    found = named_sources(spec, names, modules)
    for i, prefix in layer_prefixes(spec, names):
        ff, p = spec.layers[i].feed_forward, f"layers.{i}."
        if not isinstance(ff.router, RouterSpec):
            continue
        routers = (usual.router, *(layout.router for layout in LAYOUTS if layout.router))
        router = next((name for name in routers if prefix + name in names), usual.router)
        gates = (Source(prefix + shared_gate),) if ff.shared_gate else ()
        found[p + "router"] = (Source(prefix + router), *gates)
        layout = next((layout for layout in LAYOUTS if prefix + layout.down.format(0) in names), usual)
        up, down = [], []
        for e in range(ff.router.n_experts if "{}" in layout.down else 1):
            up += [Source(prefix + name.format(e)) for name in layout.gate_up]
            down.append(Source(prefix + layout.down.format(e)))
        if shared is not None:
            for rows, columns in _shared_experts(ff, prefix, shared):
                up += rows
                down.append(columns)
        found[p + "experts.gate_up"], found[p + "experts.down"] = tuple(up), tuple(down)
    return found


def selection_bias_sources(spec: ModelSpec, names: Collection[str], stored: str) -> dict[str, tuple[Source, ...]]:
    """Sources of the biases that routers select with; `stored` is their name inside a layer."""
    return {
        f"layers.{i}.router.selection_bias": (Source(prefix + stored),)
        for i, prefix in layer_prefixes(spec, names)
        if isinstance(router := spec.layers[i].feed_forward.router, RouterSpec) and router.selection_bias
    }


def layer_prefixes(spec: ModelSpec, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """The number of each layer, and what the names of its stored tensors begin with."""
    decoder = first_stored(names, PREFIXES, "embed_tokens")
    return ((i, f"{decoder}layers.{i}.") for i in range(len(spec.layers)))


def _shared_experts(ff: FeedForwardSpec, prefix: str, stored: Layout) -> Iterator[tuple[list[Source], Source]]:
    """One stored shared expert as several of `ff.width`: (gate rows and up rows, columns of down) of each."""
    each, together = ff.width, ff.shared_width
    gate, up = prefix + stored.gate_up[0], prefix + stored.gate_up[-1]
    first_up = together if gate == up else 0  # where the up rows begin in their tensor, and what is before its end
    for low in range(0, together, each):
        high = min(low + each, together)
        missing = [Source("", stop=low + each - high)] if high < low + each else []
        rows: list[Source] = []
        for name, first in ((gate, 0), (up, first_up)):
            last = first + high == first_up + together  # a tensor with more rows than config.json says is an error
            rows += [Source(name, first + low, None if last else first + high), *missing]
        yield rows, Source(prefix + stored.down, columns=(low, high))
