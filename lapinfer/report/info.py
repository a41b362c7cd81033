"""What a checkpoint is, and whether it will fit, from its headers and configs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

from lapinfer.checkpoint.hub import remote_config, resolve
from lapinfer.checkpoint.json_files import read_json
from lapinfer.errors import CheckpointError
from lapinfer.families import sources_for, spec_from_config
from lapinfer.loading import default_ctx
from lapinfer.options import KVOption
from lapinfer.packing.assemble import Assembler
from lapinfer.packing.reader import read_packed
from lapinfer.quant.choice import Stored
from lapinfer.report.costs import Costs
from lapinfer.report.fit import QUANTS, fits, verdict
from lapinfer.runtime.predict import expected_experts
from lapinfer.spec import LayerSpec, ModelSpec, TreeSpec
from lapinfer.tensors import active_parameters, parameters
from lapinfer.text.generation_config import read_generation
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer

BATCHES = (1, 2, 4, 8, 16, 32)
"""Numbers of tokens for which the expected number of touched experts is told."""


def info(
    name: str, *, ctx: int | None = None, kv: KVOption = "auto", quant: str | None = None, memory: float | None = None,
    bandwidth: Callable[[str], float] | None = None,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Family, sizes, stored formats (share of the weights in each), tokenizer, what it will take, and the notes that
    loading would give of its files; whether it fits.

    Reads no weights; of a model that is not on this computer, its config.json alone. ctx, kv, quant: for how many
    positions, and packed as what; memory: GB that it must fit into, else what is free. bandwidth: measures the bytes
    per second of weights in a format that this machine multiplies a token with.
    """
    formats: dict[str, str] = {}
    text: dict[str, Any] = {}
    notes: list[str] = []
    if (remote := remote_config(name)) is not None:
        spec = spec_from_config(read_json(remote), str(remote), notes.append)
        source: dict[str, Any] = {"path": f"{name} (not on this computer)", "packed": False}
        made_of: Callable[[str], Stored] = lambda _: {"bf16"}  # noqa: E731
    else:
        checkpoint = resolve(name)
        if isinstance(checkpoint, Path):
            path = folder = checkpoint
            spec, packed = read_packed(folder, notes.append)
            stored = _shares((packed.format(n) or "f32", prod(packed.shape(n))) for n in packed.names())
            formats = {name: str(packed.format(name)) for name in packed.names()}
            quant = packed.metadata.get("quant", "auto")
            made_of = lambda name: {formats[name]}  # noqa: E731
        else:
            path, folder = checkpoint.path, checkpoint.folder
            notes += checkpoint.notices
            spec = spec_from_config(checkpoint.config, str(path), notes.append)
            stored = _shares((checkpoint.stored_as(n), prod(checkpoint.shape(n))) for n in checkpoint.names())
            made_of = _formats_in(Assembler(checkpoint, sources_for(spec, checkpoint.names())))
        source = {"path": str(path), "packed": bool(formats), "stored": stored}
        tokenizer = Tokenizer.from_folder(folder)
        text = {
            "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size} tokens",
            "chat_template": tokenizer is not None and _template(folder),
        }
        if tokenizer is not None:
            notes += read_generation(folder, spec.vocab).notes
    ctx = default_ctx(spec) if ctx is None else ctx
    estimates = fits(spec, made_of, ctx, kv, QUANTS if quant is None else (quant,), bandwidth)
    fitting, words = verdict(estimates, memory)
    figures = source | {
        "parameters": parameters(spec),
        "active_parameters": active_parameters(spec),
        **_sizes(spec),
        **_placement(spec, formats),
        **{f"as {estimate.quant}": str(estimate) for estimate in estimates},
        "fits": words,
        "fit": [estimate.as_dict() for estimate in estimates],
    }
    return figures | text | {"notes": [line.removeprefix("note: ") for line in notes]}, fitting


def _template(folder: Path) -> bool | str:
    """Whether there is a chat template, or what is wrong with it."""
    template = ChatTemplate.from_folder(folder)
    problem = None if template is None else template.problem()
    return template is not None if problem is None else f"broken: {problem}"


def _formats_in(assembler: Assembler) -> Callable[[str], Stored]:
    """Formats that matrices are stored in; none where tensors are missing, which loading will tell."""

    def formats(name: str) -> Stored:
        try:
            return assembler.formats_of(name)
        except CheckpointError:
            return set()

    return formats


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    windows = Counter(attention.window for attention in spec.attentions)
    kernels = Counter(layer.convolution.kernel for layer in spec.layers if layer.convolution is not None)
    sizes: dict[str, Any] = {"family": spec.family, "layers": len(spec.layers), "hidden": spec.hidden}
    for attention in spec.attentions[:1]:
        sizes |= {"heads": attention.n_heads, "kv_heads": attention.n_kv_heads, "head_dim": attention.k_dim}
    if kernels:
        sizes["convolutions"] = {f"of {kernel} tokens": f"in {n} layers" for kernel, n in kernels.items()}
    return sizes | {
        "feed_forward": _feed_forwards(spec),
        "vocab": spec.vocab,
        "tied_head": spec.tied,
        "context": spec.context,
        "windows": {"none" if w is None else str(w): f"in {n} layers" for w, n in windows.items()},
    }


def _feed_forwards(spec: ModelSpec) -> str:
    """What the layers' feed-forwards are, and how many layers have each."""
    kinds = Counter(_feed_forward(layer) for layer in spec.layers)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{kind} in {n} layers" for kind, n in kinds.items())


def _feed_forward(layer: LayerSpec) -> str:
    ff = layer.feed_forward
    kind = f"{ff.width} {ff.activation}{' gated' if ff.gated else ''}"
    if ff.router is None:
        return kind
    shared = f" + {ff.shared} shared" if ff.shared else ""
    if isinstance(ff.router, TreeSpec):
        tree = ff.router
        trees = f"{tree.trees} trees" if tree.trees > 1 else "a tree"
        if tree.neurons:
            return f"{trees} of {tree.nodes} neurons {ff.activation}, {tree.depth + 1} per token"
        a_token = "one" if tree.trees == 1 else "one each"
        return f"{trees} of depth {tree.depth} with leaves of {kind}, {a_token} per token{shared}"
    return f"{ff.router.n_experts} experts of {kind}, {ff.router.top_k} per token{shared}"


def _placement(spec: ModelSpec, formats: dict[str, str]) -> dict[str, Any]:
    """Of a packed model: bytes in all, and those that a token touches; of experts, how many a batch touches."""
    placed: dict[str, Any] = {}
    routed = [i for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None]
    if formats:
        costs = Costs(spec, formats)
        placed["packed_bytes"] = costs.weight_bytes
        placed["touched_bytes_a_token"] = costs.decoded(0)
        if routed:
            placed["expert_bytes"] = costs.expert(routed[0])[0]
    if routed:
        layer = spec.layers[routed[0]]
        placed["expected_experts"] = {
            f"batch of {tokens}": f"{expected_experts(layer, tokens)} of {layer.feed_forward.experts} per layer"
            for tokens in BATCHES
        }
    return placed


def _shares(weights: Iterable[tuple[str, int]]) -> dict[str, str]:
    counts: Counter[str] = Counter()
    for kind, n in weights:
        counts[kind] += n
    total = max(counts.total(), 1)
    return {kind: f"{100 * n / total:.1f} %" for kind, n in counts.most_common()}
