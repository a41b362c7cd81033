"""Fast feedforward layers in a checkpoint of any family: the section `fff` of its config.json, and their tensors.

docs/checkpoint-format.md is the description for those who write such checkpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from lapinfer.families.config import Config
from lapinfer.families.experts import MOST_EXPERTS, MOST_PARTS
from lapinfer.families.names import Source, Sources, layer_prefixes
from lapinfer.spec import FeedForwardSpec, ModelSpec, TreeSpec
from lapinfer.tensors import tensors

KEYS: Final = frozenset((
    "depth", "leaf_width", "trees", "node_width", "node_activation", "node_bias", "activation", "gated", "bias",
    "master_width", "mix", "neurons", "layers",
))  # fmt: skip


def with_trees(spec: ModelSpec, config: Config) -> ModelSpec:
    """The model with the feed-forwards that the section says in the layers that it names, or in all."""
    for key in config.values:
        if key not in KEYS:
            raise config.unsupported(key, ", ".join(sorted(KEYS)))
    config.know(*KEYS)
    neurons = config.flag("neurons", False)
    tree = TreeSpec(
        config.integer("depth", least=0, most=16),
        config.integer("trees", 1, most=MOST_EXPERTS),
        1 if neurons else config.integer("node_width", 1, most=MOST_EXPERTS),
        config.flag("node_bias", not neurons),
        config.activation("node_activation", "relu"),
        neurons,
        config.flag("mix", False),
    )
    width, master = config.integer("leaf_width", 1 if neurons else -1, least=-1), config.integer("master_width", 0, 0)
    if width < 1:
        raise config.wrong("leaf_width", "an integer from 1")
    if neurons and (width != 1 or master or tree.node_bias):
        raise config.wrong("neurons", "leaf_width 1, without node_bias (the neurons' own is `bias`) and master_width")
    if tree.mix and not master:
        raise config.wrong("mix", "true only with a master_width")
    gated = config.flag("gated", not neurons)
    ff = FeedForwardSpec(
        width, config.activation("activation", "gelu" if neurons else "silu"), gated and not neurons,
        config.flag("bias", False), tree, -(-master // width), False, master,
    )  # fmt: skip
    layers = config.get("layers")
    chosen = range(len(spec.layers)) if layers is None else layers
    if not isinstance(chosen, list | range) or any(type(i) is not int or not 0 <= i < len(spec.layers) for i in chosen):
        raise config.wrong("layers", f"a list of layer numbers from 0 to {len(spec.layers) - 1}")
    if ff.experts * len(chosen) > MOST_PARTS:
        raise config.wrong("depth", f"at most {MOST_PARTS} leaves in all layers")
    return replace(
        spec,
        layers=tuple(
            replace(layer, feed_forward=ff) if i in set(chosen) else layer for i, layer in enumerate(spec.layers)
        ),
    )


def tree_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """Sources of the layers that are trees."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names):
        ff = spec.layers[i].feed_forward
        if isinstance(ff.router, TreeSpec):
            sources |= _layer(ff, ff.router, spec.hidden, f"layers.{i}.", f"{prefix}mlp.")
    promised = tensors(spec)
    return {name: rows for name, rows in sources.items() if name in promised}


def _layer(ff: FeedForwardSpec, tree: TreeSpec, D: int, p: str, stored: str) -> Sources:
    sources: Sources = {
        p + "nodes": (Source(f"{stored}nodes.weight"),),
        p + "nodes.bias": (Source(f"{stored}nodes.bias"),),
        p + "node_out": (Source(f"{stored}node_out"),),
        p + "node_out.bias": (Source(f"{stored}node_out_bias"),),
        p + "mix": (Source(f"{stored}mix"),),
    }
    sides = ("gate", "up") if ff.gated else ("up",)
    E, narrow = tree.n_experts, ff.narrow
    masters = list(_parts_of_master(ff))
    first = [Source(stored + side, index=e) for e in range(E) for side in sides]
    last = [Source(f"{stored}down", index=e, transposed=narrow) for e in range(E)]
    first_bias = [Source(f"{stored}{side}_bias", index=e) for e in range(E) for side in sides]
    last_bias = [Source(f"{stored}down_bias", index=e) for e in range(E)]
    for low, high in masters:
        rows = [Source("", stop=ff.width - (high - low))] if high - low < ff.width else []
        end = None if high == ff.shared_width else high  # a tensor with more rows than config.json says is an error
        for side in sides:
            first += [Source(f"{stored}master_{side}", low, end), *rows]
            first_bias += [Source(f"{stored}master_{side}_bias", low, end), *rows]
        down = f"{stored}master_down"
        last += [Source(down, low, end, transposed=True), *rows] if narrow else [Source(down, columns=(low, high))]
        # The result has the master's bias once, however many leaves it is made of.
        last_bias.append(Source(f"{down}_bias") if low == 0 else Source("", stop=D))
    names = ("leaves.inward", "leaves.outward") if narrow else (
        "experts.gate_up" if ff.gated else "experts.up", "experts.down"
    )  # fmt: skip
    sources[p + names[0]], sources[p + names[1]] = tuple(first), tuple(last)
    if ff.bias:
        sources[p + names[0] + ".bias"] = tuple(first_bias)
        sources[p + names[1] + ".bias"] = tuple(last_bias)
    return sources


def _parts_of_master(ff: FeedForwardSpec) -> Iterator[tuple[int, int]]:
    """The neurons of each leaf that the master leaf is cut into."""
    for low in range(0, ff.shared_width, ff.width):
        yield low, min(low + ff.width, ff.shared_width)
