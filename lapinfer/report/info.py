"""What a model is, and whether it will fit, from its headers and configs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lapinfer import machine
from lapinfer.options import KVOption
from lapinfer.quant.choice import AUTO
from lapinfer.report.costs import Costs
from lapinfer.report.fit import Bandwidth, Fit, all_formats, fits, formats_of, verdict
from lapinfer.report.known import Known, known
from lapinfer.runtime.predict import expected_experts
from lapinfer.spec import LayerSpec, ModelSpec, RecurrenceSpec, TreeSpec
from lapinfer.tensors import active_parameters, parameters
from lapinfer.text.generation_config import read_generation
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer

BATCHES = (1, 2, 4, 8, 16, 32)
"""Numbers of tokens for which the expected number of touched experts is told."""


def info(
    name: str, *, ctx: int | None = None, kv: KVOption = "auto", quant: str | None = None, memory: float | None = None,
    bandwidth: Bandwidth | None = None, disk: Callable[[], float | None] = lambda: None,
) -> tuple[dict[str, Any], list[Fit], bool]:  # fmt: skip
    """Family, sizes, stored formats (share of the weights in each), tokenizer, and the notes that loading would give of
    its files; what it will take, packed in each way; whether it runs.

    Reads no weights, and needs none: a config.json will do, or the name of a model that lapinfer has the sizes of. ctx,
    kv, quant: for how many positions, and packed as what; memory: GB that it must fit into, else what is free.
    bandwidth: measures the bytes per second of weights in a format that this machine multiplies a token with; disk:
    those that are read from disk.
    """
    model = known(name)
    estimates, bound = _estimates(model, ctx, kv, quant, memory, bandwidth, disk)
    fitting, words = verdict(estimates, bound, memory)
    text, notes = _texts(model)
    spec = model.spec
    figures = {
        "fits": words,
        "path": model.path,
        "packed": bool(model.packed),
        **({"stored": model.shares} if model.shares else {}),
        "parameters": parameters(spec),
        "active_parameters": active_parameters(spec),
        **_sizes(spec),
        **_placement(spec, model.packed),
        **text,
        "memory": bound,
        "fit": [estimate.as_dict() for estimate in estimates],
        "notes": [line.removeprefix("note: ") for line in notes],
    }
    return figures, estimates, fitting


def _estimates(
    model: Known, ctx: int | None, kv: KVOption, quant: str | None, memory: float | None,
    bandwidth: Bandwidth | None, disk: Callable[[], float | None],
) -> tuple[list[Fit], int | None]:  # fmt: skip
    """What the model takes for each way to pack it that is asked for, and the bytes that there are."""
    bound = machine.available_memory() if memory is None else int(memory * 1e9)
    if model.packed:
        ways, auto = {model.quant or AUTO: model.packed}, model.packed
    else:
        ways = all_formats(model.spec, model.stored)
        auto = formats_of(model.spec, AUTO, model.stored)
    if quant is not None and not model.packed:
        ways = {quant: formats_of(model.spec, quant, model.stored)}
    given = {"auto": auto, "bound": bound, "bandwidth": bandwidth, "disk": cache(disk)}
    return fits(model.spec, ways, ctx, kv, **given), bound


def _texts(model: Known) -> tuple[dict[str, Any], list[str]]:
    """Tokenizer and template, where there are files of them; and all notes."""
    notes = [*model.notes]
    if model.folder is None:
        return {}, notes
    tokenizer = Tokenizer.from_folder(model.folder)
    if tokenizer is None:
        return {"tokenizer": "none", "chat_template": False}, notes
    notes += read_generation(model.folder, model.spec.vocab).notes
    return {"tokenizer": f"{tokenizer.vocab_size} tokens", "chat_template": _template(model.folder)}, notes


def _template(folder: Path) -> bool | str:
    """Whether there is a chat template, or what is wrong with it."""
    template = ChatTemplate.from_folder(folder)
    problem = None if template is None else template.problem()
    return template is not None if problem is None else f"broken: {problem}"


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    windows = Counter(attention.window for attention in spec.attentions)
    kernels = Counter(layer.convolution.kernel for layer in spec.layers if layer.convolution is not None)
    states = Counter(_states(layer.recurrence) for layer in spec.layers if layer.recurrence is not None)
    sizes: dict[str, Any] = {"family": spec.family, "layers": len(spec.layers), "hidden": spec.hidden}
    for attention in spec.attentions[:1]:
        sizes |= {"heads": attention.n_heads, "kv_heads": attention.n_kv_heads, "head_dim": attention.k_dim}
    if kernels:
        sizes["convolutions"] = {f"of {kernel} tokens": f"in {n} layers" for kernel, n in kernels.items()}
    if states:
        sizes["recurrences"] = {name: f"in {n} layers" for name, n in states.items()}
    return sizes | {
        "feed_forward": _feed_forwards(spec),
        "vocab": spec.vocab,
        "tied_head": spec.tied,
        "context": spec.context,
        "windows": {"none" if w is None else str(w): f"in {n} layers" for w, n in windows.items()},
    }


def _states(recurrence: RecurrenceSpec) -> str:
    """What a layer keeps of a sequence, whatever its length."""
    rule = {"delta": "delta rule", "state_space": "state space"}[recurrence.rule]
    return f"{rule}, {recurrence.heads} states of {recurrence.k_dim} x {recurrence.v_dim}"


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
            f"batch of {tokens}": f"reads {expected_experts(layer, tokens)} of {layer.feed_forward.experts} per layer"
            for tokens in BATCHES
        }
    return placed
