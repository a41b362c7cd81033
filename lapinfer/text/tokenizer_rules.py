"""A `tokenizers.Tokenizer` set up as the class of tokenizers would do it that transformers (5.24) takes for a folder.

Most classes take tokenizer.json as it stands. Some build the tokenizer anew from its vocabulary and merges, by steps of
their own (`CLASSES`); of the file they keep the post-processor, which says what goes around a text. In the end, the
special tokens that the files name become added tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lapinfer.text.tokenizer_files import NAMED, TokenizerFiles

PLAIN = "TokenizersBackend"
"""The class that takes tokenizer.json as it stands."""

AS_IT_STANDS = "tokenizer.json"
"""What our own files have as their tokenizer_class: no other class is meant, whatever the type of the model."""

TIDY_BPE_TOO = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"

TIDIED = {
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}
"""What is replaced, in this order, in decoded text that is tidied."""

CLASS_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "olmoe": "GPTNeoXTokenizer",
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(
        ("granite", "granitemoe", "granitemoeshared", "mistral", "mixtral", "olmo2", "phi3", "phimoe"), PLAIN
    ),
}
"""By the model_type of config.json. Types that are absent leave the choice to tokenizer_config.json."""

OVERRULED = {"qwen2", "phi3", "phimoe"}
"""Types of models whose published files name a wrong class: that of the model is taken."""

MISTRAL = {"mistral", "mixtral"}


def class_of(files: TokenizerFiles, byte_level: bool) -> str:
    """Name of the class that transformers' AutoTokenizer takes, without Fast.

    byte_level: whether tokenizer.json has a ByteLevel step: then it is none of LlamaTokenizer, whatever it is called.
    """
    stated = next((name.removesuffix("Fast") for name in files.classes if name), None)
    if stated == AS_IT_STANDS:
        return PLAIN
    model = files.model_type or ""
    of_model = CLASS_OF_MODEL.get(model)
    if stated is None:
        return of_model or PLAIN
    if stated == "LlamaTokenizer" and byte_level and model not in OVERRULED | MISTRAL:
        return PLAIN
    if of_model is None or of_model == stated:
        return stated
    if of_model == PLAIN:
        return PLAIN
    return of_model if model in OVERRULED else stated


@dataclass(frozen=True, slots=True)
class Rules:
    """How a class builds a tokenizer from vocabulary and merges.

    model: settings of the BPE. steps: normalizer, pre-tokenizer and decoder. named: its names of special tokens, where
    the files say nothing. special_again: whether and how its special tokens are added once more at the end.
    own_ends: whether tokenizer.json's post-processor is dropped, too. files: whether vocab.json and merges.txt may be
    its files. knows_unknown: whether the BPE has its unk_token.
    """

    model: Mapping[str, Any]
    steps: Callable[[TokenizerFiles], tuple[Any, Any, Any]]
    named: Mapping[str, str | None] = field(default_factory=dict)
    special_again: Literal["plain", "with flags"] | None = None
    own_ends: bool = False
    files: bool = True
    knows_unknown: bool = False


_NO_SETTINGS: dict[str, Any] = {
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "ignore_merges": False,
}
_BYTES = {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
_PIECES = {"unk_token": None, "fuse_unk": True, "byte_fallback": True}

_PLAIN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORDS_WITH_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"


def _qwen(words: str) -> Callable[[TokenizerFiles], tuple[Any, Any, Any]]:
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"

    def steps(files: TokenizerFiles) -> tuple[Any, Any, Any]:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        prefix = bool(files.flag("add_prefix_space"))
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        return normalizers.NFC(), pre_tokenizers.Sequence([split, to_bytes]), decoders.ByteLevel()

    return steps


def _gpt2(files: TokenizerFiles) -> tuple[Any, Any, Any]:
    prefix = bool(files.flag("add_prefix_space"))
    return None, pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()


def _gpt_neox(files: TokenizerFiles) -> tuple[Any, Any, Any]:
    return normalizers.NFC(), *_gpt2(files)[1:]


def _cohere(files: TokenizerFiles) -> tuple[Any, Any, Any]:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return normalizers.NFC(), pre_tokenizers.Sequence([digits, _gpt2(files)[1]]), decoders.ByteLevel()


def _llama(files: TokenizerFiles) -> tuple[Any, Any, Any]:
    prefix = bool(files.flag("add_prefix_space", True))
    scheme = "never" if not prefix else "always" if files.flag("legacy") else "first"
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    return None, spaces, decoders.Sequence([*_PIECES_TO_TEXT, *strip])


def _gemma(files: TokenizerFiles) -> tuple[Any, Any, Any]:
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return normalizers.Replace(" ", "▁"), split, decoders.Sequence([*_PIECES_TO_TEXT])


_PIECES_TO_TEXT = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
_END_OF_TEXT: dict[str, str | None] = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_QWEN_NAMES: dict[str, str | None] = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
_GEMMA_NAMES = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
_COHERE_NAMES = {
    "unk_token": "<UNK>",
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}
_LLAMA_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

CLASSES = {
    "GPT2Tokenizer": Rules(_BYTES, _gpt2, _END_OF_TEXT | {"pad_token": None}),
    "GPTNeoXTokenizer": Rules(_BYTES, _gpt_neox, _END_OF_TEXT | {"pad_token": "<|padding|>"}, own_ends=True),
    "Qwen2Tokenizer": Rules(_BYTES, _qwen(_PLAIN_WORDS), _QWEN_NAMES, special_again="plain"),
    "Qwen3_5Tokenizer": Rules(_BYTES, _qwen(_WORDS_WITH_MARKS), _QWEN_NAMES),
    "CohereTokenizer": Rules(_BYTES, _cohere, _COHERE_NAMES, special_again="with flags"),
    "LlamaTokenizer": Rules(_PIECES, _llama, _LLAMA_NAMES, files=False),
    "GemmaTokenizer": Rules(_PIECES, _gemma, _GEMMA_NAMES, files=False, knows_unknown=True),
}
"""The classes that build the tokenizer anew."""


@dataclass(frozen=True, slots=True)
class SetUp:
    """A tokenizer that is ready.

    named: its special tokens by name. special: ids that decoding leaves out. tidy: whether decoded text loses the
    spaces before punctuation (`TIDIED`).
    """

    backend: tokenizers.Tokenizer
    named: Mapping[str, str]
    special: frozenset[int]
    tidy: bool


def set_up(backend: tokenizers.Tokenizer, files: TokenizerFiles, byte_level: bool) -> SetUp:
    """The tokenizer of tokenizer.json as the class of the files has it."""
    rules = CLASSES.get(class_of(files, byte_level)) if isinstance(backend.model, models.BPE) else None
    in_file = backend.get_added_tokens_decoder()
    added = files.added if files.complete else {**files.added, **in_file}
    named = _names(files, rules, added, backend.padding)
    if rules is not None:
        backend = _anew(backend, rules, files, named)
    if backend.post_processor is None or (rules is not None and rules.own_ends):
        backend.post_processor = _around([], [])
    return _finished(backend, rules, files, named, added)


def from_vocabulary(vocab: Path, merges: Path, files: TokenizerFiles) -> SetUp | None:
    """The tokenizer of vocab.json and merges.txt alone; None where its class reads others."""
    rules = CLASSES.get(class_of(files, True))
    if rules is None or not rules.files:
        return None
    named = _names(files, rules, files.added, None)
    made = _anew(tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges))), rules, files, named)
    done = _finished(made, rules, files, named, files.added)
    # Where there is a tokenizer.json, its post-processor says what goes around a text, and not these flags.
    ends = [
        [token.content] if files.flag(flag) and (token := named.get(name)) else []
        for name, flag in (("bos_token", "add_bos_token"), ("eos_token", "add_eos_token"))
    ]
    made.post_processor = _around(*[[(text, made.token_to_id(text)) for text in texts] for texts in ends])
    return done


def _around(first: list[tuple[str, Any]], last: list[tuple[str, Any]]) -> processors.TemplateProcessing:
    """Puts tokens (text, id) before and after a text."""
    single = [*(f"first{i}" for i in range(len(first))), "$A", *(f"last{i}" for i in range(len(last)))]
    ids = [(name, id) for name, (_, id) in zip([n for n in single if n != "$A"], first + last, strict=True)]
    return processors.TemplateProcessing(single=single, pair=[*single, "$B:1"], special_tokens=ids)


def _names(
    files: TokenizerFiles,
    rules: Rules | None,
    added: Mapping[int, AddedToken],
    padding: Mapping[str, Any] | None,
) -> dict[str, AddedToken]:
    """Special tokens by name, in the order in which they are added; one that is an added token has its flags."""
    defaults = {} if rules is None else dict(rules.named)
    if padding is not None:
        defaults.setdefault("pad_token", padding["pad_token"])
    plain = {name: AddedToken(text, special=True, normalized=False) for name, text in defaults.items() if text}
    by_text = {token.content: token for token in added.values()}
    stated = {
        name: by_text.get(token.content, token) if token and name in NAMED else token
        for name, token in files.named.items()
    }
    values = plain | stated
    order = [*NAMED, *(name for name in values if name not in NAMED)]
    return {name: token for name in order if (token := values.get(name)) is not None}


def _anew(
    backend: tokenizers.Tokenizer, rules: Rules, files: TokenizerFiles, named: Mapping[str, AddedToken]
) -> tokenizers.Tokenizer:
    """The vocabulary and merges of a tokenizer with the settings and steps of a class."""
    model: Any = backend.model
    for setting, value in (_NO_SETTINGS | dict(rules.model)).items():
        setattr(model, setting, value)
    if rules.knows_unknown and "unk_token" in named:
        model.unk_token = named["unk_token"].content
    fresh = tokenizers.Tokenizer(model)
    normalizer, fresh.pre_tokenizer, fresh.decoder = rules.steps(files)
    if normalizer is not None:
        fresh.normalizer = normalizer
    if backend.post_processor is not None:
        fresh.post_processor = backend.post_processor
    return fresh


def _finished(
    backend: tokenizers.Tokenizer,
    rules: Rules | None,
    files: TokenizerFiles,
    named: Mapping[str, AddedToken],
    added: Mapping[int, AddedToken],
) -> SetUp:
    """With the added tokens of the files, and the special ones that are none of them yet."""
    backend.no_truncation()
    backend.no_padding()
    before = backend.get_added_tokens_decoder()
    names = {token.content for token in named.values()}
    wanted = [added[id] for id in sorted(added)]
    known = {token.content for token in (*before.values(), *wanted)}
    new = {repr(token): token for token in (*named.values(), *files.extra) if token.content not in known}
    wanted += new.values()
    for token in wanted:
        token.special = token.special or token.content in names
    there = {token.content: repr(token) for token in before.values()}
    if any(there.get(token.content) != repr(token) for token in wanted):
        backend.add_tokens(wanted)
    if rules is not None and rules.special_again:
        again = [*named.values(), *files.extra]
        if rules.special_again == "plain":
            again = [AddedToken(token.content, special=True, normalized=False) for token in again]
        backend.add_special_tokens(again)
    backend.encode_special_tokens = bool(files.flag("split_special_tokens"))
    special = _special_ids(backend, before)
    # A BPE has its spaces in its tokens, and nothing to be tidied, whatever the files say.
    tidy = bool(files.flag("clean_up_tokenization_spaces")) and (
        not isinstance(backend.model, models.BPE) or bool(files.flag(TIDY_BPE_TOO))
    )
    return SetUp(backend, {name: token.content for name, token in named.items()}, special, tidy)


def _special_ids(backend: tokenizers.Tokenizer, before: Mapping[int, AddedToken]) -> frozenset[int]:
    """The ids that decoding leaves out: of tokens that were added twice or are normalized, the library is asked."""
    now = backend.get_added_tokens_decoder()
    sure = {id for id, token in now.items() if not token.normalized and repr(before.get(id)) == repr(token)}
    special = {id for id in sure if now[id].special}
    for id in now.keys() - sure:
        shown = backend.decode([id], skip_special_tokens=False)
        if not backend.decode([id], skip_special_tokens=True) if shown else now[id].special:
            special.add(id)
    return frozenset(special)
