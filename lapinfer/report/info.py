"""What a checkpoint is, from its headers and configs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from lapinfer.checkpoint.folder import read_json
from lapinfer.checkpoint.hub import resolve
from lapinfer.checkpoint.packed import PackedFile
from lapinfer.families import spec_from_config
from lapinfer.spec import ModelSpec, tensors
from lapinfer.text.template import ChatTemplate
from lapinfer.text.tokenizer import Tokenizer


def info(name: str) -> dict[str, Any]:
    """Family, sizes, stored formats (share of the weights in each), tokenizer; reads no weights."""
    found = resolve(name)
    if isinstance(found, Path):
        path = folder = found
        config = read_json(folder / "config.json")
        packed = PackedFile(folder)
        stored = _shares((packed.format(n) or "f32", prod(packed.shape(n))) for n in packed.names())
    else:
        path, folder, config = found.path, found.folder, found.config
        stored = _shares((found.stored_as(n), prod(found.shape(n))) for n in found.names())
    spec = spec_from_config(config, str(folder / "config.json"))
    tokenizer = Tokenizer.from_folder(folder)
    return {
        "path": str(path),
        "packed": isinstance(found, Path),
        "parameters": sum(map(prod, tensors(spec).values())),
        "stored": stored,
        **_sizes(spec),
        "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size} tokens",
        "chat_template": tokenizer is not None and ChatTemplate.from_folder(folder) is not None,
    }


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    attention, ff = spec.layers[0].attention, spec.layers[0].feed_forward
    windows = Counter(layer.attention.window for layer in spec.layers)
    return {
        "family": spec.family,
        "layers": len(spec.layers),
        "hidden": spec.hidden,
        "heads": attention.n_heads,
        "kv_heads": attention.n_kv_heads,
        "head_dim": attention.k_dim,
        "feed_forward": f"{ff.width} {ff.activation}{' gated' if ff.gated else ''}",
        "vocab": spec.vocab,
        "tied_head": spec.tied,
        "context": spec.context,
        "windows": {"none" if w is None else str(w): f"in {n} layers" for w, n in windows.items()},
    }


def _shares(weights: Iterable[tuple[str, int]]) -> dict[str, str]:
    counts: Counter[str] = Counter()
    for kind, n in weights:
        counts[kind] += n
    total = max(counts.total(), 1)
    return {kind: f"{100 * n / total:.1f} %" for kind, n in counts.most_common()}
