"""Special tokens of a GGUF file as llama.cpp finds them: by keys, else by their texts (src/llama-vocab.cpp).

Many files say too little: they name one end token of several, or call a token that ends an answer ordinary text. So
the loader knows texts that look like control tokens, makes them control tokens, and ends answers with those that end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lapinfer.checkpoint.ends import ENDS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Of tokenizer.ggml.token_type; 0 is undefined."""

FILL_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
"""Texts of the tokens around code that is to be filled in; of each kind, the first that a file has."""

END_KINDS: Final = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Of gpt-oss: parts of the text."""

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "bos": ("bos",), "eos": ("eos",), "eot": ("eot",), "eom": ("eom",), "unk": ("unknown",), "pad": ("padding",),
    "fim_pre": ("fim_pre", "prefix"), "fim_suf": ("fim_suf", "suffix"), "fim_mid": ("fim_mid", "middle"),
    "fim_pad": ("fim_pad",), "fim_rep": ("fim_rep",), "fim_sep": ("fim_sep",),
}  # fmt: skip
"""Our names -> what stands in tokenizer.ggml.NAME_token_id; the last that a file has is taken."""

SENTENCEPIECE: Final = {"bos": 1, "eos": 2, "unk": 0}
"""The ids of a SentencePiece vocabulary whose keys are missing."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids by the names of KEYS, all that end an answer, types that are other than the file says, lines to be told."""

    ids: Mapping[str, int]
    ends: tuple[int, ...]
    types: Mapping[int, int]
    notices: tuple[str, ...]


_LOOKED_FOR: Final = frozenset((*ENDS, *SHOWN, *(text for texts in FILL_IN.values() for text in texts)))


def special_tokens(where: str, metadata: Mapping[str, Any], tokens: Sequence[str]) -> SpecialTokens:
    """The special tokens of a vocabulary; `metadata` are a file's keys and values, `where` names it."""
    found = {text: id for id, text in enumerate(tokens) if text in _LOOKED_FOR}
    kinds = metadata.get("tokenizer.ggml.token_type")
    known = kinds if isinstance(kinds, np.ndarray) else np.zeros(0, np.int32)
    ids, notices = _named(where, metadata, len(tokens))
    types = {found[text]: CONTROL for text in ENDS if text in found}
    for name, texts in FILL_IN.items():
        id = ids.get(name, next((found[text] for text in texts if text in found), None))
        if id is not None:
            if name not in ids:
                types[id] = CONTROL
            ids[name] = id
    ends = {found[text] for text in ENDS if text in found} | {ids[name] for name in END_KINDS if name in ids}
    more = metadata.get("tokenizer.ggml.eos_token_ids")  # of Ollama's converter
    if isinstance(more, np.ndarray):
        ends |= {int(id) for id in more[:64] if 0 <= id < len(tokens)}
    overridden = sorted(id for id in types if id < len(known) and known[id] != CONTROL)
    if overridden:
        texts = ", ".join(repr(tokens[id]) for id in overridden[:6])
        notices.append(f"note: {where}: taken as control tokens, which the file calls otherwise: {texts}")
    types |= {found[text]: USER_DEFINED for text in SHOWN if text in found}
    named = {text for text, id in found.items() if id in ends}
    calls = named & {"<|call|>", "<|calls|>"}
    if "<|end|>" in named and calls and named & {"<|return|>", "<|flush|>"}:
        ends.discard(found["<|end|>"])  # it ends a channel there, not the answer
        types[found["<|end|>"]] = USER_DEFINED
    if "</s>" in named and "<|tool_response>" in named:
        ends.discard(found["</s>"])
        types[found["</s>"]] = NORMAL
    if not ends:
        notices.append(f"note: {where}: has no token that ends an answer; end it with --max-tokens")
    return SpecialTokens(ids, tuple(sorted(ends)), types, tuple(notices))


def _named(where: str, metadata: Mapping[str, Any], count: int) -> tuple[dict[str, int], list[str]]:
    """What the keys say; those that name no token are left out, and told where they matter."""
    defaults = SENTENCEPIECE if metadata.get("tokenizer.ggml.model") == "llama" else {}
    ids = {name: id for name, id in defaults.items() if id < count}
    notices = []
    for name, words in KEYS.items():
        for word in words:
            key = f"tokenizer.ggml.{word}_token_id"
            id = metadata.get(key)
            if type(id) is int and 0 <= id < count:
                ids[name] = id
            elif id is not None and name in ("bos", "eos", "eot", "eom"):
                notices.append(f"note: {where}: {key} is {str(id)[:40]}, which is none of {count} tokens: left aside")
    return ids, notices
