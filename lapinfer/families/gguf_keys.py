"""Keys of a GGUF file that no reader asked for: left aside when they change nothing, refused when they may.

As for config.json (keys.py), with what GGUF has besides: keys of the file as a whole (general.), of the vocabulary
(tokenizer.), and those that repeat what other keys say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from lapinfer.families.config import shown
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.keys import is_functional, says_nothing

GENERAL: Final = frozenset((
    "alignment", "architecture", "author", "basename", "description", "doi", "file_type", "filename", "finetune",
    "languages", "license", "name", "organization", "parameter_count", "quantization_version", "quantized_by",
    "repo_url", "size_label", "tags", "type", "url", "uuid", "version", "datasets", "sampling.temp", "sampling.top_k",
    "sampling.top_p", "sampling.min_p", "sampling.penalty_repeat",
))  # fmt: skip
GENERAL_BEGINS: Final = ("base_model.", "dataset.", "license.", "source.")

TOKENIZER: Final = frozenset((
    "model", "pre", "tokens", "token_type", "token_type_count", "scores", "merges", "add_bos_token", "add_eos_token",
    "add_sep_token", "add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap", "eos_token_ids",
))  # fmt: skip
"""Keys under tokenizer.ggml. that are read, or that llama.cpp's loader leaves aside for the supported kinds, too."""

ELSEWHERE: Final = (
    "split.",
    "quantize.imatrix.",
    "tokenizer.chat_template",
    "tokenizer.huggingface.json",
    "tokenizer.rwkv.",
)
"""What keys begin with that other readers know, or that say where a file is from."""

IMAGES: Final = ("mm.", "vision.", "audio.")
"""Sections of an architecture for parts that are not text."""

HARMLESS: Final = frozenset(
    ("vocab_size", "rope.scaling.finetuned", "attention.layer_norm_epsilon", "decoder_start_token_id")
)
"""Of an architecture's keys: llama.cpp goes by the tensors' shapes, or doesn't read them in the supported ones."""

TEXT: Final = re.compile(r"normaliz|lowercase|strip|space|prefix|suffix|split|byte|escape|merge")
"""Parts of names of what changes how text becomes tokens."""


def check_keys(metadata: Metadata, config: Mapping[str, Any]) -> list[str]:
    """Lines about keys that are left aside; UnsupportedError for one that may change what the model computes."""
    left: list[str] = []
    for key, value in _unasked(metadata):
        value = _plain(value)
        own = key.startswith(f"{metadata.architecture}.")
        name = key.removeprefix(f"{metadata.architecture}.")
        repeats = _repeats(name, value, config) if own else None
        if repeats:
            continue
        if own and name == "pooling_type":
            if value:
                left.append(f"{key} ({shown(value)}: a model for embeddings)")
        elif (own and (repeats is False or is_functional(name, value))) or (
            key.startswith("tokenizer.ggml.") and TEXT.search(key[15:]) and not says_nothing(key, value)
        ):
            raise metadata.unsupported(
                f"{key[:80]!r} is {shown(value)}, which is not known here and may change what the model computes"
            )
        elif not says_nothing(key, value):
            left.append(f"{key[:80]!r} ({shown(value)})")
    more = f" and {len(left) - 8} more" if len(left) > 8 else ""
    if not left:
        return []
    return [f"note: {metadata.where}: left aside, since it is not known here: {', '.join(left[:8])}{more}"]


def _unasked(metadata: Metadata) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.values.items():
        section, _, name = key.partition(".")
        if section == metadata.architecture:
            known = name in metadata.asked or name in HARMLESS or name.startswith(IMAGES)
        elif section == "general":
            known = name in GENERAL or name.startswith(GENERAL_BEGINS)
        elif key.startswith("tokenizer.ggml."):
            known = key[15:] in TOKENIZER or key.endswith("_token_id")
        else:
            known = key.startswith(ELSEWHERE)
        if not known:
            yield key, value


def _plain(value: Any) -> Any:
    """A value as keys.py looks at it: lists instead of arrays, in which zeros say as little as elsewhere."""
    if isinstance(value, np.ndarray):
        return [item or None for item in value[:64].tolist()] + ["…"] * (len(value) > 64)
    return value


def _repeats(name: str, value: Any, config: Mapping[str, Any]) -> bool | None:
    """Whether a key only says again what the model is anyway, or something else; None: it is not about that."""
    head, width = config.get("head_dim"), config.get("hidden_size")
    if name == "attention.scale" and head and isinstance(value, int | float) and value:
        return abs(value - head**-0.5) < 1e-6
    same = {
        "attention.causal": True,
        "attention.key_length_swa": head,
        "attention.value_length_swa": head,
        "rope.dimension_count_swa": head,
        "embedding_length_out": width,
        "hidden_activation": config.get("hidden_activation", config.get("hidden_act")),
    }
    return value == same[name] if same.get(name) is not None else None
