"""How files name a family's tensors, as a table; and from it, where each of our tensors comes from.

Published files hold every expert's matrices by themselves. transformers 5 holds those of all experts in one tensor,
and may write that; Granite always did. Which of `LAYOUTS` a file has, its names tell, whatever its family.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec
from lapinfer.tensors import tensors


@dataclass(frozen=True, slots=True)
class Source:
    """Rows start:stop:step (all, when stop is None) and columns first:last of a stored matrix.

    `transposed` when it is stored [in, out]. Of a stored tensor with three dimensions, `index` says which matrix, or
    (None) that all of them are meant, one after the other. The name "" is `stop` rows of zeros.
    """

    name: str
    start: int = 0
    stop: int | None = None
    transposed: bool = False
    step: int = 1
    index: int | None = None
    columns: tuple[int, int] | None = None


Sources = dict[str, tuple[Source, ...]]
"""Our tensor -> the sources whose rows, one after the other, are its rows."""

LLAMA: Final[Mapping[str, tuple[str, ...]]] = {
    "embed": ("embed_tokens",),
    "norm": ("norm",),
    "attn_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "o": ("self_attn.o_proj",),
    "ff_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Our name of a part -> the modules whose rows it is made of, as Llama and most others call them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of experts inside a layer, {} for an expert's number. One `gate_up`: gate and up rows in one tensor."""

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


@dataclass(frozen=True, slots=True)
class TensorNames:
    """A family's table of names; what is not said is as in Llama's files.

    prefixes: what published names of the decoder's tensors begin with, and heads: those of the head, which is one of
    head_modules; the usual one is first. layers: what the list of layers is called. transposed: matrices of layers are
    stored [in, out]. experts: the layout of published files; shared: that of a layer's one shared expert. shared_gate
    and selection_bias: names inside a layer.
    """

    modules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LLAMA)
    prefixes: tuple[str, ...] = ("model.", "")
    heads: tuple[str, ...] = ("",)
    head_modules: tuple[str, ...] = ("lm_head",)
    layers: str = "layers"
    transposed: bool = False
    experts: Layout | None = None
    shared: Layout | None = None
    shared_gate: str = ""
    selection_bias: str = ""


AS_LLAMA: Final = TensorNames()

WRAPPERS: Final = ("", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")
"""What torch.compile and data-parallel training put before all names of a model that was saved inside them."""


def named_sources(table: TensorNames, spec: ModelSpec, names: Collection[str]) -> Sources:
    """Sources of all tensors that the table says, in a checkpoint that has these `names`.

    Parts of layers that the table leaves out are left out.
    """
    return _module_sources(table, spec, names) | _expert_sources(table, spec, names)


def first_stored(names: Collection[str], prefixes: Iterable[str], *modules: str) -> str:
    """The first prefix under which one of `modules` is stored, in a wrapper or not; the usual one when none is."""
    usual, *others = prefixes
    tried = (wrapper + prefix for wrapper in WRAPPERS for prefix in (usual, *others))
    return next((p for p in tried if any(f"{p}{module}.weight" in names for module in modules)), usual)


def decoder_prefix(table: TensorNames, names: Collection[str]) -> str:
    """What the names of the decoder's tensors begin with. Of a tied model, the embedding may be stored as head."""
    modules = (table.modules[module][0] for module in ("embed", "norm") if module in table.modules)
    return first_stored(names, table.prefixes, *modules)


def head_of(table: TensorNames, names: Collection[str]) -> str:
    """What the module of the head is called, or would be."""
    usual, *others = table.head_modules
    found = (first_stored(names, table.heads, module) + module for module in (usual, *others))
    return next((name for name in found if f"{name}.weight" in names), table.heads[0] + usual)


def layer_prefixes(spec: ModelSpec, names: Collection[str], table: TensorNames = AS_LLAMA) -> Iterator[tuple[int, str]]:
    """The number of each layer, and what the names of its stored tensors begin with."""
    decoder = decoder_prefix(table, names)
    return ((i, f"{decoder}{table.layers}.{i}.") for i in range(len(spec.layers)))


def _module_sources(table: TensorNames, spec: ModelSpec, names: Collection[str]) -> Sources:
    decoder = decoder_prefix(table, names)
    head = head_of(table, names)
    sources: Sources = {}
    for name, tensor in tensors(spec).items():
        suffix = tensor.suffix.removeprefix(".") or "weight"
        if tensor.module == "head":
            sources[name] = (Source(f"{head}.{suffix}"),)
            continue
        outer = decoder
        if tensor.layer >= 0:
            if tensor.module not in table.modules or suffix == "selection_bias":
                continue
            outer = f"{decoder}{table.layers}.{tensor.layer}."
        flip = table.transposed and tensor.is_matrix and tensor.layer >= 0
        sources[name] = tuple(Source(f"{outer}{m}.{suffix}", transposed=flip) for m in table.modules[tensor.module])
    if spec.tied and sources["embed"][0].name not in names and f"{head}.weight" in names:
        sources["embed"] = (Source(f"{head}.weight"),)
    return sources


def _expert_sources(table: TensorNames, spec: ModelSpec, names: Collection[str]) -> Sources:
    if table.experts is None:
        return {}
    sources: Sources = {}
    routers = (table.experts.router, *(layout.router for layout in LAYOUTS if layout.router))
    for i, prefix in layer_prefixes(spec, names, table):
        ff, p = spec.layers[i].feed_forward, f"layers.{i}."
        if not isinstance(ff.router, RouterSpec):
            continue
        router = next((name for name in routers if prefix + name in names), table.experts.router)
        gates = (Source(prefix + table.shared_gate),) if ff.shared_gate else ()
        sources[p + "router"] = (Source(prefix + router), *gates)
        if ff.router.selection_bias:
            sources[p + "router.selection_bias"] = (Source(prefix + table.selection_bias),)
        layout = next((layout for layout in LAYOUTS if prefix + layout.down.format(0) in names), table.experts)
        up, down = [], []
        for e in range(ff.router.n_experts if "{}" in layout.down else 1):
            up += [Source(prefix + name.format(e)) for name in layout.gate_up]
            down.append(Source(prefix + layout.down.format(e)))
        if table.shared is not None:
            for rows, columns in _shared_experts(ff, prefix, table.shared):
                up += rows
                down.append(columns)
        sources[p + "experts.gate_up"], sources[p + "experts.down"] = tuple(up), tuple(down)
    return sources


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
